"""The training loop: it learns, resumes exactly, and refuses invalid settings."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stickmen import train_network
from torch import nn

from compress.data.augment import Augmentation
from compress.errors import CheckpointError, CompressError, FileError, NetworkError, RuntimeAbsent, UsageError
from compress.pose.spec import PoseSpec
from compress.training import state as state_file
from compress.training.distil import DistilWeights
from compress.training.loop import StateFile
from compress.training.options import FineTuneOptions, learning_rate
from compress.training.results import FineTuneResult, StepLog

POSE = PoseSpec()


class Killed(Exception):
    """Stands for a kill signal."""


def kill_at(step: int) -> Callable[[StepLog], None]:
    def on_step(entry: StepLog) -> None:
        if entry.step == step:
            raise Killed

    return on_step


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def train(module: nn.Module, data: Any, options: FineTuneOptions, **more: Any) -> FineTuneResult:
    return train_network(module, data, options, pose=POSE, **more)


def test_training_on_labels_lowers_the_loss_and_does_not_change_the_input(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    before = copy.deepcopy(network)
    result = train(network, stickmen(4), replace(options, steps=80, learning_rate=1e-2))
    assert equal(network, before)
    assert result.log[-1].loss < 0.5 * result.log[0].loss
    assert [entry.step for entry in result.log] == list(range(1, 81))
    assert all(entry.loss == pytest.approx(sum(entry.parts.values()), rel=1e-4) for entry in result.log)
    assert set(result.log[0].parts) == {"labels.heatmaps", "labels.pafs"}
    assert not result.module.training
    assert result.best is None


def test_a_student_learns_from_a_teacher_without_labels(
    network: nn.Module, tiny_pose: Any, stickmen: Any, options: FineTuneOptions
) -> None:
    torch.manual_seed(4)
    result = train(
        tiny_pose(), stickmen(4, annotated=False), replace(options, steps=80, learning_rate=1e-2), teacher=network
    )
    assert result.log[-1].loss < 0.5 * result.log[0].loss
    assert result.distilled == ("features", "refine")
    assert all(name.startswith("teacher.") for name in result.log[0].parts)


def test_the_losses_of_labels_and_teacher_add_up(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    both = replace(options, steps=1, label_weight=0.5, distil=DistilWeights(1.0, 0.0))
    parts = train(network, stickmen(), both, teacher=network).log[0].parts
    alone = train(network, stickmen(), replace(options, steps=1)).log[0].parts
    assert parts["labels.pafs"] == pytest.approx(0.5 * alone["labels.pafs"], rel=1e-5)
    assert parts["teacher.features.refine"] == 0
    ignored = replace(both, label_weight=0.0)
    assert "labels.pafs" not in train(network, stickmen(), ignored, teacher=network).log[0].parts


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_killed_and_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path, workers: int, ema: float | None
) -> None:
    options = replace(options, workers=workers, ema=ema, augmentation=Augmentation())
    straight = train(network, stickmen(), replace(options, workers=0), teacher=network)
    path = tmp_path / "train.state.pt"
    with pytest.raises(Killed):
        train(network, stickmen(), options, teacher=network, state=StateFile(path), on_step=kill_at(6))
    torch.manual_seed(12345)  # as in a new process
    seen: list[int] = []
    resumed = train(
        network, stickmen(), options, teacher=network, state=StateFile(path, resume=True),
        on_step=lambda entry: seen.append(entry.step),
    )  # fmt: skip
    assert seen == list(range(5, 13))
    assert equal(straight.module, resumed.module)
    assert [entry.loss for entry in resumed.log] == [entry.loss for entry in straight.log]


def test_evaluations_and_the_best_weights_survive_a_resume(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    def closeness(module: nn.Module) -> float:
        # The best score comes early, so that the best weights must be restored from the state.
        return -float((module.heatmaps.weight - network.heatmaps.weight).abs().sum())

    options = replace(options, evaluate_every=3)
    straight = train(network, stickmen(), options, score=closeness)
    path = tmp_path / "state.pt"
    with pytest.raises(Killed):
        train(network, stickmen(), options, score=closeness, state=StateFile(path), on_step=kill_at(8))
    resumed = train(network, stickmen(), options, score=closeness, state=StateFile(path, resume=True))
    assert straight.scores == resumed.scores
    assert [step for step, _ in straight.scores] == [0, 3, 6, 9, 12]
    assert straight.best == resumed.best
    assert resumed.best is not None
    assert resumed.best.step == 0
    assert equal(resumed.module, network)


def test_the_best_scoring_weights_are_returned(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    scores, kept = iter([0.1, 0.2, 0.7, 0.4, float("nan")]), []

    def evaluate(module: nn.Module) -> float:
        assert not module.training
        kept.append(copy.deepcopy(module))
        return next(scores)

    entries: list[StepLog] = []
    result = train(network, stickmen(), replace(options, evaluate_every=3), score=evaluate, on_step=entries.append)
    assert result.best is not None
    assert (result.best.step, result.best.score) == (6, 0.7)
    assert equal(result.module, kept[2])
    assert [entry.step for entry in entries if entry.best] == [3, 6]
    assert [entry.score for entry in entries if entry.step % 3 == 0][:3] == [0.2, 0.7, 0.4]
    assert all(entry.score is None for entry in entries if entry.step % 3)


def test_resuming_a_finished_run_returns_its_result(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    done = train(network, stickmen(), options, state=StateFile(path))
    again = train(network, stickmen(), options, state=StateFile(path, resume=True))
    assert equal(done.module, again.module)
    assert len(again.log) == options.steps


def test_a_kill_during_writing_leaves_the_previous_state(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state.pt"
    straight = train(network, stickmen(), options)
    save, calls = torch.save, []

    def half_written(content: object, file: Path) -> None:
        calls.append(file)
        if len(calls) == 2:
            file.write_bytes(b"half a sta")
            raise Killed
        save(content, file)

    monkeypatch.setattr(state_file.torch, "save", half_written)
    with pytest.raises(Killed):
        train(network, stickmen(), options, state=StateFile(path))
    assert torch.load(path, weights_only=True)["step"] == 4
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    assert equal(train(network, stickmen(), options, state=StateFile(path, resume=True)).module, straight.module)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"learning_rate": 1e-2}, "learning_rate was 0.003 and is now 0.01"),
        ({"steps": 20}, "steps was 12 and is now 20"),
        ({"augmentation": Augmentation()}, "augmentation.rotate was 0.0"),
        ({"distil": DistilWeights(maps=2.0)}, "distil.maps was 1.0 and is now 2.0"),
    ],
)
def test_a_run_is_not_resumed_with_other_options(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path, change: dict[str, Any], name: str
) -> None:
    path = tmp_path / "state.pt"
    train(network, stickmen(), replace(options, steps=12), state=StateFile(path))
    with pytest.raises(UsageError, match=name):
        train(network, stickmen(), replace(options, **change), state=StateFile(path, resume=True))


def test_a_run_is_not_resumed_with_other_data_teacher_or_network(
    network: nn.Module, tiny_pose: Any, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    train(network, stickmen(), options, state=StateFile(path), teacher=network)
    with pytest.raises(UsageError, match="data was 'stickmen:12' and is now 'stickmen:6'"):
        train(network, stickmen(6), options, state=StateFile(path, resume=True), teacher=network)
    with pytest.raises(UsageError, match="teacher was"):
        train(network, stickmen(), options, state=StateFile(path, resume=True), teacher=tiny_pose())
    with pytest.raises(CheckpointError, match="another network"):
        train(tiny_pose(width=16), stickmen(), options, state=StateFile(path, resume=True), teacher=network)


def test_a_file_that_is_not_a_state_is_refused(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    with pytest.raises(FileError, match="training state"):
        train(network, stickmen(), options, state=StateFile(path, resume=True))
    path.write_bytes(b"not a state at all")
    with pytest.raises(CheckpointError, match="can't be read"):
        train(network, stickmen(), options, state=StateFile(path, resume=True))
    torch.save(network.state_dict(), path)
    with pytest.raises(CheckpointError, match="not a training state"):
        train(network, stickmen(), options, state=StateFile(path, resume=True))


def test_a_diverging_run_stops_with_a_hint_and_keeps_its_state(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    wild = replace(options, learning_rate=1e30, warmup=0.0, checkpoint_every=1)
    with pytest.raises(
        CompressError, match=r"diverged at step \d+.*Lower the learning rate.*step \d+ is kept in .*state\.pt"
    ):
        train(network, stickmen(), wild, state=StateFile(path))
    kept = torch.load(path, weights_only=True)
    assert kept["step"] >= 1
    assert all(torch.isfinite(value).all() for value in kept["module"].values())


def test_frozen_modules_keep_parameters_and_statistics(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    result = train(network, stickmen(), replace(options, freeze=("feat*",))).module
    assert equal(result.features, network.features)
    assert not equal(result.refine, network.refine)
    assert all(parameter.requires_grad for parameter in result.parameters())


def test_frozen_statistics_do_not_change_while_weights_do(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    result = train(network, stickmen(), replace(options, freeze_statistics=True)).module
    ours, theirs = result.features[1], network.features[1]
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert not torch.equal(ours.weight, theirs.weight)
    moved = train(network, stickmen(), options).module.features[1]
    assert not torch.equal(moved.running_mean, theirs.running_mean)


def test_global_random_generators_are_restored(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    before = torch.get_rng_state()
    first, second, other = (train(network, stickmen(), replace(options, steps=1, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(first.module, second.module)
    assert not equal(first.module, other.module)


def test_the_moving_average_follows_the_weights(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    # After one step with decay (1 + 1) / (10 + 1) the average lies 9/11 of the way to the new weights.
    one = replace(options, steps=1)
    new = train(network, stickmen(), one).module.heatmaps.weight
    mean = train(network, stickmen(), replace(one, ema=0.9)).module.heatmaps.weight
    old = network.heatmaps.weight
    assert torch.allclose(mean, old + (new - old) * 9 / 11, atol=1e-7)


def test_weight_decay_shrinks_kernels_and_spares_biases_and_normalisation(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    # A teacher equal to the student gives no gradient, so that only the decay changes a weight.
    still = replace(options, steps=1, weight_decay=0.1, freeze=("refine",), label_weight=0.0, freeze_statistics=True)
    result = train(network, stickmen(), still, teacher=network).module
    for (name, new), old in zip(result.named_parameters(), network.parameters(), strict=True):
        if name.startswith("refine") or new.ndim == 1:
            assert torch.equal(new, old), name
        else:
            assert float(new.detach().abs().sum()) < float(old.detach().abs().sum()), name


def test_the_gradient_is_clipped(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    # Adam normalises gradients, unless they are small against its epsilon: a tiny clip makes tiny steps.
    one = replace(options, steps=1, warmup=0.0)
    far = train(network, stickmen(), one).module.pafs.weight - network.pafs.weight
    near = train(network, stickmen(), replace(one, clip=1e-12)).module.pafs.weight - network.pafs.weight
    assert float(near.detach().abs().max()) < 1e-3 * float(far.detach().abs().max())


def test_bfloat16_training_works_on_the_cpu(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    low = train(network, stickmen(), replace(options, amp="bf16"))
    full = train(network, stickmen(), options)
    assert low.log[-1].loss == pytest.approx(full.log[-1].loss, rel=0.1)
    assert all(value.dtype != torch.bfloat16 for value in low.module.state_dict().values())


def test_the_learning_rate_has_a_linear_warm_up_and_a_cosine_decay(options: FineTuneOptions) -> None:
    plan = replace(options, steps=110, learning_rate=1.0, warmup=10 / 110, final_rate=0.1)
    rates = [learning_rate(step, plan) for step in range(110)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert rates[10] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(0.1)
    assert (rates[59] + rates[60]) / 2 == pytest.approx(0.55)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = replace(plan, schedule="constant")
    assert {learning_rate(step, constant) for step in range(10, 110)} == {1.0}


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"warmup": 2.0},
        {"schedule": "step"}, {"clip": 0.0}, {"amp": "fp8"}, {"ema": 1.0}, {"workers": -1}, {"evaluate_every": 0},
        {"checkpoint_every": 0}, {"size": (0, 64)}, {"seed": -1},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: FineTuneOptions, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(options, **wrong)


def test_impossible_training_is_refused(
    network: nn.Module, tiny_pose: Any, stickmen: Any, options: FineTuneOptions
) -> None:
    with pytest.raises(UsageError, match="multiple of the stride 8"):
        train(network, stickmen(), replace(options, size=(64, 60)))
    with pytest.raises(NetworkError, match=r"feature_.*Modules: features, heatmaps"):
        train(network, stickmen(), replace(options, freeze=("feature_*",)))
    with pytest.raises(NetworkError, match="every parameter is frozen"):
        train(network, stickmen(), replace(options, freeze=("*",)))
    with pytest.raises(UsageError, match="nothing to learn from"):
        train(network, stickmen(), replace(options, label_weight=0.0))
    with pytest.raises(CompressError, match="no annotations"):
        train(network, stickmen(annotated=False), options)
    with pytest.raises(NetworkError, match="teacher's outputs"):
        train(network, stickmen(), options, teacher=tiny_pose(joints=18))
    with pytest.raises(UsageError, match="float16"):
        train(network, stickmen(), replace(options, amp="fp16"))
    with pytest.raises(RuntimeAbsent):
        train(network, stickmen(), replace(options, device="mps"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_an_error(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    with pytest.raises(RuntimeAbsent, match="no CUDA"):
        train(network, stickmen(), replace(options, device="cuda"))


def test_the_rate_drops_on_plateaus_of_the_training_loss_without_validation_and_after_a_resume(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    # A loss counts as lower only if it falls to a hundredth, so that every interval after the first is a plateau.
    plateau = replace(
        options, schedule="plateau", plateau_metric="loss", patience=0, threshold=0.99, max_drops=2, evaluate_every=2,
        warmup=0.0,
    )  # fmt: skip
    whole = train(network, stickmen(), plateau)
    rates = [entry.learning_rate / plateau.learning_rate for entry in whole.log]
    assert rates == pytest.approx([1] * 4 + [0.1] * 2 + [0.01] * 6)
    path = tmp_path / "run.state"
    with pytest.raises(Killed):
        train(network, stickmen(), plateau, state=StateFile(path), on_step=kill_at(9))
    resumed = train(network, stickmen(), plateau, state=StateFile(path, resume=True))
    assert [entry.learning_rate for entry in resumed.log] == [entry.learning_rate for entry in whole.log]
    assert equal(resumed.module, whole.module)


def test_targets_of_overlapping_people_reach_the_loss(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    parts = {
        overlap: train(network, stickmen(), replace(options, steps=1, overlap=overlap)).log[0].parts
        for overlap in (None, "lightweight", "cao")
    }
    assert parts[None] == parts["lightweight"]
    kernel = train(network, stickmen(), replace(options, steps=1, loss_kernel=0.5)).log[0].parts
    assert kernel.keys() == parts["cao"].keys()
    assert all(kernel[name] < parts[None][name] for name in kernel)
    top_down = PoseSpec(skeleton="coco17", decoder="heatmap", outputs=("heatmaps",), height=64, width=64)
    with pytest.raises(UsageError, match="no option overlap"):
        train_network(network, stickmen(), replace(options, overlap="cao"), pose=top_down)
