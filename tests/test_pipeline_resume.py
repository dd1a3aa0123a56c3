"""An interrupted training stage is resumed when its recipe is run again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from compress.checkpoint.load import load
from compress.pipeline import run_recipe
from compress.progress import Silent
from compress.recipe import Recipe, load_recipe

TEXT = """
[[stage]]
run = "init"
network = "default"
untrained = true
output = "start.pt"
[[stage]]
run = "train"
model = "start.pt"
data = "synthetic:3:4"
steps = 4
batch_size = 2
size = "64x64"
workers = 0
checkpoint_every = 1
cache = "pictures"
output = "trained.pt"
"""


class Interrupted(Exception):
    """Raised by the test to interrupt a run."""


class InterruptsAfter(Silent):
    """Progress that interrupts the program after some steps, and keeps the messages."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        def advance(done: int, note: str = "") -> None:
            self.left -= done
            if self.left == 0:
                raise Interrupted

        yield advance


def recipe(folder: Path, text: str = TEXT) -> Recipe:
    folder.mkdir(exist_ok=True)
    (folder / "r.toml").write_text(text)
    return load_recipe(folder / "r.toml", folder=folder)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_weights_of_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run_recipe(recipe(whole), Silent())
    with pytest.raises(Interrupted):
        run_recipe(recipe(parts), InterruptsAfter(2))
    assert not (parts / "trained.pt").exists()
    assert (parts / "trained.state").exists()

    second = InterruptsAfter(-1)
    reports = run_recipe(recipe(parts), second)
    assert [report.skipped for report in reports] == [True, False]
    assert any("resuming the interrupted run" in line for line in second.messages)
    assert not (parts / "trained.state").exists()
    expected, found = (load(folder / "trained.pt").module.state_dict() for folder in (whole, parts))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.slow
def test_an_interrupted_training_starts_over_when_its_options_have_changed(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_recipe(recipe(tmp_path / "x"), InterruptsAfter(2))
    progress = InterruptsAfter(-1)
    changed = TEXT.replace("steps = 4", "steps = 3")
    reports = run_recipe(recipe(tmp_path / "x", changed), progress)
    assert reports[1].record["steps"] == 3
    assert not any("resuming" in line for line in progress.messages)
