"""Recipes and the pipeline that runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress.errors import CompressError, DataError, FileError, UsageError
from compress.pipeline import run_recipe
from compress.progress import Silent
from compress.recipe import load_recipe

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

SMALL = """
title = "two stages"
[variables]
network = "default"
[[stage]]
run = "init"
network = "${network}"
output = "model.pt"
untrained = true
[[stage]]
run = "factorize"
model = "model.pt"
ratio = "1/3"
output = "small.pt"
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid(path: Path, tmp_path: Path) -> None:
    folders = ("assets", "coco", "lip", "lsp", "mpii")
    values = {name: str(tmp_path) for name in folders if f"${{{name}}}" in path.read_text()}
    recipe = load_recipe(path, folder=tmp_path, variables=values)
    assert recipe.title
    assert recipe.steps


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('ratio = "1/3"', 'ration = "1/3"', "ration is unknown"),
        ('run = "factorize"', 'run = "factorise"', "unknown stage.*similar: factorize"),
        ('run = "factorize"\n', "", "does not say what to run"),
        ('model = "model.pt"', "", "model is missing"),
        ('title = "two stages"', 'titel = "x"', "unknown key"),
        ("${network}", "${net}", "variable net has no value"),
        ("untrained = true", 'untrained = "perhaps"', "untrained"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_runs(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_recipe(write(tmp_path, SMALL.replace(old, new)))


@pytest.mark.parametrize(("text", "message"), [("", "empty"), ("a = [", "not valid TOML")])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileError, match=message):
        load_recipe(write(tmp_path, text))
    with pytest.raises(UsageError, match="no \\[\\[stage\\]\\]"):
        load_recipe(write(tmp_path, 'title = "nothing"'))


def test_variables_hold_lists_and_other_variables(tmp_path: Path) -> None:
    text = """
[variables]
lsp = ""
both = ["lsp:${lsp},train", "synthetic:${seed}:4"]
seed = 7
steps = 30
[[stage]]
run = "train"
model = "m.pt"
data = "${both}"
steps = "${steps}"
output = "o.pt"
"""
    path = write(tmp_path, text)
    given = {"lsp": "/somewhere", "steps": "2"}
    options = load_recipe(path, variables=given).steps[0].options.model_dump()
    assert options["data"] == ("lsp:/somewhere,train", "synthetic:7:4")
    assert options["steps"] == 2
    drawn = load_recipe(path, variables={"both": "synthetic:3:8"}).steps[0].options.model_dump()
    assert (drawn["data"], drawn["steps"]) == (("synthetic:3:8",), 30)
    with pytest.raises(UsageError, match=r"variable lsp has no value.*--set lsp=VALUE"):
        load_recipe(path)
    with pytest.raises(UsageError, match="variable seed has no value"):
        load_recipe(write(tmp_path, text.replace("seed = 7", 'seed = "${seed}"')), variables=given)


def test_unknown_variables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such variable"):
        load_recipe(write(tmp_path, SMALL), variables={"nets": "x"})


def test_a_byte_order_mark_is_read_and_utf_16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.encode())
    assert load_recipe(path).title == "two stages"
    path.write_bytes(SMALL.encode("utf-16"))
    with pytest.raises(FileError, match=r"the recipe is not UTF-8 text but UTF-16.*Save it as UTF-8"):
        load_recipe(path)


STAGES = """
[variables]
data = "images:here"
[[stage]]
run = "finetune"
model = "~/model.pt"
network = "nets.py:Net"
teacher = "teacher.pt"
data = ["${data}", "coco:~/coco,train", "synthetic:1:2"]
validation = "coco:boxes.json,pictures"
output = "tuned.pt"
"""


def test_relative_paths_lie_in_the_recipes_folder_and_those_of_data_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.chdir(tmp_path)
    (step,) = load_recipe(write(tmp_path, STAGES), folder=Path("out")).steps
    options = step.options.model_dump()
    assert options["model"] == Path("/home/somebody/model.pt")
    assert (options["teacher"], options["output"]) == (Path("out/teacher.pt"), Path("out/tuned.pt"))
    assert options["network"] == "out/nets.py:Net"
    assert options["data"] == ("images:out/here", "coco:/home/somebody/coco,train", "synthetic:1:2")
    assert options["validation"] == "coco:out/boxes.json,out/pictures"


def test_data_named_on_the_command_line_lies_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path, STAGES)
    (step,) = load_recipe(path, folder=tmp_path / "out", variables={"data": "images:mine"}).steps
    assert step.options.model_dump()["data"][0] == f"images:{tmp_path / 'mine'}"


def test_data_that_is_only_in_the_current_folder_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As recipes were read before data lay where all other files do."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    path = write(tmp_path, STAGES)
    (step,) = load_recipe(path, folder=tmp_path / "out").steps
    assert step.options.model_dump()["data"][0] == f"images:{tmp_path / 'here'}"
    (tmp_path / "out" / "here").mkdir(parents=True)
    (step,) = load_recipe(path, folder=tmp_path / "out").steps
    assert step.options.model_dump()["data"][0] == f"images:{tmp_path / 'out' / 'here'}"


def test_data_that_can_not_be_read_is_refused_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no data set"):
        load_recipe(write(tmp_path, STAGES.replace("images:here", "picture:here")), folder=tmp_path)


@pytest.mark.parametrize(("old", "new"), [("rounds", "fit_groups")])
def test_earlier_names_of_options_are_read(tmp_path: Path, old: str, new: str) -> None:
    (_, step) = load_recipe(write(tmp_path, SMALL + f"{old} = 3\n")).steps
    assert getattr(step.options, new) == 3
    with pytest.raises(UsageError, match=f"{old} is the old name of {new}"):
        load_recipe(write(tmp_path, SMALL + f"{old} = 3\n{new} = 3\n"))


def test_finished_stages_are_skipped_until_something_they_depend_on_changes(tmp_path: Path) -> None:
    path = write(tmp_path, SMALL)

    def run(force: bool = False) -> list[bool]:
        recipe = load_recipe(path, folder=tmp_path / "out")
        return [report.skipped for report in run_recipe(recipe, Silent(), force=force)]

    assert run() == [False, False]
    first = (tmp_path / "out" / "small.pt").read_bytes()
    assert run() == [True, True]
    assert (tmp_path / "out" / "small.pt").read_bytes() == first
    path.write_text(SMALL.replace("1/3", "1/4"))
    assert run() == [True, False]
    assert (tmp_path / "out" / "small.pt").read_bytes() != first
    (tmp_path / "out" / "small.pt").write_bytes(b"spoilt")
    assert run() == [True, False]
    (tmp_path / "out" / "model.pt").unlink()
    assert run()[0] is False
    assert run(force=True) == [False, False]


def test_a_failing_stage_leaves_the_earlier_ones_finished(tmp_path: Path) -> None:
    text = SMALL + '[[stage]]\nrun = "evaluate"\nmodel = "small.pt"\ndata = "coco:nowhere"\n'
    recipe = load_recipe(write(tmp_path, text), folder=tmp_path / "out")
    with pytest.raises(CompressError):
        run_recipe(recipe, Silent())
    good = load_recipe(write(tmp_path, SMALL), folder=tmp_path / "out")
    assert [report.skipped for report in run_recipe(good, Silent())] == [True, True]


def test_variables_within_texts_are_written_as_toml_writes_them() -> None:
    path = RECIPES / "repose-lsp-mpii.toml"
    for given, expected in (({}, "joint_head=false"), ({"joint_head": "true"}, "joint_head=true")):
        options = load_recipe(path, variables={"lsp": "a", "mpii": "b", **given}).steps[0].options.model_dump()
        assert expected in options["set"]
    options = load_recipe(path, variables={"lsp": "a", "mpii": "b", "options": "coarse=8"}).steps[0].options
    assert options.model_dump()["set"] == ("coarse=8",)
