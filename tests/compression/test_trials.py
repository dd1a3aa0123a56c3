"""The trials of a search, and the file that keeps them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.compression.trials import FORMS, Outcome, Search, Trial, order_trials, read_search
from compress.errors import FileError, UsageError


def started(folder: Path) -> tuple[dict[str, Any], tuple[Trial, ...]]:
    """A search on disk with two finished trials."""
    trials = order_trials((1.0,), False, 0)
    conditions = {"budget": "macs=0.5", "seed": 0}
    outcomes = {
        "1-all": Outcome("done", 1.0, cost=5.0, macs=5, params=2, size_bytes=8, map_error=0.1),
        "1-tucker2": Outcome("infeasible", 0.5),
    }
    Search(conditions, {"score": None, "metric": None}, trials, outcomes).write(folder)
    return conditions, trials


def test_a_written_search_is_read_back(tmp_path: Path) -> None:
    conditions, trials = started(tmp_path)
    search = read_search(tmp_path, conditions, trials)
    assert search.front == ("1-all",)
    assert [trial.name for trial in search.left] == ["1-no_spatial"]
    assert search.expected_seconds(search.left[0]) == 1.0
    before = (tmp_path / "front.json").read_text()
    search.write(tmp_path)
    assert (tmp_path / "front.json").read_text() == before


def test_a_search_is_resumed_under_the_same_conditions_only(tmp_path: Path) -> None:
    conditions, trials = started(tmp_path)
    with pytest.raises(UsageError, match="budget"):
        read_search(tmp_path, {**conditions, "budget": "macs=0.4"}, trials)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.pop("trials"),
        lambda record: record.update(version=99),
        lambda record: record["trials"][0].update(verdict="perfect"),
        lambda record: record["trials"][0].update(cost=None),
        lambda record: record.update(trials=3),
    ],
)
def test_a_damaged_search_is_one_clear_error(tmp_path: Path, change: Any) -> None:
    conditions, trials = started(tmp_path)
    record = json.loads((tmp_path / "front.json").read_text())
    change(record)
    (tmp_path / "front.json").write_text(json.dumps(record))
    with pytest.raises(FileError, match="can't be read"):
        read_search(tmp_path, conditions, trials)
    (tmp_path / "front.json").write_text("[")
    with pytest.raises(FileError, match="can't be read"):
        read_search(tmp_path, conditions, trials)


def test_checkpoints_of_dominated_points_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "points").mkdir()
    for name in ("1-all.pt", "0.85-tucker2.pt", "1-all-tuned.pt", "mine.pt"):
        (tmp_path / "points" / name).write_bytes(b"x")
    started(tmp_path)
    assert {path.name for path in (tmp_path / "points").iterdir()} == {"1-all.pt", "mine.pt"}


def test_the_order_of_trials_follows_from_the_seed() -> None:
    orders = [[trial.name for trial in order_trials((1.0, 0.8, 0.6), True, seed)] for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
    assert len(set(orders[0])) == 2 * 3 * len(FORMS)
    for order in orders:
        assert order[0] == "1-all"
        plain, tuned = order[: len(order) // 2], order[len(order) // 2 :]
        assert tuned == [f"{name}-tuned" for name in plain]
