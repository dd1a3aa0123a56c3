"""One network, three runtimes, one answer."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from compress.errors import CompressError, FileError, RuntimeAbsent, UsageError
from compress.pose.spec import PoseSpec
from compress.runtime.onnx_runner import OnnxRunner
from compress.runtime.openvino_runner import OpenVinoRunner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner

Maps = dict[str, NDArray[np.float64]]
Make = Callable[..., Path]
KINDS = ["torch", "onnxruntime", "openvino"]


@pytest.fixture
def runners(one_convolution: nn.Module, onnx_path: Path, xml_path: Path) -> dict[str, Runner]:
    return {
        "torch": TorchRunner(one_convolution, PoseSpec(), threads=1),
        "onnxruntime": OnnxRunner(onnx_path, threads=1),
        "openvino": OpenVinoRunner(xml_path, threads=1),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 3, 64, 40), (1, 3, 8, 8), (3, 3, 24, 96)])
def test_every_runtime_computes_the_final_maps_at_any_size(
    runners: dict[str, Runner], expected: Callable[..., Maps], kind: str, shape: tuple[int, ...]
) -> None:
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    before = images.copy()
    maps = runners[kind].run(images)
    assert list(maps) == ["heatmaps", "pafs"]
    for name, value in expected(images).items():
        assert maps[name].dtype == np.float32
        assert np.allclose(maps[name], value, atol=1e-4)
    assert np.array_equal(images, before)


def test_many_threads_may_use_an_openvino_runner_at_once(xml_path: Path, expected: Callable[..., Maps]) -> None:
    images = np.random.default_rng(3).normal(size=(24, 1, 3, 64, 96)).astype(np.float32)
    for streams in (1, 2):
        runner = OpenVinoRunner(xml_path, threads=2, streams=streams)
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(runner.run, images))
        for image, maps in zip(images, found, strict=True):
            for name, value in expected(image).items():
                assert np.allclose(maps[name], value, atol=1e-4)
        runner.close()


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_the_callers_own(runners: dict[str, Runner], kind: str) -> None:
    rng = np.random.default_rng(2)
    first, second = rng.random((2, 1, 3, 32, 48), dtype=np.float32)
    kept = runners[kind].run(first)
    copies = {name: value.copy() for name, value in kept.items()}
    changed = runners[kind].run(second)
    for name, value in kept.items():
        assert np.array_equal(value, copies[name])
        assert not np.array_equal(value, changed[name])
        value += 1  # writable
    assert all(np.array_equal(runners[kind].run(first)[name], copies[name]) for name in copies)


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_of_the_input_in_memory_will_do(
    runners: dict[str, Runner], expected: Callable[..., Maps], kind: str
) -> None:
    pixels = np.random.default_rng(3).random((1, 32, 48, 3), dtype=np.float32)
    for images in (pixels.transpose(0, 3, 1, 2), np.flip(pixels, 3).transpose(0, 3, 1, 2)):
        assert not images.flags.c_contiguous
        images.flags.writeable = False
        found = runners[kind].run(images)
        assert all(np.allclose(found[name], value, atol=1e-4) for name, value in expected(images).items())


@pytest.mark.parametrize("threads", [None, 2])
def test_threads_are_recorded(one_convolution: nn.Module, onnx_path: Path, xml_path: Path, threads: int | None) -> None:
    runners: list[Runner] = [
        TorchRunner(one_convolution, PoseSpec(), threads=threads),
        OnnxRunner(onnx_path, threads=threads),
        OpenVinoRunner(xml_path, threads=threads),
    ]
    for runner in runners:
        assert isinstance(runner.threads, int)
        assert runner.threads >= 1
        # OpenVINO keeps to the cores that there are.
        assert threads is None or runner.name == "openvino" or runner.threads == threads


def test_onnxruntime_has_one_precision(onnx_path: Path) -> None:
    for precision in ("bf16", "fp16"):
        with pytest.raises(RuntimeAbsent, match=f"onnxruntime has no {precision}"):
            OnnxRunner(onnx_path, precision=precision)


def test_a_file_of_one_size_refuses_others_on_onnxruntime(tmp_path: Path, make_onnx: Make) -> None:
    runner = OnnxRunner(make_onnx(tmp_path / "fixed.onnx", shape=(1, 3, 32, 48)))
    assert runner.run(np.zeros((1, 3, 32, 48), np.float32))["pafs"].shape == (1, 38, 4, 6)
    with pytest.raises(UsageError, match=r"one shape only.*\[1, 3, 32, 48\]"):
        runner.run(np.zeros((1, 3, 32, 40), np.float32))


def test_a_file_of_one_size_takes_any_on_openvino(tmp_path: Path, make_ir: Make, expected: Callable[..., Maps]) -> None:
    runner = OpenVinoRunner(make_ir(tmp_path / "fixed.xml", shape=(1, 3, 32, 48)))
    for shape in ((1, 3, 32, 48), (2, 3, 64, 40)):
        images = np.random.default_rng(4).random(shape, dtype=np.float32)
        found = runner.run(images)
        assert all(np.allclose(found[name], value, atol=1e-4) for name, value in expected(images).items())


def test_a_size_built_into_an_onnx_graph_is_told(tmp_path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    nodes = [
        helper.make_node("MaxPool", ["images"], ["small"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Reshape", ["small", "shape"], ["grid"]),
        helper.make_node("Tile", ["grid", "seven"], ["heatmaps"]),
        helper.make_node("Tile", ["grid", "thirteen"], ["pafs"]),
    ]
    constants = {"shape": [1, 3, 4, 6], "seven": [1, 7, 1, 1], "thirteen": [1, 13, 1, 1]}
    free = ["n", 3, "h", "w"]
    graph = helper.make_graph(
        nodes,
        "built-in-size",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, free)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("heatmaps", "pafs")],
        [helper.make_tensor(name, TensorProto.INT64, [4], values) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, {"compress.pose": json.dumps(PoseSpec().to_dict())})
    onnx.save(model, str(tmp_path / "model.onnx"))
    runner = OnnxRunner(tmp_path / "model.onnx")
    assert runner.run(np.ones((1, 3, 32, 48), np.float32))["pafs"].shape == (1, 39, 4, 6)
    with pytest.raises(CompressError, match=r"onnxruntime can't run the model on this input.*\(1, 3, 32, 40\)"):
        runner.run(np.ones((1, 3, 32, 40), np.float32))


def test_openvino_says_so_where_a_size_is_built_in(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    images = ops.parameter([1, 3, 32, 48], np.float32, name="images")
    small = ops.max_pool(images, [8, 8], [1, 1], [0, 0], [0, 0], [8, 8]).output(0)
    sums = ops.reshape(small, ops.constant([1, 3, 4 * 6]), False)  # the size that no other input has
    grid = ops.reshape(sums, ops.constant([1, 3, 4, 6]), False)
    maps = [ops.tile(grid, ops.constant([1, times, 1, 1])) for times in (19, 38)]
    narrow = [
        ops.slice(m, ops.constant([0]), ops.constant([c]), ops.constant([1]), ops.constant([1]))
        for m, c in zip(maps, (19, 38), strict=True)
    ]
    for node, name in zip(narrow, ("heatmaps", "pafs"), strict=True):
        node.output(0).get_tensor().set_names({name})
    model = openvino.Model(narrow, [images], "built-in-size")
    model.set_rt_info(json.dumps(PoseSpec().to_dict()), ["compress", "pose"])
    path = tmp_path / "built_in.xml"
    openvino.save_model(model, path, compress_to_fp16=False)
    runner = OpenVinoRunner(path)
    assert runner.run(np.ones((1, 3, 32, 48), np.float32))["pafs"].shape == (1, 38, 4, 6)
    with pytest.raises(UsageError, match=r"one shape only.*\(1, 3, 32, 48\)"):
        runner.run(np.zeros((1, 3, 32, 40), np.float32))


def test_openvino_computes_in_float32_unless_told_otherwise(xml_path: Path, expected: Callable[..., Maps]) -> None:
    images = np.random.default_rng(5).normal(size=(1, 3, 64, 64)).astype(np.float32)
    wanted = expected(images)["pafs"]
    exact = np.abs(OpenVinoRunner(xml_path).run(images)["pafs"] - wanted).max()
    assert exact < 2e-5
    try:
        rounded = OpenVinoRunner(xml_path, precision="bf16")
    except RuntimeAbsent as error:
        assert "bf16" in str(error)  # noqa: PT017
        return
    assert rounded.precision == "bf16"
    error = np.abs(rounded.run(images)["pafs"] - wanted).max()
    assert 1e-3 < error < 0.2


def test_openvino_needs_both_files_whole(tmp_path: Path, make_ir: Make) -> None:
    path = make_ir(tmp_path / "model.xml")
    graph, weights = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    path.with_suffix(".bin").unlink()
    with pytest.raises(FileError, match=r"weights does not exist.*model\.bin"):
        OpenVinoRunner(path)
    for content in (b"", weights[: len(weights) // 2]):
        path.with_suffix(".bin").write_bytes(content)
        with pytest.raises(FileError, match=r"model\.(bin|xml)"):
            OpenVinoRunner(path)
    path.with_suffix(".bin").write_bytes(weights)
    path.write_bytes(graph[: len(graph) // 2])
    with pytest.raises(FileError, match=r"can't be read as an OpenVINO model.*model\.xml.*belong together"):
        OpenVinoRunner(path)


def test_a_truncated_onnx_file_is_refused(tmp_path: Path, make_onnx: Make) -> None:
    path = make_onnx(tmp_path / "model.onnx")
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(FileError, match=r"model\.onnx"):
            OnnxRunner(path)


def test_a_broken_specification_in_a_file_is_told(tmp_path: Path, make_onnx: Make, make_ir: Make) -> None:
    with pytest.raises(FileError, match=r"pose specification.*bad\.onnx.*Export the file again"):
        OnnxRunner(make_onnx(tmp_path / "bad.onnx", metadata={"compress.pose": "{"}))
    with pytest.raises(FileError, match=r"pose specification.*bad\.xml.*Export the file again"):
        OpenVinoRunner(make_ir(tmp_path / "bad.xml", pose="{"))
