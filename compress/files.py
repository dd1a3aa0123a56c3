"""Writing files so that nothing is lost or half-written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compress.errors import FileError


def refuse_existing(path: Path, force: bool) -> None:
    """Raise `FileError` if ``path`` is there and may not be replaced."""
    if path.exists() and not force:
        raise FileError("the output exists already", found=str(path), hint="Choose another name or pass --force")


@contextmanager
def atomic_path(path: Path, *, force: bool = True) -> Iterator[Path]:
    """Give a temporary name beside ``path`` that becomes ``path`` when the block ends without an error.

    The temporary name keeps the suffix, because several writers choose their format by it. After an error the
    temporary file is removed and whatever stood at ``path`` stays as it was.

    Raises
    ------
    FileError
        If ``path`` exists and ``force`` is false, or the disk refuses.
    """
    refuse_existing(path, force)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"the folder can't be made: {error.strerror or error}", found=str(path.parent)) from error
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    except OSError as error:
        raise FileError(f"nothing can be written there: {error.strerror or error}", found=str(path.parent)) from error
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
            hint="Check space and permissions",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write ``text`` to ``path`` in one step."""
    with atomic_path(path, force=force) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_bytes(path: Path, kind: str) -> bytes:
    """Read a file that must be there and hold something; ``kind`` names it in the error."""
    if not path.exists():
        raise FileError(f"the {kind} does not exist", found=str(path), hint="Check the path")
    if path.is_dir():
        raise FileError(f"the {kind} is a folder", found=str(path), hint="Name a file")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileError(f"the {kind} can't be read: {error.strerror or error}", found=str(path)) from error
    if not content:
        raise FileError(f"the {kind} is empty", found=str(path), hint="Fetch or write it again")
    return content
