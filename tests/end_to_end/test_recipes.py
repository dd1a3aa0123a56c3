"""Every recipe that ships: its tables made small by one rule, all stages run, and what each produced."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.commands.fields import DataText
from compress.data.synthetic import DrawnPeople
from compress.data.written import write_picture
from compress.errors import DataError, UsageError
from compress.model import Model
from compress.pipeline import StepReport, run_recipe
from compress.progress import Silent
from compress.recipe import Recipe, Step, build_recipe, load_recipe
from compress.training.log import read_log, steps_of
from compress.zoo.registry import get_entry

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes").glob("*.toml"))

#: Labelled data of training and of everything else.
TRAINING, TEST = "synthetic:3:4", "synthetic:5:2"

#: Options of stages that are set whatever the recipe says, because their defaults are large.
SMALL: dict[str, dict[str, Any]] = {
    "init": {},
    "factorize": {},
    "train": {"steps": 2, "batch_size": 2, "workers": 0, "device": "cpu", "amp": "off"},
    "finetune": {"steps": 2, "batch_size": 2, "workers": 0, "device": "cpu", "amp": "off"},
    "evaluate": {"device": "cpu"},
    "export": {"check_images": 1},
    "report": {"limit": 1, "rounds": 1, "pictures": 1, "runtime": ["torch-cpu"]},
}

#: Options that become small where a recipe has them.
WHERE_GIVEN = {"calibrate": 3, "reconstruct": 2, "warmup_steps": 1, "evaluate_every": 2}

#: Options that mean nothing in two steps.
LEFT_OUT = {"epochs", "limit"}

#: No number that is left may be larger: it would be a count that the rule does not know.
LARGEST = 20


@dataclass(frozen=True)
class Stand:
    """What stands in for the models and images that a recipe reads.

    Attributes
    ----------
    model : Path
        A checkpoint, for weights that do not ship.
    photos : Path
        A folder of images without labels.
    """

    model: Path
    photos: Path


@pytest.fixture(scope="module")
def stand(tmp_path_factory: pytest.TempPathFactory) -> Stand:
    folder = tmp_path_factory.mktemp("stand")
    save(create("default"), folder / "model.pt")
    scenes = DrawnPeople(3, 4, size=(96, 96))
    for index in range(len(scenes)):
        write_picture(folder / "photos" / f"{index}.png", scenes[index].image)
    return Stand(folder / "model.pt", folder / "photos")


def small_size(text: str) -> str:
    """A size of the same proportions, each side a multiple of 32."""
    height, width = (int(side) for side in text.split("x"))
    common = math.gcd(height, width)
    sides = [32 * side // common * (1 + (min(height, width) == common)) for side in (height, width)]
    return "x".join(map(str, sides)) if sides[0] <= height and max(sides) <= 128 else "64x64"


def small_data(text: str, stage: str, stand: Stand) -> str:
    if text.startswith("images:"):
        return f"images:{stand.photos}"
    return TRAINING if stage in ("train", "finetune", "factorize") else TEST


def shrink(table: dict[str, Any], stand: Stand, height: int) -> dict[str, Any]:
    """A stage made small, by the names of its options; ``height`` is that of the training crops."""
    stage = table["run"]
    kept = {name: value for name, value in table.items() if name not in LEFT_OUT}
    small = kept | SMALL[stage] | {name: value for name, value in WHERE_GIVEN.items() if name in table}
    if stage == "factorize" and "data" in table:
        small["calibrate"] = 3
    if "annotations" in small:
        del small["annotations"], small["images"]
        small["data"] = TEST
    for name, value in small.items():
        if name in ("data", "validation"):
            many = [small_data(text, stage if name == "data" else name, stand) for text in listed(value)]
            small[name] = many if isinstance(value, list) else many[0]
        elif name in ("size", "input"):
            small[name] = small_size(value)
        elif name == "height":
            small[name] = height
        elif isinstance(value, str) and value.endswith(".pth"):
            small[name] = str(stand.model)
    if table.get("untrained"):  # trained weights belong to the network's own options
        known = get_entry(table["network"]).options
        small["set"] = [f"{name}=1" for name in ("stages", "blocks", "refinements") if name in known]
    return small


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def filled(value: Any, variables: dict[str, Any]) -> Any:
    """The value with variables replaced; those that name folders of data stand for "-"."""
    if isinstance(value, list):
        return [filled(item, variables) for item in value]
    if not isinstance(value, str):
        return value
    for name, content in variables.items():
        if value == f"${{{name}}}" and content != "":
            return filled(content, variables)
        value = value.replace(f"${{{name}}}", str(content) or "-")
    return filled(value, variables) if "${" in value else value


def small_recipe(path: Path, folder: Path, stand: Stand) -> Recipe:
    record = tomllib.loads(path.read_text())
    variables = record.pop("variables", {})
    tables = [{name: filled(value, variables) for name, value in table.items()} for table in record["stage"]]
    crops = [small_size(table["size"]) for table in tables if "size" in table]
    height = int(crops[0].split("x")[0]) if crops else 64
    record["stage"] = [shrink(table, stand, height) for table in tables]
    for table in record["stage"]:
        large = {name: value for name, value in table.items() if isinstance(value, int) and value > LARGEST}
        assert large.keys() <= {"height"}, f"the rule does not know how to make {large} small"
    return build_recipe(record, path.stem, folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_goes_through_all_its_stages(path: Path, tmp_path: Path, stand: Stand) -> None:
    recipe = small_recipe(path, tmp_path / "run", stand)
    reports = run_recipe(recipe, Silent())
    assert len(reports) == len(recipe.steps) == len(tomllib.loads(path.read_text())["stage"])
    for step, report in zip(recipe.steps, reports, strict=True):
        assert report.stage == step.stage
        assert not report.skipped
        assert report.files
        assert all(file.is_file() for file in report.files)
        json.dumps(report.record, allow_nan=False)
        CHECKS[step.stage](step, report)
    again = run_recipe(small_recipe(path, tmp_path / "run", stand), Silent())
    assert all(report.skipped for report in again)


def check_init(step: Step, report: StepReport) -> None:
    model = written_model(step)
    assert model.name == report.record["network"]
    assert report.record["trained"] is not value_of(step, "untrained")


def check_training(step: Step, report: StepReport) -> None:
    record = report.record
    before, after = load(value_of(step, "model")), written_model(step)
    assert record["steps"] == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in record["loss"])
    assert record["broken_images"] == []
    assert [entry["step"] for entry in steps_of(read_log(Path(record["log"])))] == [1, 2]
    assert Path(record["curve"]).read_bytes().startswith(b"\x89PNG")
    assert after.edits == before.edits
    assert after.history[-1]["command"] == step.stage
    kept_best = record["best_step"] == 0  # the start scored best
    assert same_weights(before, after) == kept_best
    if value_of(step, "validation") is not None:
        assert [steps for steps, _ in record["scores"]] == [0, 2]
    if step.stage == "finetune" and value_of(step, "teacher") is not None:
        assert after.history[-1]["teacher"] == value_of(step, "teacher").stem
        assert record["distilled"]


def check_factorize(step: Step, report: StepReport) -> None:
    record = report.record
    before, after = load(value_of(step, "model")), written_model(step)
    assert record["macs"][1] < record["macs"][0]
    assert record["params"] == [before.cost.params, after.cost.params]
    assert [edit.kind for edit in after.edits][-1] == "factorize"
    assert ("compose" in [edit.kind for edit in after.edits]) == value_of(step, "again")
    assert record["policy"]["rank"] == ("vbmf" if value_of(step, "rank") else "ratio")
    assert ("map_error" in record) == bool(value_of(step, "data"))
    assert bool(value_of(step, "reconstruct")) == any("reconstructed" in notice for notice in record["notices"])
    assert all(path.is_file() for path in (value_of(step, "save_plan"),) if path is not None)


def check_evaluate(step: Step, report: StepReport) -> None:
    assert report.record["images"] == 2
    assert set(report.record["metrics"]) >= {"AP", "AR"}  # drawn people have the joints of COCO
    found = json.loads(value_of(step, "results").read_text())
    assert all(set(person) >= {"image_id", "category_id", "keypoints", "score"} for person in found)


def check_export(step: Step, report: StepReport) -> None:
    stem = value_of(step, "model").stem
    assert {Path(file).name for file in report.record["files"]} == {f"{stem}.onnx", f"{stem}.xml", f"{stem}.bin"}
    assert [parity["ok"] for parity in report.record["parity"]] == [True, True]


def check_report(step: Step, report: StepReport) -> None:
    models = {model["label"]: model for model in report.record["models"]}
    paths = (value_of(step, "original"), *value_of(step, "variants"))
    assert list(models) == [path.stem for path in paths]
    original, *variants = models.values()
    assert all(model["macs"] < original["macs"] for model in variants)
    assert all(0 <= model[model["metric"]] <= 1 for model in models.values())
    assert {file.name for file in report.files} == {"report.html", "report.md", "report.csv", "report.json"}


CHECKS = {
    "init": check_init,
    "train": check_training,
    "finetune": check_training,
    "factorize": check_factorize,
    "evaluate": check_evaluate,
    "export": check_export,
    "report": check_report,
}


def value_of(step: Step, name: str) -> Any:
    return getattr(step.options, name)


def written_model(step: Step) -> Model:
    return load(value_of(step, "output"))


def same_weights(one: Model, other: Model) -> bool:
    weights = other.module.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in one.module.state_dict().items())


def data_of(recipe: Recipe) -> Iterator[DataText]:
    for step in recipe.steps:
        for value in step.options.model_dump().values():
            yield from (
                item for item in (value if isinstance(value, tuple) else (value,)) if isinstance(item, DataText)
            )


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_the_rule_makes_of_a_recipe_reads_only_what_stands_in(path: Path, tmp_path: Path, stand: Stand) -> None:
    recipe = small_recipe(path, tmp_path, stand)
    assert set(data_of(recipe)) <= {TRAINING, TEST, f"images:{stand.photos}"}
    reads = [value for step in recipe.steps for value in step.options.model_dump().values() if isinstance(value, Path)]
    assert all(value.is_relative_to(tmp_path) or value == stand.model for value in reads)


def test_a_recipe_asks_for_the_data_it_needs(tmp_path: Path) -> None:
    (path,) = (path for path in RECIPES if path.stem == "repose-lsp-mpii")
    with pytest.raises(UsageError, match="variable lsp has no value"):
        load_recipe(path, folder=tmp_path)
    given = {"lsp": str(tmp_path), "mpii": str(tmp_path), "device": "cpu"}
    recipe = load_recipe(path, folder=tmp_path, variables=given)
    assert recipe.steps[1].options.model_dump()["data"] == (f"lsp:{tmp_path},train", f"mpii:{tmp_path},train")
    with pytest.raises(DataError, match=r"not one of Leeds Sports Pose.*joints\.mat"):
        run_recipe(recipe, Silent())
