"""Options of training: epochs, several data sets, joints that these lack, and the teacher."""

from __future__ import annotations

from dataclasses import fields as dataclass_fields
from pathlib import Path
from typing import Any, get_args

import pytest

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.commands.attention import AttentionOptions
from compress.commands.base import check_options
from compress.commands.finetune import FinetuneOptions, load_teacher, run
from compress.commands.options import open_dataset
from compress.commands.tuning import ScheduleOptions, TuneOptions, training_settings
from compress.data.cache import Cached
from compress.data.each_person import EachPerson
from compress.data.joined import Joined
from compress.data.source import open_data
from compress.data.synthetic import DrawnPeople
from compress.data.tolerant import Tolerant
from compress.errors import CheckpointError, UsageError
from compress.pose.decoders.heatmap import HeatmapDecoder
from compress.pose.decoders.paf import PafDecoder
from compress.progress import Silent
from compress.training.data import DataPreparation, prepare_data
from compress.training.options import JointWeights, Optimizer, Schedule
from compress.zoo.attention import BETWEEN, KINDS
from compress.zoo.registry import pose_spec


class Recorded(Silent):
    """Keeps the messages."""

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
    found = training_settings(asked, ESA, 149_813)
    assert found.steps == pytest.approx(150 * 149_813 / 256, abs=1)
    assert found.milestones == (round(40 * 149_813 / 256), round(80 * 149_813 / 256))
    by_steps = training_settings(options(steps=100, schedule="step", milestones=[40, 80]), ESA, 149_813)
    assert (by_steps.steps, by_steps.milestones) == (100, (40, 80))
    assert training_settings(options(), ESA, 10).steps == 300
    assert training_settings(options(epochs=0.001), ESA, 10).steps == 1


def test_steps_with_epochs_and_zero_epochs_are_refused() -> None:
    with pytest.raises(UsageError, match="either steps or epochs"):
        training_settings(options(epochs=1, steps=10), ESA, 10)
    with pytest.raises(UsageError, match="above 0"):
        training_settings(options(epochs=0), ESA, 10)


def test_the_mean_of_the_loss_counts_joints_and_cells() -> None:
    assert training_settings(options(), ESA, 10).label_weight == 1
    mean = training_settings(options(loss="mean"), ESA, 10)
    assert mean.label_weight == pytest.approx(1 / (17 * 64 * 48))
    weighted = training_settings(options(loss="mean", size="128x96"), ESA, 10, label_weight=0.5)
    assert weighted.label_weight == pytest.approx(0.5 / (17 * 32 * 24))


def test_all_options_of_a_recipe_reach_the_training_loop() -> None:
    values = {"optimizer": "sgd", "momentum": 0.8, "learning_rate": 0.3, "warmup_steps": 7, "schedule": "plateau",
              "gamma": [0.2], "patience": 3, "threshold": 0.1, "power": 2.0, "final_rate": 0.2, "weight_decay": 0.01,
              "clip": 2.0, "plateau_metric": "loss", "max_drops": 2, "evaluate_every": 10, "loss_kernel": 0.5,
              "overlap": "cao"}  # fmt: skip
    found = training_settings(options(**values), ESA, 10)
    assert {name: getattr(found, name) for name in values} == {**values, "gamma": (0.2,)}
    views = {"scale": (0.5, 1.1), "person_scale": 0.6, "rotate": 40.0, "rotated": 0.6, "shift": 0.11, "colour": 0.0,
             "channels": 0.5, "half_body": 0.3, "body_mask": 0.4, "keypoint_mask": 0.2}  # fmt: skip
    augmentation = training_settings(options(**views), ESA, 10).augmentation
    assert {name: getattr(augmentation, name) for name in views} == views


def test_several_data_sets_are_joined_and_one_is_left_alone() -> None:
    one = open_dataset(options(data="synthetic:1:3"))
    assert isinstance(one, DrawnPeople)
    both = open_dataset(options(data=["synthetic:1:3", "synthetic:2:4"]))
    assert isinstance(both, Joined)
    assert len(both) == 7


def test_training_reports_which_joints_have_no_labels(tmp_path: Path) -> None:
    progress = Recorded()
    drawn = open_data("synthetic:1:3")
    preparation = DataPreparation(each_person=True, cache=tmp_path)
    found = prepare_data(Joined(drawn, drawn), pose_spec("repose"), preparation, progress, labels=True)
    assert progress.messages == ["synthetic:1:3: 12 joints; no labels for neck, head_top"] * 2
    assert isinstance(found, Tolerant)
    assert isinstance(found.data, EachPerson)
    assert isinstance(found.data.data, Cached)
    assert len(found) >= 6
    assert len(found[len(found) - 1].people) == 1
    quiet = Recorded()
    assert prepare_data(drawn, CROWD, DataPreparation(strict=True), quiet, labels=True) is drawn
    assert quiet.messages == []
    with pytest.raises(UsageError, match=r"person by person.*each-person"):
        prepare_data(drawn, CROWD, DataPreparation(each_person=True), quiet, labels=True)


def test_the_choices_of_the_command_line_are_those_of_the_library() -> None:
    fields = ScheduleOptions.model_fields
    assert fields["optimizer"].annotation == Optimizer
    assert fields["schedule"].annotation == Schedule
    assert fields["joint_weights"].annotation == JointWeights
    between = get_args(AttentionOptions.model_fields["between"].annotation)
    assert set(get_args(between[0])) == set(BETWEEN)
    assert set(get_args(AttentionOptions.model_fields["to"].annotation)) == set(KINDS)
    decoder = {field.name: field.type for field in dataclass_fields(PafDecoder)}
    assert {"mode", "assignment", "upsample"} <= decoder.keys()
    assert "blur" in {field.name for field in dataclass_fields(HeatmapDecoder)}


OWN = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 8, 1)
        self.heat, self.paf = nn.Conv2d(16, 19, 1), nn.Conv2d(16, 38, 1)

    def forward(self, x):
        maps = self.stem(x).relu()
        return [{"heatmaps": self.heat(maps), "pafs": self.paf(maps)}]

class Other(Net):
    def __init__(self):
        super().__init__()
        self.more = nn.Conv2d(16, 16, 1)
"""


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of the user's own, checkpoints of two factories of it and one of the package's."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "nets.py").write_text(OWN)
    for name in ("Net", "Other"):
        save(create(f"{folder / 'nets.py'}:{name}"), folder / f"{name}.pt")
    save(create("default", trained=False), folder / "default.pt")
    return folder


def teacher_options(own: Path, teacher: str, **more: Any) -> FinetuneOptions:
    values = {"model": own / "Net.pt", "output": own / "o.pt", "teacher": own / teacher, **more}
    found = check_options(FinetuneOptions, values, "finetune")
    assert isinstance(found, FinetuneOptions)
    return found


def test_the_teacher_is_built_by_the_students_network_or_by_its_own(own: Path) -> None:
    net, other = (f"{own / 'nets.py'}:{name}" for name in ("Net", "Other"))
    teacher = load_teacher(teacher_options(own, "Net.pt", network=net))
    assert teacher is not None
    assert teacher.name == net
    teacher = load_teacher(teacher_options(own, "Other.pt", network=net, teacher_network=other))
    assert teacher is not None
    assert hasattr(teacher.module, "more")
    with pytest.raises(CheckpointError, match="--network"):
        load_teacher(teacher_options(own, "Net.pt"))
    with pytest.raises(UsageError, match="--teacher-network needs --teacher"):
        load_teacher(teacher_options(own, "Net.pt").model_copy(update={"teacher": None, "teacher_network": net}))


def test_a_teacher_of_the_package_needs_no_network_beside_a_student_of_ones_own(own: Path) -> None:
    teacher = load_teacher(teacher_options(own, "default.pt", network=f"{own / 'nets.py'}:Net"))
    assert teacher is not None
    assert teacher.name == "default"


def test_a_network_of_ones_own_is_distilled_from_its_original(own: Path, tmp_path: Path) -> None:
    options = teacher_options(
        own, "Net.pt", network=f"{own / 'nets.py'}:Net", data="synthetic:1:2", steps=1, batch_size=2, workers=0,
        size="64x64",
    ).model_copy(update={"output": tmp_path / "tuned.pt"})  # fmt: skip
    done = run(options, Recorded())
    assert done.steps == 1
    assert done.written == (tmp_path / "tuned.pt",)
    assert load(tmp_path / "tuned.pt", options.network).history[-1]["teacher"] == "Net"
