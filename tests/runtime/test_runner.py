"""Choosing a runtime by the file, and what is said when that can't be."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.errors import (
    CheckpointError,
    DataError,
    FileError,
    NetworkError,
    RuntimeAbsent,
    UsageError,
)
from compress.pose.spec import PoseSpec
from compress.runtime.file_interface import Port, match_outputs, read_pose
from compress.runtime.opening import open_runner, target_for
from compress.runtime.runner import check_inputs
from compress.target import Target
from compress.zoo.registry import pose_spec

Make = Callable[..., Path]


@pytest.fixture(scope="session")
def checkpoint_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.pt"
    save(create("default", trained=False), path)
    return path


def test_the_suffix_chooses_the_runtime(onnx_path: Path, xml_path: Path, checkpoint_path: Path) -> None:
    images = np.random.default_rng(0).random((1, 3, 64, 40), dtype=np.float32)
    for path, name in ((checkpoint_path, "torch"), (onnx_path, "onnxruntime"), (xml_path, "openvino")):
        for runtime in (None, name):
            runner = open_runner(path, target_for(path, runtime=runtime), threads=1)
            assert (runner.name, runner.device, runner.precision, runner.threads) == (name, "cpu", "fp32", 1)
            maps = runner.run(images)
            assert {key: value.shape for key, value in maps.items()} == {
                "heatmaps": (1, 19, 8, 5),
                "pafs": (1, 38, 8, 5),
            }
            runner.close()


def test_a_file_of_another_runtime_is_refused_with_a_hint(onnx_path: Path, xml_path: Path, tmp_path: Path) -> None:
    for path, wrong in ((onnx_path, "openvino"), (onnx_path, "torch"), (xml_path, "onnxruntime")):
        with pytest.raises(UsageError, match=rf"{wrong} does not run a file that is for .*{path.name}.*Leave out"):
            open_runner(path, Target(wrong, "cpu"))
    with pytest.raises(UsageError, match=r"openvino does not run .* torch.*compress export .*model\.pt"):
        open_runner(tmp_path / "model.pt", Target("openvino", "cpu"))
    (tmp_path / "ir.xml").write_text("<net/>")
    with pytest.raises(UsageError, match=r"weights of an OpenVINO model.*Name ir\.xml"):
        open_runner(tmp_path / "ir.bin")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 0}, "at least one thread"),
        ({"threads": -3}, "at least one thread"),
        ({"streams": 0}, "at least one stream"),
        ({"streams": 2, "threads": 1}, "a thread for each"),
        ({"streams": 2}, "onnxruntime takes one image after the other.*OpenVINO"),
    ],
)
def test_options_that_make_no_sense_are_refused(onnx_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        open_runner(onnx_path, **options)


def test_unknown_runtimes_and_precisions_are_refused_by_name(onnx_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown runtime.*tensorrt.*torch, onnxruntime, openvino"):
        target_for(onnx_path, runtime="tensorrt")
    with pytest.raises(UsageError, match=r"unknown precision.*int4.*fp32, bf16, fp16"):
        target_for(onnx_path, precision="int4")
    assert target_for(onnx_path, precision="bf16") == Target("onnxruntime", "cpu", "bf16")


@pytest.mark.parametrize("device", ["cuda", "quantum"])
def test_a_device_that_is_not_there_is_named(
    onnx_path: Path, xml_path: Path, checkpoint_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime
    import torch

    # Also where a GPU is present the machine shall look as if there were none.
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: (_ for _ in ()).throw(RuntimeError("No GPU")))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    for path in (onnx_path, xml_path, checkpoint_path):
        with pytest.raises(RuntimeAbsent, match=f"no device {device}"):
            open_runner(path, target_for(path, device=device))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".onnx", ".xml"])
@pytest.mark.parametrize("content", [None, b"", b"not a model at all", b"<html>not found</html>", b"\x08\x07\x12\x05"])
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, suffix: str, content: bytes | None) -> None:
    path = tmp_path / f"model{suffix}"
    if content is not None:
        path.write_bytes(content)
        path.with_suffix(".bin").write_bytes(b"weights")
    with pytest.raises((FileError, CheckpointError), match=rf"model{suffix}") as caught:
        open_runner(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "shape", [(3, 64, 64), (1, 1, 64, 64), (1, 4, 64, 64), (1, 64, 64, 3), (0, 3, 64, 64), (1, 3, 0, 64)]
)
def test_an_input_of_another_shape_is_refused_by_every_runtime(
    onnx_path: Path, xml_path: Path, checkpoint_path: Path, shape: tuple[int, ...]
) -> None:
    for path in (onnx_path, xml_path, checkpoint_path):
        runner = open_runner(path, threads=1)
        with pytest.raises(DataError, match=r"must be \(images, 3, height, width\)"):
            runner.run(np.zeros(shape, np.float32))
        assert runner.run(np.zeros((1, 3, 8, 8), np.float32))


def test_an_input_must_fit_the_stride_and_be_float32() -> None:
    check_inputs(np.zeros((2, 3, 16, 24), np.float32), PoseSpec())
    for size in ((16, 20), (12, 24)):
        with pytest.raises(DataError, match=rf"multiples of 8.*{size[0]}x{size[1]}"):
            check_inputs(np.zeros((1, 3, *size), np.float32), PoseSpec())
    with pytest.raises(DataError, match=r"float32.*float64"):
        check_inputs(np.zeros((1, 3, 16, 24)), PoseSpec())  # type: ignore[arg-type]


def ports(*outputs: tuple[set[str], int | None]) -> list[Port]:
    return [Port(frozenset(names), count) for names, count in outputs]


def test_outputs_are_matched_by_name_and_else_by_their_channels() -> None:
    pose, path = PoseSpec(), Path("model.onnx")
    two_stages = ports(({"a"}, 19), ({"b"}, 38), ({"c"}, 38), ({"d"}, 19))
    assert match_outputs(two_stages, pose, path) == (3, 2)
    named = ports(({"pafs", "1"}, None), ({"other"}, 19), ({"heatmaps"}, None))
    assert match_outputs(named, pose, path) == (2, 0)
    with pytest.raises(FileError, match=r"no output pafs, nor one with 38 channels.*a \(19\).*model\.onnx"):
        match_outputs(ports(({"a"}, 19), ({"b"}, 57)), pose, path)
    with pytest.raises(FileError, match="no output heatmaps"):
        match_outputs(ports(({"a"}, 18), ({"b"}, 38)), pose, path)
    assert match_outputs(ports(({"a"}, 18), ({"b"}, 38)), PoseSpec(background=False), path) == (0, 1)


@pytest.mark.parametrize(
    "text", ["", "{", "3", "null", json.dumps({"stride": 8, "surprise": 1}), json.dumps({"stride": "8"}), "[" * 100_000]
)
def test_a_pose_specification_that_can_not_be_read_is_a_clear_error(text: str) -> None:
    with pytest.raises(FileError, match=r"pose specification.*model\.onnx"):
        read_pose(text, Path("model.onnx"))


def test_a_pose_specification_survives_the_way_through_json() -> None:
    pose = PoseSpec(height=256, color="rgb", mean=(1.5, 2.0, 3.25), background=False)
    assert read_pose(json.dumps(pose.to_dict()), Path("model.onnx")) == pose


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_a_foreign_file_is_run_as_the_network_that_is_named(
    tmp_path: Path, make_onnx: Make, make_ir: Make, expected: Callable[..., dict[str, np.ndarray]], kind: str
) -> None:
    names = {"names": ("stage_1_heatmaps", "stage_1_pafs")}
    if kind == "onnx":
        path = make_onnx(tmp_path / "theirs.onnx", metadata={}, **names)
    else:
        path = make_ir(tmp_path / "theirs.xml", pose="", metadata={}, **names)
    bare = open_runner(path)
    assert bare.pose is None
    assert list(bare.run(np.zeros((1, 3, 8, 8), np.float32))) == ["stage_1_heatmaps", "stage_1_pafs"]
    with pytest.raises(NetworkError, match="unknown network"):
        open_runner(path, network="nothing")
    runner = open_runner(path, network="lightweight-openpose")
    assert runner.pose == pose_spec("lightweight-openpose")
    images = np.random.default_rng(0).random((1, 3, 32, 48), dtype=np.float32)
    for name, value in expected(images).items():
        assert np.allclose(runner.run(images)[name], value, atol=1e-4)


@pytest.mark.parametrize("kind", ["onnx", "xml"])
def test_a_model_without_the_maps_is_refused(tmp_path: Path, make_onnx: Make, make_ir: Make, kind: str) -> None:
    make = make_onnx if kind == "onnx" else make_ir
    path = make(tmp_path / f"model.{kind}", names=("logits", "boxes"), splits=(10, 4))
    with pytest.raises(FileError, match=r"no output heatmaps.*logits.*10"):
        open_runner(path)
    grey = make(tmp_path / f"grey.{kind}", shape=("batch", 1, "height", "width"))
    with pytest.raises(FileError, match=r"does not take one batch of images with 3 channel"):
        open_runner(grey)


AFTER_MODELS = """
import gc, os, signal, sys
from pathlib import Path
from compress.runtime.openvino_runner import OpenVinoRunner
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
first = OpenVinoRunner(Path(sys.argv[1]))
second = OpenVinoRunner(Path(sys.argv[1]))
first.close()
del first
gc.collect()
second.close()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGUSR1)
assert caught
"""


def test_signals_are_caught_after_models_are_closed_in_any_order(xml_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", AFTER_MODELS, str(xml_path)], check=False)
    assert done.returncode == 0
