"""Nothing is lost or half-written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import CompressError, FileError
from compress.files import atomic_path, expanded, read_bytes, read_text, refuse_existing, write_text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_text_comes_back(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("text") / "new" / "folder" / "file.txt"
    write_text(path, text)
    assert path.read_text(encoding="utf-8") == text
    assert os.listdir(path.parent) == ["file.txt"]


def test_an_existing_file_is_refused_without_force_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(FileError, match=r"already exists.*--force"):
        write_text(path, "new", force=False)
    with pytest.raises(FileError), atomic_path(path, force=False):
        pytest.fail("the block must not be entered")
    assert path.read_text() == "old"
    write_text(path, "new", force=True)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file.txt"]
    refuse_existing(path, force=True)
    refuse_existing(tmp_path / "absent", force=False)


@pytest.mark.parametrize("before", [None, b"old"])
def test_a_failing_writer_leaves_everything_as_it_was(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "file.bin"
    if before is not None:
        path.write_bytes(before)

    def write_half() -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert os.listdir(tmp_path) == ([] if before is None else ["file.bin"])
    assert before is None or path.read_bytes() == before


def test_the_old_file_stands_until_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "file.tar.gz"
    path.write_text("old")
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
        assert temporary.suffix == ".gz"
    assert path.read_text() == "new"


def test_outputs_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_text(tmp_path / "ours", "x")
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="folder can't be created"):
        write_text(tmp_path / "file" / "below.txt", "x")


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfa = 1\n")
    assert read_text(path, "recipe") == "a = 1\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "latin-1"])
def test_text_in_another_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "text"
    mark = b"\xfe\xff" if encoding == "utf-16-be" else b""
    path.write_bytes(mark + "größe = 1".encode(encoding))
    named = "UTF-16" if "16" in encoding else "another encoding"
    with pytest.raises(FileError, match=rf"the recipe is not UTF-8 text but {named}.*Save it as UTF-8"):
        read_text(path, "recipe")


def test_the_home_folder_is_expanded_and_an_unknown_one_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere")
    assert expanded(Path("~/x")) == Path("/somewhere/x")
    assert expanded(Path("$HOME/a~b")) == Path("$HOME/a~b")
    with pytest.raises(FileError, match="no such home folder"):
        expanded(Path("~nobody-of-this-name/x"))


def test_reading_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name, message in (("absent", "the plan does not exist"), ("", "is a folder"), ("empty", "the plan is empty")):
        with pytest.raises(FileError, match=message) as caught:
            read_bytes(tmp_path / name, "plan")
        assert isinstance(caught.value, CompressError)
        assert str(tmp_path / name) in str(caught.value)
        assert caught.value.exit_code == 1
    (tmp_path / "full").write_bytes(b"\x00x")
    assert read_bytes(tmp_path / "full", "plan") == b"\x00x"
