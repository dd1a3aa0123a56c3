"""INT8: what is tried, what passes the gate, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.checkpoint.wrap import wrap
from compress.commands.base import check_options
from compress.commands.export import COMMAND, ExportResult
from compress.data.sample import iterate
from compress.data.synthetic import DrawnPeople
from compress.errors import CompressError, DataError
from compress.evaluation.score import evaluate_dataset
from compress.exporters import int8
from compress.exporters.export import ExportOptions, export
from compress.exporters.gate import Gate, Measured, own_people, people_inputs
from compress.exporters.int8 import Int8Options, Int8Record, choices, quantise_checked
from compress.exporters.ir_layers import first_layers, has_gates, head_layers, layers_of
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import write_ir
from compress.pose.metrics.ap_interval import average_precision, match_people
from compress.pose.spec import PoseSpec
from compress.progress import Silent
from compress.runtime.opening import open_runner
from compress.runtime.openvino_runner import shared_core
from compress.runtime.runner import Runner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default network as a checkpoint, ONNX and OpenVINO IR."""
    path = tmp_path_factory.mktemp("int8")
    checkpoint = create("default")
    save(checkpoint, path / "model.pt")
    write_ir(export_onnx(checkpoint, path / "model.onnx"), path / "model.xml")
    return path


def run(folder: Path, output: Path, **options: Any) -> ExportResult:
    values = {"model": folder / "model.pt", "int8": True, "output": output, "threads": 2, "calibrate": 4, **options}
    result = COMMAND.run(check_options(COMMAND.options, values, "test"), Silent())
    assert isinstance(result, ExportResult)
    json.dumps(result.record, allow_nan=False)
    return result


def test_a_network_in_int8_keeps_its_score_within_the_gate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(folder, tmp_path, data=("synthetic:900:6",), max_drop=0.15)
    record = result.record["int8"]
    path = Path(record["file"])
    assert path == tmp_path / "model-int8.xml"
    assert record["drop"] == pytest.approx(record["before"] - record["after"])
    assert record["drop"] <= 0.15
    assert record["trials"][-1]["score"] == record["after"]
    runner = open_runner(path, threads=2)
    assert runner.precision == "int8"
    found = evaluate_dataset(DrawnPeople(900, 6), runner).score.metrics["AP"]
    assert found == pytest.approx(record["after"], abs=1e-6)
    assert record["size_bytes"] < 0.5 * record["fp32_bytes"]
    written = json.loads(shared_core().read_model(path).get_rt_info(["compress", "int8"]).astype(str))
    assert written["trials"] == record["trials"]
    result.show()
    shown = capsys.readouterr().out
    assert "allowed: 0.15" in shown
    assert ("symmetric quantisation" in shown) == record["symmetric"]


class Scripted(Gate):
    """A gate that returns the given scores in their order."""

    metric, own, against, images, usual_drop = "AP", False, "a script", 3, 0.01

    def __init__(self, scores: Sequence[float]) -> None:
        self.before, self._scores = Measured(0.5), list(scores)

    def measure(self, runner: Runner, what: str) -> Measured:
        return Measured(self._scores.pop(0))


def in_order(model: Any, *_: Any, **__: Any) -> dict[str, float]:
    """Errors of layers that grow with their place."""
    return {op.get_friendly_name(): float(place) for place, op in enumerate(layers_of(model))}


@pytest.fixture
def scripted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Any], Int8Record]]:
    """Quantise by a script of scores: what was tried, and the record."""

    def go(scores: Sequence[float], path: Path, *, gates: bool) -> tuple[list[Any], Int8Record]:
        tried: list[Any] = []

        def quantise(model: Any, images: Any, *, keep: Any, outputs: Any, symmetric: bool) -> Any:
            tried.append((len(keep), symmetric))
            return model.clone()

        monkeypatch.setattr(int8, "open_gate", lambda *_: Scripted(scores))
        monkeypatch.setattr(int8, "quantise", quantise)
        monkeypatch.setattr(int8, "layer_errors", in_order)
        monkeypatch.setattr(int8, "has_gates", lambda _: gates)
        people = DrawnPeople(900, 2)
        record = quantise_checked(
            load(folder / "model.pt"), folder / "model.onnx", path, calibration=people,
            options=Int8Options(calibrate=2, height=64, threads=1), progress=Silent(),
        )  # fmt: skip
        return tried, record

    return go


@pytest.mark.parametrize("gates", [True, False])
def test_more_layers_stay_in_fp32_until_the_score_is_kept(
    scripted: Callable[..., Any], tmp_path: Path, gates: bool
) -> None:
    lost = [0.1, 0.3, 0.4, 0.45, 0.495][not gates :]
    tried, record = scripted(lost, tmp_path / "x.xml", gates=gates)
    assert len(tried) == len(record.trials) == len(lost)
    assert [symmetric for _, symmetric in tried] == [gates] + [False] * (len(lost) - 1)
    kept = [count for count, _ in tried]
    assert kept[: 1 + gates] == [0] * (1 + gates)
    assert kept[gates:] == sorted(set(kept))
    assert [trial.score for trial in record.trials] == lost
    assert (record.after, record.symmetric) == (0.495, False)
    assert (tmp_path / "x.xml").exists()


def test_symmetric_quantisation_is_kept_where_gates_gain_by_it_and_the_score_holds(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    tried, record = scripted([0.491], tmp_path / "x.xml", gates=True)
    assert (tried, record.symmetric) == ([(0, True)], True)
    tried, record = scripted([0.491], tmp_path / "x.xml", gates=False)
    assert (tried, record.symmetric) == ([(0, False)], False)


def test_a_network_that_loses_too_much_in_every_trial_is_refused_with_all_trials(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match=r"INT8 loses at least 0\.020 of AP 0\.500 .* --max-drop 0\.01") as refused:
        scripted([0.1, 0.2, 0.3, 0.4, 0.48, 0.47, 0.46, 0.45], tmp_path / "x.xml", gates=True)
    assert "nothing 0.300" in refused.value.cause
    assert "nothing, symmetric 0.400" in refused.value.cause
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_what_was_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "open_gate", lambda *_: Scripted([0.0] * 9))
    monkeypatch.setattr(int8, "quantise", lambda model, *_, **__: model.clone())
    monkeypatch.setattr(
        int8, "layer_errors", lambda model, *_, **__: {x.get_friendly_name(): 0 for x in layers_of(model)}
    )
    for name in ("model-int8.xml", "model-int8.bin"):
        (tmp_path / name).write_text("before")
    with pytest.raises(CompressError, match="INT8 loses"):
        run(folder, tmp_path, data=("synthetic:900:2",), height=64, check_images=1, force=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "model-int8.xml": "before", "model-int8.bin": "before",
    }  # fmt: skip


@pytest.mark.parametrize("network", ["default", "attention-cpm"])
def test_choices_go_from_nothing_over_the_ends_to_the_layers_that_are_most_sensitive(
    folder: Path, tmp_path: Path, network: str
) -> None:
    path = folder / "model.xml"
    if network == "attention-cpm":
        checkpoint, path = (
            create(network, {"stages": 1, "width": 16}, trained=False),
            tmp_path / "gated.xml",
        )
        write_ir(export_onnx(checkpoint, tmp_path / "gated.onnx"), path)
    model = shared_core().read_model(path)
    assert has_gates(model) == (network == "attention-cpm")
    outputs = PoseSpec().outputs
    images = [np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)]
    listed = choices(model, images, outputs, Silent())
    if network == "attention-cpm":
        first = next(listed)
        assert (first.operations, first.symmetric) == ((), True)
    nothing, heads, ends = (next(listed) for _ in range(3))
    assert (nothing.operations, nothing.symmetric) == ((), False)
    assert heads.operations == head_layers(model, outputs)
    assert set(ends.operations) == {*heads.operations, *first_layers(model, outputs)}
    assert not any(choice.symmetric for choice in (nothing, heads, ends))


def test_the_people_a_network_finds_are_what_it_finds(folder: Path) -> None:
    runner, dataset = open_runner(folder / "model.pt", threads=2), DrawnPeople(900, 4)
    found = evaluate_dataset(dataset, runner).detections
    ids = [sample.image_id for sample in iterate(dataset)]
    truth = own_people(found, ids)
    assert 0 < len(truth["annotations"]) <= len(found)
    assert average_precision(match_people(truth, found, ids)) == pytest.approx(1.0)


def test_calibration_takes_images_with_people_and_refuses_to_go_without(folder: Path) -> None:
    runner = open_runner(folder / "model.pt", threads=2)
    images = people_inputs(DrawnPeople(900, 4), runner, 96, 3)
    assert len(images) == 3
    assert all(np.shape(image)[:3] == (1, 3, 96) for image in images)

    class Nobody(DrawnPeople):
        def __getitem__(self, index: int) -> Any:
            return replace(super().__getitem__(index), people=())

    with pytest.raises(DataError, match="no person was detected in the calibration images"):
        people_inputs(Nobody(900, 2), runner, 96, 3)


class Small(nn.Module):
    """A vector and maps, without keypoints."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.more = nn.Conv2d(1, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.more(self.conv(x).relu())
        return {"maps": maps, "mean": maps.mean((2, 3))}


def test_a_network_without_keypoints_is_judged_by_its_outputs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = wrap(Small(), (1, 1, 32, 32), name="small net")
    images = [torch.randn(1, 1, 32, 32) for _ in range(4)]
    files = export(model, tmp_path, openvino=True, int8=images)
    assert [path.name for path in files.files] == [
        "small-net.xml", "small-net.bin", "small-net-int8.xml", "small-net-int8.bin",
    ]  # fmt: skip
    record = files.int8
    assert record is not None
    assert (record.metric, record.own, record.before, record.max_drop) == ("output fidelity", True, 1.0, 0.05)
    runner = open_runner(files.files[2], threads=1)
    wanted = [open_runner(model).run(image.numpy()) for image in images]
    found = [runner.run(image.numpy()) for image in images]
    errors = [
        sum(float(np.square(a[name] - b[name]).sum()) for a, b in zip(wanted, found, strict=True))
        / sum(float(np.square(a[name]).sum()) for a in wanted)
        for name in ("maps", "mean")
    ]
    assert 0 < np.mean(errors) == pytest.approx(record.drop, rel=0.01)
    assert runner.precision == "int8"
    with pytest.raises(CompressError, match=r"INT8 loses at least .* of output fidelity 1\.000.*--max-drop 1e-09"):
        export(model, tmp_path / "none", int8=images, options=ExportOptions(max_drop=1e-9))
    assert not (tmp_path / "none").exists() or list((tmp_path / "none").iterdir()) == []
