from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from compress.errors import FileError, NetworkError, UsageError
from compress.exporters.peaks_graph import PeakOptions
from compress.exporters.to_onnx import export_onnx, read_metadata
from compress.model import Model
from compress.network.inputs import InputSpec, image_input
from compress.network.outputs import probe_outputs
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.runtime.opening import open_runner


def model_of(module: nn.Module, pose: PoseSpec | None) -> Model:
    return Model(module, NetworkSpec("small"), image_input((128, 160)), pose=pose)


class Small(nn.Module):
    """Quick to export; ``last`` may do what can't be exported."""

    def __init__(self, channels: int = 19) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, 8, 1)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        maps = self.last(self.conv(x))
        return [{"heatmaps": maps, "pafs": 2 * maps}]

    def last(self, maps: Tensor) -> Tensor:
        return maps


class OneSize(Small):
    def last(self, maps: Tensor) -> Tensor:
        return maps.reshape(len(maps), 19, 320).reshape(len(maps), 19, 16, 20)


class ByValue(Small):
    def last(self, maps: Tensor) -> Tensor:
        return maps if maps.sum() > 0 else -maps


class NoFields(Small):
    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        return [{"heatmaps": self.conv(x)}]


def run(path: Path, images: Tensor) -> dict[str, Tensor]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(None, {"images": images.numpy()})), strict=True))


def maps_of(module: nn.Module, images: Tensor) -> Mapping[str, Tensor]:
    with torch.no_grad():
        return copy.deepcopy(module).eval()(images)[-1]


@pytest.mark.parametrize("size", [(1, 16, 24), (3, 128, 160), (2, 200, 88), (1, 73, 41)])
def test_one_file_for_any_batch_and_size(stub: nn.Module, stub_onnx: Path, size: tuple[int, int, int]) -> None:
    images = torch.rand(size[0], 3, *size[1:]) - 0.5
    wanted, found = maps_of(stub, images), run(stub_onnx, images)
    assert list(found) == ["heatmaps", "pafs"]
    for name, maps in found.items():
        torch.testing.assert_close(maps, wanted[name], rtol=1e-5, atol=1e-5)


def test_axes_have_names_and_normalisation_is_folded(stub_onnx: Path) -> None:
    graph = onnx.load(stub_onnx).graph
    axes = [axis.dim_param or axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim]
    assert axes == ["batch", 3, "height", "width"]
    assert "BatchNormalization" not in {node.op_type for node in graph.node}


def test_one_valid_file_and_no_other(stub_onnx: Path) -> None:
    onnx.checker.check_model(str(stub_onnx), full_check=True)
    assert [path.name for path in stub_onnx.parent.iterdir()] == ["stub.onnx"]
    assert onnx.load(stub_onnx).producer_name == "compress"


def test_metadata_round_trip(stub_onnx: Path, pose: PoseSpec) -> None:
    record = read_metadata(stub_onnx)
    assert PoseSpec.from_dict(json.loads(record["pose"])) == pose
    assert json.loads(record["network"]) == {"name": "stub", "options": {"width": 8}}
    assert json.loads(record["history"]) == [{"stage": "factorize", "ratio": "1/3", "seconds": 1.5}]
    props = {entry.key for entry in onnx.load(stub_onnx).metadata_props}
    assert props == {"compress.pose", "compress.network", "compress.history", "compress.version"}


def test_foreign_file_has_no_metadata_of_ours(tmp_path: Path, stub_onnx: Path) -> None:
    model = onnx.load(stub_onnx)
    del model.metadata_props[:]
    model.metadata_props.add(key="author", value="somebody")
    onnx.save(model, tmp_path / "foreign.onnx")
    assert read_metadata(tmp_path / "foreign.onnx") == {}


def test_file_tells_nothing_of_this_machine(stub_onnx: Path) -> None:
    content = stub_onnx.read_bytes()
    for trace in (str(Path(__file__).parent), str(Path(torch.__file__).parent), "conftest.py", "stack_trace"):
        assert trace.encode() not in content


def test_outputs_follow_the_pose_specification(tmp_path: Path) -> None:
    pose = PoseSpec(outputs=("pafs", "heatmaps"))
    module = Small()
    path = export_onnx(model_of(module, pose), tmp_path / "m.onnx")
    found = run(path, images := torch.rand(1, 3, 32, 32))
    assert list(found) == ["pafs", "heatmaps"]
    torch.testing.assert_close(found["pafs"], maps_of(module, images)["pafs"])


def test_module_stays_as_it_was_and_the_file_is_the_same_again(
    tmp_path: Path, stub: nn.Module, stub_onnx: Path
) -> None:
    module = stub.double().train()
    next(module.parameters()).requires_grad_(False)
    before = copy.deepcopy(module)
    path = export_onnx(model_of(module, PoseSpec()), tmp_path / "m.onnx")
    assert all(m.training for m in module.modules())
    for (name, old), new in zip(before.named_parameters(), module.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert (old.dtype, old.requires_grad, new.grad) == (new.dtype, new.requires_grad, None)
    for old, new in zip(before.buffers(), module.buffers(), strict=True):
        assert torch.equal(old, new)
    # Weights that came from float32 go back to the same float32, so the graph is that of the other file.
    assert onnx.load(path).graph == onnx.load(stub_onnx).graph


def test_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        export_onnx(model_of(Small(), PoseSpec()), tmp_path / "m.onnx")
    written = capfd.readouterr()
    # torch hands empty debug records of its own to every handler, whatever the level.
    loud = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert (written.out, written.err, caught, loud) == ("", "", [], [])
    logging.getLogger("after").warning("heard again")
    assert caplog.records[-1].message == "heard again"


@pytest.mark.parametrize(
    ("module", "message"), [(OneSize(), "every batch"), (ByValue(), "every batch"), (NoFields(), "has no pafs")]
)
def test_what_can_not_be_exported_is_refused_and_leaves_nothing(
    tmp_path: Path, module: nn.Module, message: str
) -> None:
    with pytest.raises(NetworkError, match=message):
        export_onnx(model_of(module, PoseSpec()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_existing_file_is_kept_unless_forced(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("mine")
    with pytest.raises(FileError, match="exists"):
        export_onnx(model_of(Small(), PoseSpec()), path)
    assert path.read_text() == "mine"
    export_onnx(model_of(Small(), PoseSpec()), path, force=True)
    assert np.isfinite(run(path, torch.rand(1, 3, 16, 16))["pafs"]).all()


def test_too_large_a_network_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.exporters.to_onnx._MOST_BYTES", 1000)
    with pytest.raises(NetworkError, match="too large"):
        export_onnx(model_of(Small(), PoseSpec()), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


# Networks without keypoints


class Told:
    """Keeps the messages that it receives."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


class Mixed(nn.Module):
    """One channel in; maps and a vector out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        maps = self.conv(x)
        return maps, {"mean": maps.mean((2, 3)), "best": maps.flatten(1).argmax(1)}


class Flat(nn.Module):
    """Takes one size only."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * 16 * 24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1)).reshape(-1, 5, 2)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(6, 4)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        return {"sum": self.conv(image) + self.linear(vector)[:, :, None, None]}


@pytest.mark.parametrize(
    ("module", "shapes", "others", "fixed"),
    [
        (Mixed(), [(1, 1, 32, 48)], [(3, 1, 21, 17)], ()),
        (Flat(), [(1, 3, 16, 24)], [(3, 3, 16, 24)], ("height", "width")),
        (TwoInputs(), [(1, 3, 16, 24), (1, 6)], [(3, 3, 16, 24), (3, 6)], ("height", "width")),
    ],
)
def test_networks_without_keypoints_give_all_their_outputs(
    tmp_path: Path,
    module: nn.Module,
    shapes: list[tuple[int, ...]],
    others: list[tuple[int, ...]],
    fixed: tuple[str, ...],
) -> None:
    inputs = tuple(InputSpec(shape) for shape in shapes)
    model = Model(module.eval(), NetworkSpec("a.b:C"), inputs, probe_outputs(module, inputs))
    told = Told()
    path = export_onnx(model, tmp_path / "m.onnx", progress=told)  # type: ignore[arg-type]
    assert [all(word in message for word in fixed) for message in told.messages] == [True] * bool(fixed)
    random = np.random.default_rng(0)
    given = tuple(random.standard_normal(shape, dtype=np.float32) for shape in others)
    found, wanted = (open_runner(source).run(given) for source in (path, model))
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5)
    assert json.loads(read_metadata(path)["outputs"]) == list(wanted)


def test_a_network_that_works_by_value_is_refused_without_keypoints_too(tmp_path: Path) -> None:
    with pytest.raises(NetworkError, match=r"can't be exported to ONNX.*Replace operations"):
        export_onnx(model_of(ByValue(), None), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_peaks_of_a_network_without_heatmaps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="only in heatmaps"):
        export_onnx(model_of(Small(), None), tmp_path / "m.onnx", peaks=PeakOptions())
