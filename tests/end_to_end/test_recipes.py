"""Every recipe that ships, for a step or two on drawn people: small crops, small networks, all stages."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.errors import DataError, UsageError
from compress.pipeline import StepReport, run_recipe
from compress.progress import Silent
from compress.recipe import Recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

#: The recipes of the papers: network options that make it small, and the crop.
PAPERS: dict[str, tuple[tuple[str, ...], str]] = {
    "attention-cpm-coco": (("stages=1",), "64x64"),
    "cbam-lite-hrnet-coco": ((), "128x96"),
    "cbam-lite-hrnet-coco-adam": ((), "128x96"),
    "cbam-lite-hrnet-mpii": ((), "64x64"),
    "context-cpm-coco": (("stages=1",), "64x48"),
    "context-cpm-lip": (("stages=2",), "64x64"),
    "context-cpm-mpii": (("stages=1",), "64x64"),
    "esa-coco": ((), "64x48"),
    "repose-lsp-mpii": (("blocks=1",), "64x64"),
}

TRAINING, TEST = "synthetic:3:4", "synthetic:5:1"


def variables(name: str, text: str) -> dict[str, str]:
    """What makes a recipe small, as far as it has variables for it."""
    wanted = {"train": TRAINING, "validation": TEST, "test": TEST, "test_mpii": TEST, "epochs": "1", "steps": "2",
              "tune_steps": "1", "batch": "2", "device": "cpu", "workers": "0"}  # fmt: skip
    if name in PAPERS:
        size = PAPERS[name][1]
        wanted |= {"size": size, "height": size.split("x")[0]}
    known = text.split("[variables]")[1].split("[[stage]]")[0]
    return {key: value for key, value in wanted.items() if f"\n{key} = " in known}


def shrink(recipe: Recipe, options: tuple[str, ...], size: tuple[int, int]) -> Recipe:
    """The recipe with what has no variable made small too."""
    small: dict[str, dict[str, Any]] = {
        "init": {"set": options},
        "train": {"evaluate_every": None},
        "report": {"input": size, "limit": 1, "rounds": 1, "pictures": 1, "runtime": ("torch-cpu",)},
    }
    steps = (replace(step, options=step.options.model_copy(update=small.get(step.stage, {}))) for step in recipe.steps)
    return replace(recipe, steps=tuple(steps))


def run(name: str, folder: Path) -> tuple[StepReport, ...]:
    path = RECIPES / f"{name}.toml"
    options, size = PAPERS[name]
    height, width = (int(side) for side in size.split("x"))
    recipe = load_recipe(path, folder=folder, variables=variables(name, path.read_text()))
    return run_recipe(shrink(recipe, options, (height, width)), Silent())


def test_every_recipe_of_a_paper_is_run_here() -> None:
    others = {"demo", "gradual", "real", "train-default"}
    assert {path.stem for path in RECIPES.glob("*.toml")} - others >= set(PAPERS)
    untested = {
        path.stem
        for path in RECIPES.glob("*.toml")
        if path.stem not in PAPERS and 'untrained = true\noutput = "start.pt"' in path.read_text()
    }
    assert untested <= others


def test_the_gradual_recipe_factorizes_what_it_has_trained_further(tmp_path: Path) -> None:
    save(create("default"), tmp_path / "teacher.pt")
    given = {
        "assets": "-",
        "teacher": str(tmp_path / "teacher.pt"),
        "train": "synthetic:3:2",
        "first": "1",
        "last": "1",
    }
    recipe = load_recipe(RECIPES / "gradual.toml", folder=tmp_path / "run", variables=given)
    tuned = {"size": (64, 64), "batch_size": 2, "workers": 0, "amp": "off"}
    small = [
        replace(step, options=step.options.model_copy(update=tuned if step.stage == "finetune" else {}))
        for step in recipe.steps
        if step.stage != "report"  # which has a real data set
    ]
    run_recipe(replace(recipe, steps=tuple(small)), Silent())
    last = load(tmp_path / "run" / "last-tuned.pt")
    assert [edit.kind for edit in last.edits] == ["factorize", "compose", "factorize"]
    assert [entry["command"] for entry in last.history if "command" in entry][-4:] == ["factorize", "finetune"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_a_recipe_goes_through_all_its_stages(name: str, tmp_path: Path) -> None:
    reports = run(name, tmp_path)
    stages = [report.stage for report in reports]
    assert stages[:2] == ["init", "train"]
    assert stages[-1] == "report"
    trained = reports[1].record
    assert trained["steps"] == 2 or "each_person" in (RECIPES / f"{name}.toml").read_text()
    assert all(math.isfinite(loss) and loss > 0 for loss in trained["loss"])
    assert trained["broken_images"] == []
    for report in reports:
        if report.stage == "evaluate":
            assert report.record["images"] == 1
            assert set(report.record["metrics"]) >= {"AP", "AR"}  # drawn people have the joints of COCO
    assert (tmp_path / "report" / "report.html").is_file()
    assert load(tmp_path / "trained.pt").network.name == reports[0].record["network"]
    assert all(json.dumps(report.record) for report in reports)
    if "factorize" in stages:
        assert_compressed(reports, tmp_path)


def assert_compressed(reports: tuple[StepReport, ...], folder: Path) -> None:
    """A recipe that compresses tunes what is smaller than the trained network, and the smaller ratio most."""
    models = {model["label"]: model for model in reports[-1].record["models"]}
    assert models["quarter"]["macs"] < models["third"]["macs"] < models["trained"]["macs"] / 2
    history = load(folder / "third-tuned.pt").history
    assert [entry["command"] for entry in history] == ["init", "train", "factorize", "finetune"]


def test_a_recipe_asks_for_the_data_it_needs(tmp_path: Path) -> None:
    path = RECIPES / "repose-lsp-mpii.toml"
    with pytest.raises(UsageError, match="variable lsp has no value"):
        load_recipe(path, folder=tmp_path)
    recipe = load_recipe(
        path, folder=tmp_path, variables={"lsp": str(tmp_path), "mpii": str(tmp_path), "device": "cpu"}
    )
    assert recipe.steps[1].options.model_dump()["data"] == (f"lsp:{tmp_path},train", f"mpii:{tmp_path},train")
    with pytest.raises(DataError, match=r"not one of Leeds Sports Pose.*joints\.mat"):
        run_recipe(shrink(recipe, ("blocks=1",), (64, 64)), Silent())
