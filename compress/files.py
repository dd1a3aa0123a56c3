"""Reading and writing files: nothing is lost, overwritten unasked or half-written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.errors import FileError


def refuse_existing(path: Path, force: bool) -> None:
    """Raise `FileError` if ``path`` exists and may not be replaced."""
    if path.exists() and not force:
        raise FileError("the output already exists", found=str(path), hint="Choose another name or pass --force")


@contextmanager
def atomic_path(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Give a temporary file beside ``path`` that replaces ``path`` when the block ends without an error.

    The temporary name keeps the suffix, because several writers choose their format by it. After an error the
    temporary file is removed and ``path`` is left as it was.

    Raises
    ------
    FileError
        If ``path`` exists and ``force`` is false, or it can't be written.
    """
    refuse_existing(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder can't be created: {error.strerror or error}", found=str(path.parent)) from error
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileError(f"the folder is not writable: {error.strerror or error}", found=str(path.parent)) from error
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private to their owner; an output should have the permissions of any other new file.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        raise FileError(
            f"the file can't be written: {error.strerror or error}",
            found=str(path),
            hint="Check disk space and permissions",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_bytes(path: Path, kind: str) -> bytes:
    """Content of a file that must exist and not be empty.

    Parameters
    ----------
    path : Path
        The file.
    kind : str
        What the error calls it: ``"recipe"``.

    Raises
    ------
    FileError
        If it is missing, empty, a folder or unreadable.
    """
    if not path.exists():
        raise FileError(f"the {kind} does not exist", found=str(path), hint="Check the path")
    if path.is_dir():
        raise FileError(f"the {kind} is a folder", found=str(path), hint="Name a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"the {kind} can't be read: {error.strerror or error}", found=str(path)) from error
    if not content:
        raise FileError(f"the {kind} is empty", found=str(path), hint="Download or write it again")
    return content


def read_text(path: Path, kind: str) -> str:
    """Text of a UTF-8 file, with or without a byte order mark; parameters and errors as of `read_bytes`."""
    content = read_bytes(path, kind)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Every UTF-16 byte order mark is invalid as UTF-8.
        encoding = "UTF-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "another encoding"
        raise FileError(
            f"the {kind} is not UTF-8 text but {encoding}", found=str(path), hint="Save it as UTF-8"
        ) from error


def expanded(path: Path) -> Path:
    """The path with a leading ``~`` or ``~user`` replaced by the home folder.

    Raises
    ------
    FileError
        If there is no such home folder.
    """
    try:
        return path.expanduser()
    except RuntimeError as error:
        raise FileError("there is no such home folder", found=str(path), hint="Write the path in full") from error
