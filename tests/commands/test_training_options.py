"""What a training stage makes of epochs, of several data sets, and of joints that these lack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.commands.base import check_options
from compress.commands.finetune import TuneOptions, training_options
from compress.commands.options import open_dataset
from compress.data.cache import Cached
from compress.data.each_person import EachPerson
from compress.data.joined import Joined
from compress.data.source import open_data
from compress.data.synthetic import DrawnPeople
from compress.data.tolerant import Tolerant
from compress.errors import UsageError
from compress.progress import Silent
from compress.zoo.registry import pose_spec


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def say(self, message: str) -> None:
        self.messages.append(message)


def options(**values: Any) -> TuneOptions:
    found = check_options(TuneOptions, {"model": "m.pt", "output": "o.pt", **values}, "train")
    assert isinstance(found, TuneOptions)
    return found


ESA, CROWD = pose_spec("esa"), pose_spec("lightweight-openpose")


def test_epochs_and_their_milestones_become_steps() -> None:
    asked = options(epochs=150, batch_size=256, schedule="step", milestones=[40, 80])
    found = training_options(asked, ESA, 149_813)
    assert found.steps == pytest.approx(150 * 149_813 / 256, abs=1)
    assert found.milestones == (round(40 * 149_813 / 256), round(80 * 149_813 / 256))
    by_steps = training_options(options(steps=100, schedule="step", milestones=[40, 80]), ESA, 149_813)
    assert (by_steps.steps, by_steps.milestones) == (100, (40, 80))
    assert training_options(options(), ESA, 10).steps == 300
    assert training_options(options(epochs=0.001), ESA, 10).steps == 1


def test_steps_and_epochs_together_or_no_epochs_are_refused() -> None:
    with pytest.raises(UsageError, match="two ways to say the same"):
        training_options(options(epochs=1, steps=10), ESA, 10)
    with pytest.raises(UsageError, match="above 0"):
        training_options(options(epochs=0), ESA, 10)


def test_the_mean_of_the_loss_counts_joints_and_cells() -> None:
    assert training_options(options(), ESA, 10).label_weight == 1
    mean = training_options(options(loss="mean"), ESA, 10)
    assert mean.label_weight == pytest.approx(1 / (17 * 64 * 48))
    weighted = training_options(options(loss="mean", size="128x96"), ESA, 10, label_weight=0.5)
    assert weighted.label_weight == pytest.approx(0.5 / (17 * 32 * 24))


def test_all_that_a_recipe_says_arrives_in_the_loop() -> None:
    values = {"optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.3, "warmup_steps": 7, "schedule": "plateau",
              "gamma": [0.2], "patience": 3, "threshold": 0.1, "power": 2.0, "final_rate": 0.2, "weight_decay": 0.01,
              "clip": 2.0}  # fmt: skip
    found = training_options(options(**values), ESA, 10)
    assert {name: getattr(found, name) for name in values} == {**values, "gamma": (0.2,)}
    views = {"scale": (0.5, 1.1), "person_scale": 0.6, "rotate": 40.0, "rotated": 0.6, "shift": 0.11, "colour": 0.0,
             "channels": 0.5, "half_body": 0.3, "body_mask": 0.4}  # fmt: skip
    augmentation = training_options(options(**views), ESA, 10).augmentation
    assert {name: getattr(augmentation, name) for name in views} == views


def test_several_data_sets_are_joined_and_one_is_left_alone() -> None:
    one = open_dataset(options(data="synthetic:1:3"))
    assert isinstance(one, DrawnPeople)
    both = open_dataset(options(data=["synthetic:1:3", "synthetic:2:4"]))
    assert isinstance(both, Joined)
    assert len(both) == 7


def test_a_training_tells_which_joints_have_no_labels(tmp_path: Path) -> None:
    told = Told()
    drawn = open_data("synthetic:1:3")
    found = options(each_person=True).training_data(
        Joined(drawn, drawn), pose_spec("repose"), told, labels=True, strict=False, cache=tmp_path
    )
    assert told.messages == ["synthetic:1:3: 12 joints; no labels for neck, head_top"] * 2
    assert isinstance(found, Tolerant)
    assert isinstance(found.data, EachPerson)
    assert isinstance(found.data.data, Cached)
    assert len(found) >= 6
    assert len(found[len(found) - 1].people) == 1
    quiet = Told()
    plain = options().training_data(drawn, CROWD, quiet, labels=True, strict=True, cache=None)
    assert plain is drawn
    assert quiet.messages == []
    with pytest.raises(UsageError, match=r"learns from whole images.*each-person"):
        options(each_person=True).training_data(drawn, CROWD, told, labels=True, strict=True, cache=None)
