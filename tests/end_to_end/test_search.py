"""A search from start to end: stopped, killed and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.commands import search as stage
from compress.commands.base import check_options
from compress.commands.show import show
from compress.compression.trials import FORMS, Outcome, Search, Trial, order_trials, read_search
from compress.errors import CompressError, FileError, RankError, UsageError
from compress.network.cost import cost
from compress.planning.pareto import dominates
from compress.progress import Silent

SIZE = (64, 96)
FEW = ("refinement_stages.0.trunk.*", "refinement_stages.0.heatmaps.*")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained default network."""
    path = tmp_path_factory.mktemp("search") / "model.pt"
    save(create("default"), path)
    return path


def options(model: Path, folder: Path, **more: Any) -> stage.SearchOptions:
    values: dict[str, Any] = {
        "model": model,
        "output": folder,
        "budget": "macs=0.9",
        "data": "synthetic:0:6",
        "calibrate": 4,
        "rounds": 2,
        "include": FEW,
        "input": "64x96",
        "level": (1.0, 0.96),
        "workers": 0,
        "batch_size": 1,
        **more,
    }
    found = check_options(stage.SearchOptions, values, "compress search")
    assert isinstance(found, stage.SearchOptions)
    return found


def search(model: Path, folder: Path, **more: Any) -> dict[str, Any]:
    return stage.run(options(model, folder, **more), Silent()).record


def assert_sound(folder: Path, original_macs: int) -> list[dict[str, Any]]:
    """A front on disk is readable, is a front, and has a network for each of its points and for no others."""
    rows: list[dict[str, Any]] = json.loads((folder / "front.json").read_text())["trials"]
    done = [row for row in rows if row["verdict"] == "done"]
    front = [row for row in done if row["front"]]
    assert bool(front) == bool(done)

    def quantities(row: dict[str, Any]) -> tuple[float, ...]:
        return row["cost"], row["map_error"], -row["score"]

    kept = [quantities(row) for row in front]
    for row in done:
        found = quantities(row)
        assert row["front"] or found in kept or any(dominates(other, found) for other in kept)
    assert not any(dominates(quantities(x), quantities(row)) for x in done for row in front)
    assert {f"points/{path.name}" for path in (folder / "points").glob("*.pt")} == {row["checkpoint"] for row in front}
    for row in front:
        found = cost(load(folder / row["checkpoint"]).module, SIZE)
        assert (found.macs, found.params) == (row["macs"], row["params"])
        assert row["macs"] == row["cost"] <= 0.9 * original_macs
    return rows


def without_time(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A search that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, search(model, folder)


@pytest.mark.slow
def test_a_search_ends_with_a_front_a_network_for_each_point_and_a_table(
    whole: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = whole
    rows = assert_sound(folder, record["original"]["macs"])
    assert record["trials"] == rows
    assert [row["name"] for row in rows] == [trial.name for trial in order_trials((1.0, 0.96), False, 0)]
    assert record["left"] == []
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")
    show("search", record)
    shown = capsys.readouterr().out
    assert all(row["checkpoint"] in shown for row in rows if row["front"])
    for row in rows:
        for edit in load(folder / row["checkpoint"]).edits if row["front"] else ():
            assert {layer["method"] for layer in edit.to_dict()["layers"].values()} <= set(FORMS[row["forms"]])


@pytest.mark.slow
def test_a_search_that_is_stopped_goes_on_and_does_no_trial_twice(
    model: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    attempt = stage.Bench.attempt

    def stopping(bench: stage.Bench, trial: Trial) -> Any:
        if len(tried) == 2:
            raise KeyboardInterrupt
        tried.append(trial.name)
        return attempt(bench, trial)

    monkeypatch.setattr(stage.Bench, "attempt", stopping)
    with pytest.raises(KeyboardInterrupt):
        search(model, tmp_path)
    assert len(assert_sound(tmp_path, whole[1]["original"]["macs"])) == 2
    assert options(model, tmp_path).can_resume()

    def counting(bench: stage.Bench, trial: Trial) -> Any:
        tried.append(trial.name)
        return attempt(bench, trial)

    monkeypatch.setattr(stage.Bench, "attempt", counting)
    record = search(model, tmp_path, resume=True)
    assert tried == [row["name"] for row in record["trials"]]
    assert without_time(record["trials"]) == without_time(whole[1]["trials"])
    again = search(model, tmp_path, resume=True)
    assert again["trials"] == record["trials"]
    assert len(tried) == len(record["trials"])


@pytest.mark.slow
def test_a_killed_search_leaves_a_front_that_can_be_read(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    words = ["search", model, "--budget", "macs=0.9", "--data", "synthetic:0:6", "--input", "64x96", "-o", folder]
    words += ["--calibrate", 4, "--rounds", 2, *(word for pattern in FEW for word in ("--include", pattern))]
    run = subprocess.Popen([sys.executable, "-m", "compress", *map(str, words)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 600
        while time.monotonic() < deadline and run.poll() is None and not list(folder.glob("points/*.pt")):
            time.sleep(0.02)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    record = json.loads((folder / "front.json").read_text())
    trials = order_trials(tuple(record["conditions"]["level"]), False, 0)
    found = read_search(folder, record["conditions"], trials)
    for name in found.front:
        assert load(folder / "points" / f"{name}.pt").edits
    assert {trial.name for trial in found.left} | set(found.outcomes) == {trial.name for trial in trials}


@pytest.mark.slow
def test_points_of_the_front_are_recovered_and_the_time_limit_holds(model: Path, tmp_path: Path) -> None:
    first = search(model, tmp_path, level=(1.0,), recover=1, minutes=1e-6)
    assert [row["name"] for row in first["trials"]] == ["1-all"]
    assert len(first["left"]) == 5
    record = search(model, tmp_path, level=(1.0,), recover=1, resume=True)
    rows = {row["name"]: row for row in record["trials"]}
    assert len(rows) == 6
    tuned = rows["1-all-tuned"]
    assert tuned["verdict"] == "done"
    assert (tuned["macs"], tuned["cost"]) == (rows["1-all"]["macs"], rows["1-all"]["cost"])
    assert tuned["map_error"] != rows["1-all"]["map_error"]
    assert {row["verdict"] for row in record["trials"] if row["tuned"]} <= {"done", "beaten"}
    assert_sound(tmp_path, record["original"]["macs"])


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"budget": "error=0.1"}, UsageError, "macs="),
        ({"budget": "macs=2"}, RankError, "at most 1"),
        ({"data": ()}, UsageError, "--data"),
        ({"minutes": 0}, UsageError, "--minutes"),
        ({"recover": -1}, UsageError, "--recover"),
        ({"level": (0.5, 1.5)}, UsageError, "levels"),
        ({"resume": True}, FileError, "does not exist"),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(
    model: Path, tmp_path: Path, more: dict[str, Any], error: type[CompressError], message: str
) -> None:
    with pytest.raises(error, match=message):
        search(model, tmp_path / "out", **more)
    assert not (tmp_path / "out").exists()


def begun(folder: Path, **more: Any) -> tuple[dict[str, Any], tuple[Trial, ...]]:
    """A search on disk with two trials behind it."""
    trials = order_trials((1.0,), False, 0)
    conditions = {"budget": "macs=0.5", "seed": 0}
    outcomes = {
        "1-all": Outcome("done", 1.0, cost=5.0, macs=5, params=2, size_bytes=8, map_error=0.1),
        "1-tucker2": Outcome("infeasible", 0.5),
    }
    Search(conditions, {"score": None, "metric": None}, trials, outcomes).write(folder)
    return conditions, trials


def test_a_search_is_read_as_it_was_written(tmp_path: Path) -> None:
    conditions, trials = begun(tmp_path)
    found = read_search(tmp_path, conditions, trials)
    assert found.front == ("1-all",)
    assert [trial.name for trial in found.left] == ["1-no_spatial"]
    assert found.expected_seconds(found.left[0]) == 1.0
    before = (tmp_path / "front.json").read_text()
    found.write(tmp_path)
    assert (tmp_path / "front.json").read_text() == before


def test_a_search_goes_on_under_the_same_conditions_alone(tmp_path: Path) -> None:
    conditions, trials = begun(tmp_path)
    with pytest.raises(UsageError, match="budget"):
        read_search(tmp_path, {**conditions, "budget": "macs=0.4"}, trials)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("trials"),
        lambda record: record.update(version=99),
        lambda record: record["trials"][0].update(verdict="splendid"),
        lambda record: record["trials"][0].update(cost=None),
        lambda record: record.update(trials=3),
    ],
)
def test_a_damaged_search_is_one_clear_error(tmp_path: Path, change: Any) -> None:
    conditions, trials = begun(tmp_path)
    record = json.loads((tmp_path / "front.json").read_text())
    change(record)
    (tmp_path / "front.json").write_text(json.dumps(record))
    with pytest.raises(FileError, match="can't be read"):
        read_search(tmp_path, conditions, trials)
    (tmp_path / "front.json").write_text("[")
    with pytest.raises(FileError, match="can't be read"):
        read_search(tmp_path, conditions, trials)


def test_checkpoints_of_beaten_points_go_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    for name in ("1-all.pt", "0.85-tucker2.pt", "1-all-tuned.pt", "mine.pt"):
        (tmp_path / "points" / name).write_bytes(b"x")
    begun(tmp_path)
    assert {path.name for path in (tmp_path / "points").iterdir()} == {"1-all.pt", "mine.pt"}


def test_an_existing_search_is_kept_unless_forced(model: Path, tmp_path: Path) -> None:
    begun(tmp_path)
    before = (tmp_path / "front.json").read_text()
    with pytest.raises(FileError, match="exists already"):
        search(model, tmp_path)
    assert (tmp_path / "front.json").read_text() == before


def test_the_order_of_trials_follows_from_the_seed() -> None:
    orders = [[trial.name for trial in order_trials((1.0, 0.8, 0.6), True, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert len(set(orders[0])) == 2 * 3 * len(FORMS)
    for order in orders:
        assert order[0] == "1-all"
        plain, tuned = order[: len(order) // 2], order[len(order) // 2 :]
        assert tuned == [f"{name}-tuned" for name in plain]
