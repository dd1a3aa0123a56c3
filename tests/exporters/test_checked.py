from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import nn

from compress.checkpoint.load import load
from compress.errors import FileError, ParityError, UsageError
from compress.exporters import checked
from compress.exporters.checked import CheckOptions, ExportFile, export_checked
from compress.model import Model
from compress.network.inputs import image_input
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.progress import Silent
from compress.runtime.opening import open_runner, target_for
from compress.runtime.openvino_runner import shared_core
from compress.surgery.edits import FactorizeEdit, apply_edits
from compress.zoo.registry import build, get_entry

Image = NDArray[np.uint8]
ONE_THREAD = CheckOptions(threads=1)


def model_of(module: nn.Module, pose: PoseSpec) -> Model:
    return Model(module.eval(), NetworkSpec("stub"), image_input((64, 80)), pose=pose)


@pytest.fixture(scope="session")
def images() -> list[Image]:
    return [np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)]


@pytest.fixture
def reuse(monkeypatch: pytest.MonkeyPatch, stub_onnx: Path) -> Callable[[Callable[[onnx.ModelProto], None]], None]:
    """Let exports of the stub copy the file that is there already, after a change."""

    def use(change: Callable[[onnx.ModelProto], None]) -> None:
        def export(model: Model, path: Path, **options: object) -> Path:
            graph = onnx.load(stub_onnx)
            change(graph)
            onnx.save(graph, path)
            return path

        monkeypatch.setattr(checked, "export_onnx", export)

    return use


def nothing(model: onnx.ModelProto) -> None:
    """Leave the file as it is."""


def one_weight_wrong(factor: float) -> Callable[[onnx.ModelProto], None]:
    """Change the largest weight of the first convolution."""

    def change(model: onnx.ModelProto) -> None:
        first = next(x for x in model.graph.initializer if len(x.dims) == 4)
        values = numpy_helper.to_array(first).copy()
        values.flat[np.abs(values).argmax()] *= factor
        first.CopyFrom(numpy_helper.from_array(values, first.name))

    return change


def all_targets(folder: Path) -> tuple[ExportFile, ...]:
    return ExportFile(folder / "m.onnx"), ExportFile(folder / "m.xml"), ExportFile(folder / "m-fp16.xml", "fp16")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_all_files_agree_with_torch_and_are_there(
    stub: nn.Module,
    pose: PoseSpec,
    images: list[Image],
    tmp_path: Path,
    reuse: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reuse(nothing)
    steps: list[str] = []
    progress = Silent()
    monkeypatch.setattr(progress, "say", steps.append, raising=False)
    done = export_checked(model_of(stub, pose), all_targets(tmp_path), images, ONE_THREAD, progress=progress)
    assert names(tmp_path) == ["m-fp16.bin", "m-fp16.xml", "m.bin", "m.onnx", "m.xml"]
    assert [x.parity.exported for x in done] == ["onnxruntime", "openvino", "openvino"]
    assert [x.parity.precision for x in done] == ["fp32", "fp32", "fp16"]
    assert all(x.parity.ok for x in done)
    assert len(done[0].parity.sizes) == 2
    assert done[2].parity.max_error > done[1].parity.max_error, "weights in half precision must show"
    assert len(steps) == 4
    for exported in done:
        runner = open_runner(exported.target.path, threads=1)
        assert runner.pose == pose
        runner.close()


@pytest.mark.parametrize("factor", [1.01, -1.0, float("nan")])
def test_a_wrong_weight_is_refused_and_nothing_is_written(
    stub: nn.Module, pose: PoseSpec, images: list[Image], tmp_path: Path, reuse: Callable[..., None], factor: float
) -> None:
    reuse(one_weight_wrong(factor))
    with pytest.raises(ParityError, match="does not reproduce the network"):
        export_checked(model_of(stub, pose), all_targets(tmp_path), images, ONE_THREAD)
    assert names(tmp_path) == []


def test_one_wrong_file_keeps_all_others_back_and_old_ones_stay(
    stub: nn.Module,
    pose: PoseSpec,
    images: list[Image],
    tmp_path: Path,
    reuse: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reuse(nothing)
    original = checked.write_ir

    def write_wrong(onnx_path: Path, path: Path, *, precision: str) -> None:
        if precision == "fp16":
            model = onnx.load(onnx_path)
            one_weight_wrong(-3.0)(model)
            onnx_path = path.with_name("wrong.onnx")
            onnx.save(model, onnx_path)
        original(onnx_path, path, precision=precision)

    monkeypatch.setattr(checked, "write_ir", write_wrong)
    for name in ("m.onnx", "m.xml", "m.bin"):
        (tmp_path / name).write_text("old")
    with pytest.raises(ParityError, match="fp16"):
        export_checked(model_of(stub, pose), all_targets(tmp_path), images, ONE_THREAD, force=True)
    assert [(path.name, path.read_text()) for path in sorted(tmp_path.iterdir())] == [
        ("m.bin", "old"), ("m.onnx", "old"), ("m.xml", "old"),
    ]  # fmt: skip


def test_a_file_that_ignores_its_input_size_is_refused(
    stub: nn.Module, pose: PoseSpec, images: list[Image], tmp_path: Path, reuse: Callable[..., None]
) -> None:
    def resize_to_one_size(model: onnx.ModelProto) -> None:
        resize = next(node for node in model.graph.node if node.op_type == "Resize")
        model.graph.initializer.append(numpy_helper.from_array(np.array([2, 16, 8, 11], np.int64), "fixed"))
        resize.input[3] = "fixed"

    reuse(resize_to_one_size)
    with pytest.raises(ParityError, match="does not run as the network does"):
        export_checked(model_of(stub, pose), [ExportFile(tmp_path / "m.onnx")], images, ONE_THREAD)
    assert names(tmp_path) == []


@pytest.mark.parametrize("existing", ["m.onnx", "m.xml", "m.bin", "m-fp16.bin"])
def test_existing_files_are_refused_before_any_work(
    stub: nn.Module,
    pose: PoseSpec,
    images: list[Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    existing: str,
) -> None:
    monkeypatch.delattr(checked, "export_onnx")
    (tmp_path / existing).write_text("mine")
    with pytest.raises(FileError, match="exists"):
        export_checked(model_of(stub, pose), all_targets(tmp_path), images)
    assert names(tmp_path) == [existing]
    assert (tmp_path / existing).read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "precision"), [("m.onnx", "fp16"), ("m.pt", "fp32"), ("m.bin", "fp32"), ("m.xml", "int8"), ("m", "fp32")]
)
def test_targets_that_can_not_be_written_are_refused(name: str, precision: str) -> None:
    with pytest.raises(UsageError):
        ExportFile(Path(name), precision)


@pytest.mark.parametrize("targets", [(), (ExportFile(Path("m.xml")), ExportFile(Path("m.xml"), "fp16"))])
def test_nothing_to_do_and_names_used_twice_are_refused(
    stub: nn.Module, pose: PoseSpec, images: list[Image], targets: Sequence[ExportFile]
) -> None:
    with pytest.raises(UsageError):
        export_checked(model_of(stub, pose), targets, images)


def randomise(network: nn.Module) -> nn.Module:
    """Weights and statistics that are all the network's own and give maps that are neither 0 nor huge."""
    torch.manual_seed(5)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.8, 1.2)
            nn.init.normal_(layer.bias, 0, 0.1)
            layer.running_mean = 0.1 * torch.randn_like(layer.running_mean)
            layer.running_var = torch.rand_like(layer.running_var) + 0.5
    return network


def factorized(network: nn.Module) -> nn.Module:
    """Every dense 3x3 convolution but the first as Tucker-2, and the wide 1x1 convolutions as two."""
    layers: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, layer in list(network.named_modules())[3:]:
        if isinstance(layer, nn.Conv2d) and layer.groups == 1:
            inputs, outputs = layer.in_channels, layer.out_channels
            if layer.kernel_size == (3, 3) and inputs > 3:
                layers[name] = ("tucker2", (inputs // 2, outputs // 2))
            elif min(inputs, outputs) >= 64:
                layers[name] = ("svd", (min(inputs, outputs) // 4,))
    assert {method for method, _ in layers.values()} == {"tucker2", "svd"}
    return apply_edits(network, [FactorizeEdit(layers)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "whole"), [("default", True), ("lightweight-openpose", False)])
def test_networks_and_their_factorized_versions(name: str, whole: bool, images: list[Image], tmp_path: Path) -> None:
    network = build(NetworkSpec(name))
    network = randomise(network if whole else factorized(network))
    before = copy.deepcopy(network.state_dict())
    model = Model(network, NetworkSpec(name), image_input(get_entry(name).input_size), pose=get_entry(name).pose)
    done = export_checked(model, all_targets(tmp_path), images, CheckOptions(height=96, threads=1))
    for exported in done:
        assert exported.parity.ok
        assert exported.parity.map_range > 0.01
        assert exported.parity.sizes == ((96, 128), (64, 88))
    assert names(tmp_path) == ["m-fp16.bin", "m-fp16.xml", "m.bin", "m.onnx", "m.xml"]
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.skipif("BF16" not in str(shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
                    reason="this processor does not compute in bfloat16")  # fmt: skip
def test_computing_in_bfloat16_is_no_parity(
    stub: nn.Module,
    pose: PoseSpec,
    images: list[Image],
    tmp_path: Path,
    reuse: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reuse(nothing)
    original = checked.open_runner
    monkeypatch.setattr(
        checked, "open_runner", lambda path, **options: original(path, target_for(path, precision="bf16"), **options)
    )
    with pytest.raises(ParityError):
        export_checked(model_of(stub, pose), [ExportFile(tmp_path / "m.xml")], images, ONE_THREAD)
    assert names(tmp_path) == []


@pytest.mark.real
@pytest.mark.slow
def test_real_network_on_real_people(assets: Path, tmp_path: Path) -> None:
    weights = assets / "weights" / "human-pose-estimation-0001" / "human-pose-estimation-0001.pth"
    checkpoint = load(weights)
    paths = sorted((assets / "images" / "coco" / "val2017").glob("*.jpg"))[:2]
    photographs = [cv2.imread(str(path)) for path in paths]
    done = export_checked(checkpoint, all_targets(tmp_path), photographs, CheckOptions(height=184, threads=1))
    for exported in done:
        parity = exported.parity
        assert parity.ok
        assert parity.people[0] == parity.people[1] > 0
        assert parity.keypoints > 50
        assert parity.moved_px_max < 0.1
        # Its weights came from INT8 and fit into half precision as they are.
        assert parity.max_error < 2e-5
