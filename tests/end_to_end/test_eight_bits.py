"""`compress export --int8`: what is tried, what passes the gate, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.commands.base import check_options
from compress.commands.export import STAGE
from compress.commands.show import show
from compress.data.sample import iterate
from compress.data.synthetic import DrawnPeople
from compress.errors import CompressError, DataError
from compress.evaluation.score import evaluate
from compress.exporters import int8
from compress.exporters.int8 import Held, choices, own_people, people_images, quantise_checked
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
    path = tmp_path_factory.mktemp("eight")
    checkpoint = create("default")
    save(checkpoint, path / "model.pt")
    write_ir(export_onnx(checkpoint.module, checkpoint.pose, path / "model.onnx"), path / "model.xml")
    return path


def run(folder: Path, output: Path, **options: Any) -> dict[str, Any]:
    values = {"model": folder / "model.pt", "int8": True, "output": output, "threads": 2, "calibrate": 4, **options}
    record = STAGE.run(check_options(STAGE.options, values, "test"), Silent()).record
    json.dumps(record, allow_nan=False)
    return record


def test_a_network_in_eight_bits_keeps_its_score_within_the_gate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = run(folder, tmp_path, data=("synthetic:900:6",), max_drop=0.15)["int8"]
    path = Path(record["file"])
    assert path == tmp_path / "model-int8.xml"
    assert record["drop"] == pytest.approx(record["before"] - record["after"])
    assert record["drop"] <= 0.15
    assert record["trials"][-1]["score"] == record["after"]
    runner = open_runner(path, threads=2)
    assert runner.precision == "int8"
    found = evaluate(DrawnPeople(900, 6), runner).score.metrics["AP"]
    assert found == pytest.approx(record["after"], abs=1e-6)
    assert record["size_bytes"] < 0.5 * record["fp32_bytes"]
    written = json.loads(shared_core().read_model(path).get_rt_info(["compress", "int8"]).astype(str))
    assert written["trials"] == record["trials"]
    show("export", {"files": [], "parity": [], "int8": record})
    shown = capsys.readouterr().out
    assert "allowed are 0.15" in shown
    assert ("steps symmetric" in shown) == record["symmetric"]


class Scripted:
    """A judge that gives the scores it was told, and notes what it was asked about."""

    metric, own, against, images = "AP", False, "a script", 3

    def __init__(self, scores: Sequence[float]) -> None:
        self.before, self._scores = Held(0.5, None), list(scores)

    def hold(self, runner: Runner, what: str) -> Held:
        return Held(self._scores.pop(0), None)

    def drop(self, held: Held) -> float:
        return self.before.score - held.score

    def interval(self, held: Held) -> None:
        return None


def in_order(model: Any, *_: Any, **__: Any) -> dict[str, float]:
    """Errors of layers that grow with their place."""
    return {op.get_friendly_name(): float(place) for place, op in enumerate(layers_of(model))}


@pytest.fixture
def scripted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[Any], Any]]:
    """Quantise by a script of scores: what was tried, and the record."""

    def go(scores: Sequence[float], path: Path, *, gates: bool) -> tuple[list[Any], Any]:
        tried: list[Any] = []

        def quantise(model: Any, images: Any, *, keep: Any, outputs: Any, symmetric: bool) -> Any:
            tried.append((len(keep), symmetric))
            return model.clone()

        monkeypatch.setattr(int8, "Judge", lambda *_: Scripted(scores))
        monkeypatch.setattr(int8, "quantise", quantise)
        monkeypatch.setattr(int8, "layer_errors", in_order)
        monkeypatch.setattr(int8, "has_gates", lambda _: gates)
        people = DrawnPeople(900, 2)
        record = quantise_checked(
            folder / "model.onnx", path, calibration=people, validation=people, count=2, height=64, max_drop=None,
            threads=1, progress=Silent(),
        )  # fmt: skip
        return tried, record

    return go


@pytest.mark.parametrize("gates", [True, False])
def test_more_stays_in_floating_point_until_the_score_is_kept(
    scripted: Callable[..., Any], tmp_path: Path, gates: bool
) -> None:
    lost = [0.1, 0.3, 0.4, 0.45, 0.495][not gates :]
    tried, record = scripted(lost, tmp_path / "x.xml", gates=gates)
    assert len(tried) == len(record["trials"]) == len(lost)
    assert [symmetric for _, symmetric in tried] == [gates] + [False] * (len(lost) - 1)
    kept = [count for count, _ in tried]
    assert kept[: 1 + gates] == [0] * (1 + gates)
    assert kept[gates:] == sorted(set(kept))
    assert [trial["score"] for trial in record["trials"]] == lost
    assert (record["after"], record["symmetric"]) == (0.495, False)
    assert (tmp_path / "x.xml").exists()


def test_symmetric_steps_are_taken_where_gates_gain_by_them_and_the_score_is_kept(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    tried, record = scripted([0.491], tmp_path / "x.xml", gates=True)
    assert (tried, record["symmetric"]) == ([(0, True)], True)
    tried, record = scripted([0.491], tmp_path / "x.xml", gates=False)
    assert (tried, record["symmetric"]) == ([(0, False)], False)


def test_what_loses_too_much_in_every_way_is_refused_with_all_that_was_tried(
    scripted: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(CompressError, match=r"INT8 loses 0\.020 of AP 0\.500 .* --max-drop 0\.01") as refused:
        scripted([0.1, 0.2, 0.3, 0.4, 0.48, 0.47, 0.46, 0.45], tmp_path / "x.xml", gates=True)
    assert "nothing 0.300" in refused.value.cause
    assert "steps symmetric 0.400" in refused.value.cause
    assert list(tmp_path.iterdir()) == []


def test_a_refused_export_leaves_what_was_there(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8, "Judge", lambda *_: Scripted([0.0] * 9))
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
def test_choices_go_from_nothing_over_the_ends_to_the_layers_that_hurt_most(
    folder: Path, tmp_path: Path, network: str
) -> None:
    path = folder / "model.xml"
    if network == "attention-cpm":
        checkpoint, path = (
            create(network, {"stages": 1, "width": 16}, trained=False),
            tmp_path / "gated.xml",
        )
        write_ir(export_onnx(checkpoint.module, checkpoint.pose, tmp_path / "gated.onnx"), path)
    model = shared_core().read_model(path)
    assert has_gates(model) == (network == "attention-cpm")
    outputs = PoseSpec().outputs
    images = [np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)]
    listed = choices(model, images, outputs, Silent())
    if network == "attention-cpm":
        first = next(listed)
        assert (first.keep, first.symmetric) == ((), True)
    nothing, heads, ends = (next(listed) for _ in range(3))
    assert (nothing.keep, nothing.symmetric) == ((), False)
    assert heads.keep == head_layers(model, outputs)
    assert set(ends.keep) == {*heads.keep, *first_layers(model, outputs)}
    assert not any(choice.symmetric for choice in (nothing, heads, ends))


def test_the_people_a_network_finds_are_what_it_finds(folder: Path) -> None:
    runner, dataset = open_runner(folder / "model.pt", threads=2), DrawnPeople(900, 4)
    found = evaluate(dataset, runner).detections
    ids = [sample.image_id for sample in iterate(dataset)]
    truth = own_people(found, ids)
    assert 0 < len(truth["annotations"]) <= len(found)
    assert average_precision(match_people(truth, found, ids)) == pytest.approx(1.0)


def test_calibration_takes_images_with_people_and_refuses_to_go_without(folder: Path) -> None:
    runner = open_runner(folder / "model.pt", threads=2)
    images = people_images(DrawnPeople(900, 4), runner, 96, 3)
    assert len(images) == 3
    assert all(image.shape[:3] == (1, 3, 96) and image.dtype == np.float32 for image in images)

    class Nobody(DrawnPeople):
        def __getitem__(self, index: int) -> Any:
            return replace(super().__getitem__(index), people=())

    with pytest.raises(DataError, match="no people to calibrate"):
        people_images(Nobody(900, 2), runner, 96, 3)
