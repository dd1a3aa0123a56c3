"""Files that are no checkpoints, damaged ones, and ones that contain code: one clear error each."""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.checkpoint.load import create, load
from compress.checkpoint.reading import FORMAT
from compress.checkpoint.save import save
from compress.checkpoint.wrap import wrap
from compress.errors import CheckpointError, CompressError, FileError
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.source import NetworkSpec

SMALL = {"refinements": 0, "width": 8, "backbone_scale": 0.125, "blocks": 1, "head_width": 8}


@pytest.fixture(scope="module")
def small() -> Model:
    return create("default", SMALL, trained=False)


@pytest.fixture(scope="module")
def contents(small: Model, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of a good file of each kind that is read."""
    folder = tmp_path_factory.mktemp("good")
    for name in ("ours.pt", "ours.safetensors"):
        save(small, folder / name)
    state = {
        "state_dict": {f"module.{key}": value for key, value in list(small.module.state_dict().items())[:12]},
        "iter": 3,
    }
    torch.save(state, folder / "foreign.pth")
    torch.save(state, folder / "legacy.th", _use_new_zipfile_serialization=False)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def record(contents: dict[str, bytes]) -> dict[str, Any]:
    return torch.load(io.BytesIO(contents["ours.pt"]), weights_only=True)


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = "networks_nobody_asked_for"
    (tmp_path / f"{name}.py").write_text(
        "from pathlib import Path\nimport torch\nPath('imported').touch()\n"
        "def small(width=2):\n    return torch.nn.Linear(width, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


class Wicked:
    """Runs code when unpickled, unless the reader is safe."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def assert_refused(path: Path, match: str, network: str | None = None) -> None:
    with pytest.raises(CompressError, match=match) as caught:
        load(path, network)
    assert caught.value.exit_code == 1
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 4000
    assert "weights_only" not in str(caught.value), "advice to read a file unsafely"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.pt", b"", "the checkpoint is empty"),
        ("photo.pt", b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(50), "no checkpoint but a JPEG image"),
        ("drawing.pt", b"\x89PNG\r\n\x1a\n" + bytes(50), "no checkpoint but a PNG image"),
        ("plan.json", b'{"format": "compress-plan"}', "no checkpoint but JSON text"),
        ("page.pt", b"<!DOCTYPE html><html></html>", "no checkpoint but XML or HTML text"),
        ("pointer.pt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("network.onnx", b"\x08\x0a\x12\x07pytorch", "exported model is no checkpoint"),
        ("network.xml", b'<?xml version="1.0"?><net/>', "exported model is no checkpoint"),
        ("noise.pt", bytes(range(256)) * 4, "can't be read as a checkpoint"),
        ("text.pt", b"hello\n", "can't be read as a checkpoint"),
        ("short.safetensors", b"\x08", "can't be read as a checkpoint"),
        ("wide.safetensors", b"\xff" * 7 + b"\x7f{}", "can't be read as a checkpoint"),
        ("header.pt", (4).to_bytes(8, "little") + b"{\xff}x", "can't be read as a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_told_by_its_content(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_refused(path, message)


def test_absent_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    assert_refused(tmp_path / "absent.pt", "the checkpoint does not exist")
    assert_refused(tmp_path, "the checkpoint is a folder")


@pytest.mark.real
def test_an_image_and_an_exported_network_are_refused(assets: Path) -> None:
    assert_refused(next((assets / "images" / "coco" / "val2017").glob("*.jpg")), "JPEG image")
    folder = assets / "weights" / "human-pose-estimation-0001"
    assert_refused(folder / "human-pose-estimation-0001.xml", "exported model is no checkpoint")
    assert_refused(folder / "human-pose-estimation-0001.bin", "can't be read as a checkpoint")


def test_another_zip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("document.txt", "text")
    assert_refused(path, "can't be read as a checkpoint")


# Damage


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damaged_files_never_fail_in_another_way(
    data: st.DataObject, contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(sorted(contents)))
    content = bytearray(contents[name])
    # Most of a file is weights; the structure that damage matters to lies at both ends.
    places = st.one_of(
        st.integers(0, min(3000, len(content) - 1)),
        st.integers(max(0, len(content) - 6000), len(content) - 1),
        st.integers(0, len(content) - 1),
    )
    for place in data.draw(st.lists(places, min_size=1, max_size=8)):
        content[place] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(content)
    try:
        loaded = load(path)
    except CompressError:
        return
    assert all(value.isfinite().all() for value in loaded.module.state_dict().values())


@pytest.mark.parametrize("name", ["ours.pt", "ours.safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 0.999])
def test_a_file_that_was_cut_off_is_refused(
    name: str, share: float, contents: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(contents[name][: int(len(contents[name]) * share)])
    assert_refused(path, "damaged, cut off, or of another kind")


# Code


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"state_dict": {"weight": x}}, lambda x: {"format": x}])
def test_pickled_code_is_refused_and_not_run(wrap: Callable[[Any], Any], legacy: bool, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = tmp_path / "model.pt"
    torch.save(wrap(Wicked(mark)), path, _use_new_zipfile_serialization=not legacy)
    assert_refused(path, r"contains pickled code.*mkdir.*torch\.save\(model\.state_dict")
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists(), "the file would have run code"


def test_a_bare_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Wicked(tmp_path / "executed")))
    assert_refused(path, r"plain pickle, which could run code.*torch\.save\(model\.state_dict")
    path.write_bytes(pickle.dumps(Wicked(tmp_path / "executed"), protocol=2))
    assert_refused(path, r"contains pickled code.*mkdir")
    assert not (tmp_path / "executed").exists()


def test_a_whole_pickled_module_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nn.Linear(2, 2), path)
    assert_refused(path, r"contains pickled code.*Linear.*torch\.save\(model\.state_dict")


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused_with_a_hint(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    assert_refused(path, r"TorchScript archive.*torch\.save\(model\.state_dict")


def test_a_file_cannot_have_its_network_imported(custom: str, tmp_path: Path) -> None:
    name = f"{custom}:small"
    path = tmp_path / "model.pt"
    save(replace(wrap(nn.Linear(2, 2), (1, 2)), source=NetworkSpec(name)), path)
    assert_refused(path, r"no file is trusted to import code.*--network package\.module:factory")
    assert_refused(path, "holds another network than default", network="default")
    assert not (tmp_path / "imported").exists()
    assert load(path, name).module.weight.shape == (2, 2)
    assert (tmp_path / "imported").exists()


# Records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, r"a newer version.*found: 3.*reads versions 1 to 2; install a newer one"),
        ({"version": 0}, r"an unknown version.*reads versions 1 to 2$"),
        ({"version": "1"}, r"an unknown version"),
        ({"version": torch.ones(3)}, r"an unknown version"),
        ({"version": 10**300}, r"an unknown version"),
        ({10**300: 1}, r"unknown keys: int"),
        ({"surprise": 1}, r"missing or unknown keys: surprise"),
        ({"network": {"name": "openpose", "options": {}}}, r"unknown network"),
        ({"network": {"name": "default", "options": {"colour": 1}}}, r"unknown option.*colour"),
        ({"network": {"name": "default", "options": {"refinements": 10**12}}}, r"from 0 to 16"),
        ({"network": {"name": "default", "options": {"width": 16}}}, r"do not fit the network default"),
        ({"network": {"name": 3, "options": {}}}, r"record can't be read"),
        ({"network": {"name": "default", "options": 7}}, r"record can't be read"),
        ({"network": "default"}, r"record can't be read"),
        ({"network": {"name": "default"}}, r"record can't be read"),
        ({"network": {"name": "default", "options": {"width": torch.ones(1)}}}, r"record can't be read"),
        ({"edits": [{"kind": "explode"}]}, r"unknown kind of edit"),
        ({"edits": {"kind": "factorize"}}, r"edit must be a mapping"),
        ({"edits": 3}, r"record can't be read"),
        (
            {"edits": [{"kind": "factorize", "layers": {"absent": {"method": "svd", "ranks": [1]}}}]},
            r"absent",
        ),
        (
            {"edits": [{"kind": "factorize", "layers": {"cpm.conv.0": {"method": "tucker2", "ranks": [10**12, 1]}}}]},
            r"cpm\.conv\.0",
        ),
        ({"pose": {"colour": "rgb"}}, r"unknown key in a pose specification"),
        ({"pose": {"height": "tall"}}, r"height of a pose specification must be a whole number"),
        ({"pose": {"skeleton": "octopus"}}, r"unknown skeleton"),
        ({"pose": 3}, r"record can't be read"),
        ({"inputs": []}, r"record can't be read"),
        ({"inputs": [{"shape": [1, 3, 10**300, 8], "dtype": "float32"}]}, r"input"),
        ({"outputs": [[]]}, r"an output in each"),
        ({"plan": {"format": "compress-plan"}}, r"plan"),
        ({"history": [1, 2]}, r"record can't be read"),
        ({"history": [{"steps": {1, 2}}]}, r"record can't be read"),
        ({"state_dict": {}}, r"state dict is empty"),
        ({"state_dict": {"weight": 3}}, r"more than tensors: weight"),
    ],
)
def test_records_are_trusted_in_nothing(
    change: dict[str, Any], message: str, record: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(record, path)
    load(path)
    torch.save({**record, **change}, path)
    assert_refused(path, message)


@pytest.mark.parametrize(
    "key", ["version", "network", "inputs", "outputs", "edits", "pose", "history", "plan", "state_dict"]
)
def test_records_with_a_part_missing_are_refused(key: str, record: dict[str, Any], tmp_path: Path) -> None:
    record.pop(key)
    torch.save(record, tmp_path / "model.pt")
    assert_refused(tmp_path / "model.pt", key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "can't be read"),
        ("3", "can't be read"),
        ("{", "can't be read"),
        ("\x00", "can't be read"),
        ("{}", "no known network"),
        ('{"format": "compress-checkpoint"}', "unknown version"),
    ],
)
def test_odd_metadata_of_a_safetensors_file_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"weight": torch.ones(1)}, path, metadata={FORMAT: text})
    assert_refused(path, message)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_with_nan_are_refused(suffix: str, small: Model, tmp_path: Path) -> None:
    module = duplicate(small.module)
    module.get_parameter("cpm.conv.0.bias").data.fill_(float("nan"))
    save(replace(small, module=module), tmp_path / f"model{suffix}")
    assert_refused(tmp_path / f"model{suffix}", r"not finite.*cpm\.conv\.0\.bias")


# Writing


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_existing_file_is_refused_without_force_and_unchanged(suffix: str, small: Model, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"precious")
    with pytest.raises(FileError, match="--force"):
        save(small, path)
    assert path.read_bytes() == b"precious"
    save(small, path, force=True)
    assert load(path).source == small.source
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("before", [None, b"precious"])
def test_a_failing_write_leaves_nothing_behind(
    suffix: str, before: bytes | None, small: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / f"model{suffix}"
    if before is not None:
        path.write_bytes(before)

    def fail(content: Any, target: Any, **options: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fail)
    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises(FileError, match="no space"):
        save(small, path, force=True)
    assert os.listdir(tmp_path) == ([] if before is None else [path.name])
    assert before is None or path.read_bytes() == before


def test_what_cannot_be_read_again_is_not_written(small: Model, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="plain values"):
        save(replace(small, history=({"weights": torch.ones(1)},)), tmp_path / "model.pt")
    with pytest.raises(FileError, match=r"\.pt or a \.safetensors"):
        save(small, tmp_path / "model.onnx")
    assert os.listdir(tmp_path) == []
