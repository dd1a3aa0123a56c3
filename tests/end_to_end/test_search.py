"""A search from start to end: stopped, killed and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import compress
from compress.checkpoint.load import create
from compress.compression.search import SearchResult
from compress.compression.search_options import SearchOptions
from compress.compression.trials import FORMS, order_trials, read_search
from compress.errors import CompressError, FileError, RankError, UsageError
from compress.model import Model
from compress.network.cost import cost
from compress.planning.pareto import dominates
from compress.progress import Progress, Silent

SIZE = (64, 96)
FEW = ("refinement_stages.0.trunk.*", "refinement_stages.0.heatmaps.*")


@pytest.fixture(scope="module")
def model() -> Model:
    """The trained default network."""
    return create("default")


def search(
    model: Model, folder: Path, budget: str = "macs=0.9", progress: Progress | None = None, **more: Any
) -> SearchResult:
    values: dict[str, Any] = {
        "calibrate": 4, "rounds": 2, "include": FEW, "size": SIZE, "level": (1.0, 0.96), "workers": 0, "batch_size": 1,
        "digest": "the same model", **more,
    }  # fmt: skip
    data = values.pop("data", "synthetic:0:6")
    return compress.search(
        model, budget, data, folder=folder, options=SearchOptions(**values), progress=progress or Silent()
    )


def assert_sound(folder: Path, original_macs: int) -> list[dict[str, Any]]:
    """A front on disk can be read, is a front, and has a network for each of its points and for no others."""
    rows: list[dict[str, Any]] = json.loads((folder / "front.json").read_text())["trials"]
    done = [row for row in rows if row["verdict"] == "done"]
    front = [row for row in done if row["front"]]
    assert bool(front) == bool(done)

    def quantities(row: dict[str, Any]) -> tuple[float, ...]:
        return row["cost"], row["map_error"], -row["score"]

    kept = [quantities(row) for row in front]
    for row in done:
        point = quantities(row)
        assert row["front"] or point in kept or any(dominates(other, point) for other in kept)
    assert not any(dominates(quantities(x), quantities(row)) for x in done for row in front)
    assert {f"points/{path.name}" for path in (folder / "points").glob("*.pt")} == {row["checkpoint"] for row in front}
    for row in front:
        point_cost = cost(compress.load(folder / row["checkpoint"]).module, SIZE)
        assert (point_cost.macs, point_cost.params) == (row["macs"], row["params"])
        assert row["macs"] == row["cost"] <= 0.9 * original_macs
    return rows


def without_time(rows: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


class Interrupting:
    """Progress that counts finished trials, and interrupts after some of them."""

    def __init__(self, after: int | None = None) -> None:
        self.after = after
        self.trials: list[str] = []

    def say(self, message: str) -> None:
        """Each trial is reported once, as ``[3/6] name: outcome``."""
        if message.startswith("["):
            self.trials.append(message.split()[1].rstrip(":"))
            if len(self.trials) == self.after:
                raise KeyboardInterrupt

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Steps inside a trial are ignored."""
        yield lambda *_: None


@pytest.fixture(scope="module")
def whole(model: Model, tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    """A search that nobody interrupts."""
    return search(model, tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
def test_a_search_ends_with_a_front_and_a_network_for_each_point(whole: SearchResult) -> None:
    rows = assert_sound(whole.folder, whole.original["macs"])
    assert list(whole.trials) == rows
    assert [row["name"] for row in rows] == [trial.name for trial in order_trials((1.0, 0.96), False, 0)]
    assert whole.left == ()
    assert all(path.exists() for path in whole.files)
    for row in rows:
        for edit in compress.load(whole.folder / row["checkpoint"]).edits if row["front"] else ():
            assert {layer["method"] for layer in edit.to_dict()["layers"].values()} <= set(FORMS[row["forms"]])


@pytest.mark.slow
def test_an_interrupted_search_is_resumed_and_repeats_no_trial(
    model: Model, whole: SearchResult, tmp_path: Path
) -> None:
    stopped = Interrupting(after=2)
    with pytest.raises(KeyboardInterrupt):
        search(model, tmp_path, progress=stopped)
    assert len(assert_sound(tmp_path, whole.original["macs"])) == 2
    resumed = Interrupting()
    result = search(model, tmp_path, progress=resumed, resume=True)
    assert stopped.trials + resumed.trials == [row["name"] for row in result.trials]
    assert without_time(result.trials) == without_time(whole.trials)
    idle = Interrupting()
    assert search(model, tmp_path, progress=idle, resume=True).trials == result.trials
    assert idle.trials == []


@pytest.mark.slow
def test_a_killed_search_leaves_a_front_that_can_be_read(model: Model, tmp_path: Path) -> None:
    folder, path = tmp_path / "out", tmp_path / "model.pt"
    compress.save(model, path)
    words = ["search", path, "--budget", "macs=0.9", "--data", "synthetic:0:6", "--input", "64x96", "-o", folder]
    words += ["--calibrate", 4, "--fit-groups", 2, *(word for pattern in FEW for word in ("--include", pattern))]
    run = subprocess.Popen([sys.executable, "-m", "compress", *map(str, words)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and run.poll() is None and not list(folder.glob("points/[0-9]*.pt")):
            time.sleep(0.02)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    record = json.loads((folder / "front.json").read_text())
    trials = order_trials(tuple(record["conditions"]["level"]), False, 0)
    state = read_search(folder, record["conditions"], trials)
    written = list((folder / "points").glob("[0-9]*.pt"))
    assert run.returncode == -signal.SIGKILL
    assert written
    assert all(compress.load(path).edits for path in written)
    assert {f"{name}.pt" for name in state.front} <= {path.name for path in written}
    assert {trial.name for trial in state.left} | set(state.outcomes) == {trial.name for trial in trials}


@pytest.mark.slow
def test_points_of_the_front_are_recovered_and_the_time_limit_holds(model: Model, tmp_path: Path) -> None:
    first = search(model, tmp_path, level=(1.0,), recover=1, minutes=1e-6)
    assert [row["name"] for row in first.trials] == ["1-all"]
    assert len(first.left) == 5
    result = search(model, tmp_path, level=(1.0,), recover=1, resume=True)
    rows = {row["name"]: row for row in result.trials}
    assert len(rows) == 6
    tuned = rows["1-all-tuned"]
    assert tuned["verdict"] == "done"
    assert (tuned["macs"], tuned["cost"]) == (rows["1-all"]["macs"], rows["1-all"]["cost"])
    assert tuned["map_error"] != rows["1-all"]["map_error"]
    assert {row["verdict"] for row in result.trials if row["tuned"]} <= {"done", "beaten"}
    assert_sound(tmp_path, result.original["macs"])


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"budget": "error=0.1"}, UsageError, "macs="),
        ({"budget": "macs=2"}, RankError, "at most 1"),
        ({"data": None}, UsageError, "--data"),
        ({"minutes": 0}, UsageError, "minutes"),
        ({"recover": -1}, UsageError, "recover"),
        ({"calibrate": 1}, UsageError, "calibrate"),
        ({"level": (0.5, 1.5)}, UsageError, "levels"),
        ({"resume": True}, FileError, "does not exist"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    model: Model, tmp_path: Path, more: dict[str, Any], error: type[CompressError], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(model, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def test_an_existing_search_is_kept_unless_forced(model: Model, tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text("kept")
    with pytest.raises(FileError, match="already exists"):
        search(model, tmp_path)
    assert (tmp_path / "front.json").read_text() == "kept"
