"""One recipe for every combination of some of its variables."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from compress.cli import cli
from compress.errors import CompressError, UsageError
from compress.progress import Silent
from compress.sweep import Sweep, combinations, load_sweep, parse_over, run_sweep

TEXT = """
title = "small"
[variables]
blocks = 1
ratio = "1/2"
height = 64
network = "default"
options = ["blocks=${blocks}", "width=16", "backbone_scale=0.25", "head_width=16"]
[[stage]]
run = "init"
network = "${network}"
set = "${options}"
untrained = true
output = "start.pt"
[[stage]]
run = "factorize"
model = "start.pt"
ratio = "${ratio}"
output = "small.pt"
[[stage]]
run = "evaluate"
model = "small.pt"
data = "synthetic:3:2"
height = "${height}"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(TEXT)
    return path


def swept(path: Path, *over: str, **variables: str) -> Sweep:
    named = parse_over(over)
    home, recipes = load_sweep(path, named, folder=path.parent / "out", variables=variables)
    return run_sweep(home, recipes, named, Silent())


def test_two_combinations_run_in_their_own_folders_and_are_skipped_afterwards(recipe: Path) -> None:
    first = swept(recipe, "blocks=1,2")
    assert [(run.name, run.ran, run.skipped) for run in first.runs] == [("blocks=1", 3, 0), ("blocks=2", 3, 0)]
    assert (recipe.parent / "out" / "blocks=2" / "small.pt").is_file()
    small, large = (run.models[0] for run in first.runs)
    assert small.options["blocks"], large.options["blocks"] == (1, 2)
    assert small.params is not None
    assert large.params is not None
    assert small.params < large.params
    assert small.macs is not None
    assert small.flops == 2 * small.macs
    assert small.scores[0].headline[0] == "AP"
    assert small.edits > 0

    again = swept(recipe, "blocks=1,2,3")
    assert [(run.ran, run.skipped) for run in again.runs] == [(0, 3), (0, 3), (3, 0)]
    assert again.runs[0].models == first.runs[0].models


def test_results_are_written_as_json_and_as_a_table(recipe: Path) -> None:
    sweep = swept(recipe, "blocks=1,2", ratio="1/3")
    record = json.loads((recipe.parent / "out" / "sweep.json").read_text())
    assert record == json.loads(json.dumps(sweep.to_dict()))
    with (recipe.parent / "out" / "sweep.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["blocks"] for row in rows] == ["1", "2"]
    assert [int(row["FLOPs"]) for row in rows] == [run.models[0].flops for run in sweep.runs]
    assert {row["metric"] for row in rows} == {"AP"}


def test_a_combination_that_fails_is_reported_and_the_others_go_on(recipe: Path) -> None:
    folder = str(recipe.parent / "out")
    arguments = ["sweep", str(recipe), "--over", "network=hourglass-of-nobody,default", "-o", folder]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 1
    record = json.loads((recipe.parent / "out" / "sweep.json").read_text())
    bad, good = record["runs"]
    assert "unknown network" in bad["error"]
    assert good["error"] == ""
    assert len(good["models"]) == 1
    assert "unknown network" in done.stdout


def test_a_bug_leaves_its_traceback_and_the_others_go_on(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compress.sweep

    real = compress.sweep.run_recipe

    def broken(recipe: object, progress: object, **options: object) -> object:
        if "blocks=1" in str(recipe):
            raise ZeroDivisionError
        return real(recipe, progress, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(compress.sweep, "run_recipe", broken)
    bad, good = swept(recipe, "blocks=1,2").runs
    assert bad.error == "ZeroDivisionError()"
    assert "ZeroDivisionError" in (recipe.parent / "out" / "blocks=1" / "traceback.txt").read_text()
    assert len(good.models) == 1


def test_combinations_are_a_product_whose_last_variable_changes_fastest() -> None:
    named = combinations({"ratio": ("1/3", "1/4"), "seed": ("0", "1")})
    assert list(named) == ["ratio=1-3+seed=0", "ratio=1-3+seed=1", "ratio=1-4+seed=0", "ratio=1-4+seed=1"]
    assert named["ratio=1-4+seed=0"] == {"ratio": "1/4", "seed": "0"}


def test_values_with_commas_are_given_as_json() -> None:
    assert parse_over(['options=["a=1,b=2", "c=3"]', "depth=50, 101"]) == {
        "options": ("a=1,b=2", "c=3"),
        "depth": ("50", "101"),
    }


@pytest.mark.parametrize("texts", [[], ["depth"], ["=1,2"], ["depth="], ["depth=1,1"], ["depth=1", "depth=2"]])
def test_malformed_variables_are_refused(texts: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_over(texts)


def test_values_with_the_same_subfolder_are_refused() -> None:
    with pytest.raises(UsageError, match="same subfolder"):
        combinations({"ratio": ("1/3", "1-3")})


@pytest.mark.parametrize(
    ("over", "variables", "message"),
    [
        ({"block": ("1",)}, {}, "no such variable.*blocks"),
        ({"blocks": ("1",)}, {"blocks": "2"}, "both set and swept"),
        ({"height": ("64", "tall")}, {}, "height.*tall"),
    ],
)
def test_wrong_variables_are_refused_before_anything_runs(
    recipe: Path, over: dict[str, tuple[str, ...]], variables: dict[str, str], message: str
) -> None:
    with pytest.raises(CompressError, match=message):
        load_sweep(recipe, over, folder=recipe.parent / "out", variables=variables)
    assert not (recipe.parent / "out").exists()
