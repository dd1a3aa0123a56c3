"""Fine-tuning by the public function: any network from a teacher, pose networks also from annotations."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stickmen import Stickmen, TinyPose, model_of
from torch import Tensor, nn

import compress
from compress.checkpoint.wrap import wrap
from compress.data.arrays import Tensors
from compress.data.augment import PLAIN
from compress.errors import DataError, FileError, NetworkError, UsageError
from compress.model import Model
from compress.network.inputs import Inputs
from compress.progress import Silent
from compress.training.data import DataPreparation
from compress.training.finetune import RunFiles, RunOptions, finetune_model
from compress.training.log import log_path, read_log
from compress.training.options import FineTuneOptions

OPTIONS = FineTuneOptions(
    steps=40, batch_size=4, learning_rate=1e-2, workers=0, amp="off", augmentation=PLAIN, warmup=0.0
)  # fmt: skip


class Bare(nn.Module):
    """Returns a tensor."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Points(nn.Module):
    """Reads an image and a code, and returns coordinates (N, K, 2), scores and integers in a nested tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.code = nn.Conv2d(1, 4, 3), nn.Linear(3, 4)
        self.out = nn.Linear(4, 12)

    def forward(self, image: Tensor, code: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        values = self.out(self.image(image).mean((2, 3)) + self.code(code))
        points = values[:, :8].view(-1, 4, 2)
        return {"points": points, "order": values[:, 8:].argsort(1)}, values[:, 8:]


def pair(make: Any, example: Any) -> tuple[Model, Model]:
    """Two networks of a class with different weights."""
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(wrap(make(), example))
    return models[0], models[1]


def distance(a: Model, b: Model, inputs: Inputs) -> float:
    with torch.no_grad():
        ours, theirs = a.run(inputs), b.run(inputs)
    return sum(float((ours[k] - v).square().mean()) for k, v in theirs.items() if v.is_floating_point())


def test_a_network_that_returns_a_tensor_learns_from_its_teacher_on_tensors() -> None:
    student, teacher = pair(Bare, (1, 3, 16, 12))
    before = {name: value.clone() for name, value in student.module.state_dict().items()}
    inputs = torch.randn(9, 3, 16, 12)
    tuned = compress.finetune(student, teacher=teacher, images=inputs, options=OPTIONS)
    assert distance(tuned, teacher, inputs) < 0.3 * distance(student, teacher, inputs)
    assert all(torch.equal(value, before[name]) for name, value in student.module.state_dict().items())
    assert tuned.history[-1]["command"] == "finetune"
    assert tuned.history[-1]["steps"] == 40
    assert not tuned.module.training


def test_several_inputs_and_outputs_of_any_rank_and_type() -> None:
    student, teacher = pair(Points, [(1, 1, 9, 9), (1, 3)])
    items = [(torch.randn(1, 9, 9), torch.randn(3)) for _ in range(8)]
    done = finetune_model(student, compress.images(items), replace(OPTIONS, steps=60), teacher=teacher)
    assert set(done.log[0].parts) == {"teacher.maps.output_0.points", "teacher.maps.output_1"}
    assert done.log[-1].loss < 0.3 * done.log[0].loss


@pytest.mark.parametrize("channels", [1, 3])
def test_a_network_without_a_pose_specification_is_given_images_in_its_channels(channels: int) -> None:
    student, teacher = pair(lambda: Bare(channels), (1, channels, 32, 24))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(4)]
    done = finetune_model(student, compress.images(images), OPTIONS, teacher=teacher)
    assert done.log[-1].loss < 0.5 * done.log[0].loss
    assert done.images == 4


def test_a_pose_network_learns_from_annotations_and_from_a_teacher() -> None:
    torch.manual_seed(0)
    student, teacher = model_of(TinyPose()), model_of(TinyPose())
    labelled = compress.finetune(student, data=Stickmen(4), steps=2, options=OPTIONS)
    assert labelled.history[-1]["steps"] == 2
    assert labelled.history[-1]["teacher"] is None
    both = finetune_model(student, Stickmen(4), replace(OPTIONS, steps=2, size=(64, 64)), teacher=teacher)
    assert {name.split(".")[0] for name in both.log[0].parts} == {"labels", "teacher"}
    # Images are taken without their labels, as from a folder.
    unlabelled = finetune_model(
        student, Stickmen(4), replace(OPTIONS, steps=2, size=(64, 64), label_weight=0.0), teacher=teacher
    )
    assert {name.split(".")[0] for name in unlabelled.log[0].parts} == {"teacher"}


def test_a_teacher_with_another_return_structure_is_read_by_its_own_outputs() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = TinyPose()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            final = self.net(x)[-1]
            return final["pafs"], final["heatmaps"]

    torch.manual_seed(0)
    student, teacher = model_of(TinyPose()), wrap(Pair(), (1, 3, 64, 64), pose=compress.PoseSpec())
    done = finetune_model(student, Stickmen(4), replace(OPTIONS, steps=2, size=(64, 64)), teacher=teacher)
    assert {"teacher.maps.heatmaps", "teacher.maps.pafs"} <= set(done.log[0].parts)


def test_unsuitable_data_and_teachers_are_refused() -> None:
    student, teacher = pair(Bare, (1, 3, 16, 12))
    inputs = torch.randn(4, 3, 16, 12)
    with pytest.raises(UsageError, match="either annotated data or images"):
        compress.finetune(student, teacher=teacher)
    with pytest.raises(UsageError, match="either annotated data or images"):
        compress.finetune(student, teacher=teacher, images=inputs, data=Stickmen())
    with pytest.raises(UsageError, match=r"no labels.*Give a teacher"):
        compress.finetune(student, images=inputs)
    with pytest.raises(UsageError, match=r"no pose specification.*Give a teacher"):
        compress.finetune(student, data=Stickmen())
    other = wrap(nn.Conv2d(3, 4, 3, 2, 1), (1, 3, 16, 12))
    with pytest.raises(NetworkError, match=r"teacher's outputs differ.*output \(1, 5, 8, 6\)"):
        compress.finetune(student, teacher=other, images=inputs)
    mixed = Tensors([torch.randn(1, 3, 16, 12), torch.randn(1, 3, 20, 12)])
    with pytest.raises(DataError, match="different shapes"):
        compress.finetune(student, teacher=teacher, images=mixed, options=OPTIONS)
    codes = wrap(Points(), [(1, 1, 9, 9), (1, 3)])
    with pytest.raises(DataError, match=r"only to a network that reads one image.*Give ready network inputs"):
        compress.finetune(codes, teacher=codes, images=Stickmen())


def run_options(folder: Path, **files: Any) -> RunOptions:
    return RunOptions(DataPreparation(strict=True), files=RunFiles(folder / "tuned.pt", **files))


def test_a_run_writes_log_curve_and_state_beside_its_output(tmp_path: Path) -> None:
    options = replace(OPTIONS, steps=4, size=(64, 64), checkpoint_every=2)
    run = run_options(tmp_path)
    assert run.files is not None
    done = finetune_model(model_of(TinyPose()), Stickmen(4), options, run=run)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned.curve.png", "tuned.log.jsonl", "tuned.state"]
    assert [line["step"] for line in read_log(log_path(tmp_path / "tuned.pt"))] == [1, 2, 3, 4]
    assert len(done.log) == 4
    run.files.remove_state()
    assert not run.files.state.exists()


def test_an_interrupted_run_is_never_discarded_silently(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, options = model_of(TinyPose()), replace(OPTIONS, steps=6, size=(64, 64), checkpoint_every=2)

    class Interrupted(Silent):
        def __init__(self) -> None:
            self.steps, self.said = 0, list[str]()

        def say(self, message: str) -> None:
            self.said.append(message)

        def bar(self, description: str, total: int | None) -> Any:
            outer, bar = self, super().bar(description, total)

            class Bar:
                def __enter__(self) -> Any:
                    bar.__enter__()
                    return self.advance

                def __exit__(self, *error: Any) -> None:
                    bar.__exit__(*error)

                def advance(self, done: int, note: str = "") -> None:
                    outer.steps += done
                    if outer.steps == 5:
                        raise KeyboardInterrupt

            return Bar()

    straight = finetune_model(model, Stickmen(4), options)
    with pytest.raises(KeyboardInterrupt):
        finetune_model(model, Stickmen(4), options, run=run_options(tmp_path), progress=Interrupted())
    log = (tmp_path / "tuned.log.jsonl").read_bytes()
    with pytest.raises(FileError, match=r"interrupted run left its training state.*--resume.*--force"):
        finetune_model(model, Stickmen(4), options, run=run_options(tmp_path))
    assert (tmp_path / "tuned.log.jsonl").read_bytes() == log
    resumed = finetune_model(model, Stickmen(4), options, run=run_options(tmp_path, resume=True))
    assert [entry.loss for entry in resumed.log] == [entry.loss for entry in straight.log]
    again = finetune_model(model, Stickmen(4), options, run=run_options(tmp_path, force=True))
    assert [entry.loss for entry in again.log] == [entry.loss for entry in straight.log]
    fresh = Interrupted()
    (tmp_path / "tuned.state").unlink()
    with pytest.raises(KeyboardInterrupt):
        finetune_model(model, Stickmen(4), options, run=run_options(tmp_path, resume=True), progress=fresh)
    assert fresh.said == ["there is no training state to resume from: starting at the beginning"]
