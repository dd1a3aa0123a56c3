"""The log of a run: its lines, after interruptions and rollbacks too, and the curve."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from compress.errors import FileError, RuntimeAbsent
from compress.training.curve import curve_path, draw_curve, training_curve, write_curve
from compress.training.log import RunLog, log_path, read_log, steps_of
from compress.training.results import Event, StepLog


def entry(step: int, score: float | None = None, loss: float = 2.0) -> StepLog:
    return StepLog(step, 9, loss, {"labels.pafs": loss / 2, "labels.heatmaps": loss / 2}, 1e-3, 50.0, score, step == 2)


def rollback(failed: int, to: int) -> Event:
    return Event("rollback", to, "the loss is nan", {"failed": failed, "rate_factor": 0.5})


def test_a_line_is_a_step_or_an_event(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.log.jsonl"
    with RunLog(path) as log:
        log.event(Event("score", 0, "at the start", {"score": float("nan")}))
        log.step(entry(1))
        log.step(entry(2, score=0.25))
        # Lines are readable while the run continues.
        assert len(path.read_text().splitlines()) == 3
    start, first, second = read_log(path)
    assert start == {"event": "score", "step": 0, "text": "at the start", "score": None}
    assert first == {
        "step": 1, "loss": 2.0, "parts": {"labels.pafs": 1.0, "labels.heatmaps": 1.0}, "learning_rate": 1e-3,
        "images_per_second": 50.0,
    }  # fmt: skip
    assert (second["score"], second["best"]) == (0.25, True)
    with RunLog(path):
        assert read_log(path) == []


def test_a_resumed_log_drops_the_lines_after_the_state(tmp_path: Path) -> None:
    path = tmp_path / "x.log.jsonl"
    with RunLog(path) as log:
        for step in (1, 2, 3):
            log.step(entry(step))
        log.event(rollback(4, 2))
        for step in (3, 4, 5):
            log.step(entry(step, loss=1.0))
    with path.open("a") as file:
        file.write('{"step": 6, "loss": 0.')  # a kill
    with RunLog(path, resume=True) as log:
        log.event(Event("resume", 4, "going on"))
        log.step(entry(5, loss=0.5))
    lines = read_log(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 2, 3, 4, 4, 5]
    assert [(line["step"], line["loss"]) for line in steps_of(lines)] == [(1, 2), (2, 2), (3, 1), (4, 1), (5, 0.5)]


def test_a_file_that_is_not_a_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.log.jsonl"
    with pytest.raises(FileError, match="can't be read"):
        read_log(path)
    for content in ("no json\n{}\n", "[1]\n[2]\n", '{"step": "1"}\n{"step": 2}\n'):
        path.write_text(content)
        with pytest.raises(FileError, match="line 1 is not that"):
            read_log(path)


def test_a_missing_tensorboard_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(RuntimeAbsent, match=r"TensorBoard is not installed.*pose-compress\[tensorboard\]"):
        RunLog(tmp_path / "x.log.jsonl", tensorboard=tmp_path / "board")
    assert not (tmp_path / "x.log.jsonl").exists()


def test_tensorboard_receives_every_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            calls.append(("folder", folder))

        def add_scalar(self, *what: Any) -> None:
            calls.append(what)

        def add_text(self, *what: Any) -> None:
            calls.append(what)

        def close(self) -> None:
            calls.append(("closed",))

    class Module:
        SummaryWriter = Writer

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", Module)
    with RunLog(tmp_path / "x.log.jsonl", tensorboard=tmp_path / "board") as log:
        log.step(entry(2, score=0.25))
        log.event(rollback(3, 1))
    assert calls[0] == ("folder", str(tmp_path / "board"))
    assert ("loss", 2.0, 2) in calls
    assert ("loss/labels.pafs", 1.0, 2) in calls
    assert ("score", 0.25, 2) in calls
    assert ("events", "rollback: the loss is nan", 1) in calls
    assert calls[-1] == ("closed",)


def test_the_curve_has_one_more_panel_with_scores() -> None:
    def width(picture: bytes | None) -> int:
        assert picture is not None
        image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        return int(image.shape[1])

    steps = [json.loads(json.dumps({**vars(entry(step)), "score": None})) for step in range(1, 301)]
    plain = training_curve(steps)
    scored = training_curve([*steps, {**steps[-1], "step": 301, "score": 0.5}], [{"event": "rollback", "step": 40}])
    assert width(scored) > 1.3 * width(plain)
    assert training_curve([]) is None
    # Null values and a loss of 0 can be drawn.
    assert width(training_curve([{**steps[0], "loss": None}, {**steps[1], "loss": 0.0}])) == width(plain)


def test_the_curve_is_written_beside_the_model(tmp_path: Path) -> None:
    output = tmp_path / "small.best.pt"
    assert draw_curve(output) is None
    write_curve(output)
    assert not curve_path(output).exists()
    with RunLog(log_path(output)) as log:
        log.step(entry(1))
    write_curve(output)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["small.best.curve.png", "small.best.log.jsonl"]
