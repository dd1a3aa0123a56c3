"""Rollbacks on NaN, early stopping, recalibrated statistics, rates of factors and gradient accumulation."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from stickmen import train_network
from torch import Tensor, nn

from compress.errors import CompressError, NetworkError, UsageError
from compress.forms.registry import get_form
from compress.pose.spec import PoseSpec
from compress.training.freezing import parameter_groups
from compress.training.loop import StateFile
from compress.training.norms import recalibrate
from compress.training.options import FineTuneOptions, learning_rate
from compress.training.results import Event, FineTuneResult, StepLog

POSE = PoseSpec()


class Poison:
    """Makes outputs or gradients of chosen training passes non-finite; passes count from 1."""

    def __init__(self, *passes: int, gradient: bool = False) -> None:
        self.passes, self.gradient, self.count = passes, gradient, 0

    def __deepcopy__(self, memo: object) -> Poison:
        return self  # shared by copies of the network, so that the count continues

    def __call__(self, module: nn.Module, inputs: object, output: list[dict[str, Tensor]]) -> Any:
        if not module.training:
            return None
        self.count += 1
        if self.count not in self.passes:
            return None
        maps = output[-1]["pafs"]
        if self.gradient:
            maps.register_hook(lambda gradient: gradient * float("inf"))
            return None
        return [*output[:-1], {**output[-1], "pafs": maps * float("nan")}]


def poisoned(network: nn.Module, *passes: int, gradient: bool = False) -> nn.Module:
    spoiled = copy.deepcopy(network)
    spoiled.register_forward_hook(Poison(*passes, gradient=gradient))
    return spoiled


def train(module: nn.Module, data: Any, options: FineTuneOptions, **more: Any) -> FineTuneResult:
    return train_network(module, data, options, pose=POSE, **more)


def equal(a: nn.Module, b: nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_diverging_run_rolls_back_and_continues_at_half_the_rate(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, gradient: bool, ema: float | None
) -> None:
    # Both failures precede the first copy after the start, so that the run equals one at a quarter of the rate: the
    # same optimizer state, statistics, dropout and order of images.
    options = replace(options, ema=ema)
    slow = train(network, stickmen(), replace(options, learning_rate=options.learning_rate / 4))
    events: list[Event] = []
    steps: list[int] = []
    result = train(
        poisoned(network, 3, 7, gradient=gradient),
        stickmen(),
        options,
        on_event=events.append,
        on_step=lambda entry: steps.append(entry.step),
    )
    assert steps == [1, 2, 1, 2, 3, *range(1, 13)]
    assert [(event.kind, event.step, event.values["failed"]) for event in events] == [
        ("rollback", 0, 3), ("rollback", 0, 4),
    ]  # fmt: skip
    assert result.rollbacks == 2
    assert [entry.loss for entry in result.log] == [entry.loss for entry in slow.log]
    ours, theirs = result.module.state_dict(), slow.module.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_rolls_back_to_the_last_written_state(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    path = tmp_path / "state.pt"
    result = train(poisoned(network, 7), stickmen(), options, state=StateFile(path))
    rates = [entry.learning_rate for entry in result.log]
    planned = [learning_rate(step, options) for step in range(12)]
    assert rates == pytest.approx(planned[:4] + [rate / 2 for rate in planned[4:]])

    def stop(entry: StepLog) -> None:
        if entry.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(poisoned(network, 7), stickmen(), options, state=StateFile(path), on_step=stop)
    resumed = train(network, stickmen(), options, state=StateFile(path, resume=True))
    assert resumed.rollbacks == 1
    assert equal(resumed.module, result.module)


def test_the_best_weights_of_undone_steps_are_discarded(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    scores = iter([0.1, 0.9, 0.2, 0.3])
    options = replace(options, evaluate_every=6, checkpoint_every=None)
    result = train(poisoned(network, 9), stickmen(), options, score=lambda module: next(scores))
    assert result.scores == ((0, 0.1), (6, 0.2), (12, 0.3))
    assert result.best is not None
    assert (result.best.step, result.best.score) == (12, 0.3)


def test_a_run_that_diverges_each_time_fails(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    events: list[Event] = []
    with pytest.raises(CompressError, match=r"diverged at step 1: the loss is nan.*2 rollbacks"):
        train(poisoned(network, *range(1, 9)), stickmen(), replace(options, rollbacks=2), on_event=events.append)
    assert [event.values["rate_factor"] for event in events] == [0.5, 0.25]
    with pytest.raises(CompressError, match="diverged at step 2") as caught:
        train(poisoned(network, 2), stickmen(), replace(options, rollbacks=0))
    assert "rollback" not in str(caught.value)


def test_a_run_stops_early_without_improvement(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, tmp_path: Path
) -> None:
    values = [0.1, 0.5, 0.4, 0.5, 0.3, 0.2, 0.9]
    early, path, events = replace(options, evaluate_every=2, stop_after=2), tmp_path / "state", []
    scores = iter(values)
    result = train(
        network, stickmen(), early, score=lambda module: next(scores), state=StateFile(path), on_event=events.append
    )
    # The second 0.5 equals the best score, so that the count restarts.
    assert result.scores == tuple(zip(range(0, 11, 2), values, strict=False))
    assert result.best is not None
    assert result.best.step == 6
    assert len(result.log) == 10
    assert events[-1].kind == "early stop"
    again = train(network, stickmen(), early, score=lambda module: next(scores), state=StateFile(path, resume=True))
    assert equal(again.module, result.module)
    assert len(again.log) == 10
    with pytest.raises(UsageError, match="early stopping needs a score"):
        train(network, stickmen(), early)


def test_recalibrated_statistics_are_the_means_over_the_batches(network: nn.Module) -> None:
    norm, before = network.features[1], copy.deepcopy(network)
    batches = [torch.randn(4, 3, 64, 64) * 5 + 2 for _ in range(3)]
    network.train()
    assert recalibrate(network, iter(batches)) == 1
    seen = [network.features[0](batch) for batch in batches]
    assert torch.allclose(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0), rtol=1e-4)
    assert network.training
    assert norm.training
    assert norm.momentum == 0.1
    for (name, ours), theirs in zip(network.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(ours, theirs), name


def test_without_normalisation_no_batch_is_drawn() -> None:
    def never() -> Any:
        raise AssertionError("a batch was drawn")
        yield

    assert recalibrate(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), never()) == 0
    norm = nn.BatchNorm2d(3)
    assert recalibrate(norm, never(), frozen=(norm,)) == 0


def test_training_recalibrates_before_each_score_and_at_the_end(
    network: nn.Module, stickmen: Any, options: FineTuneOptions
) -> None:
    seen: list[Tensor] = []

    def look(module: nn.Module) -> float:
        seen.append(module.features[1].running_mean.clone())
        return float(len(seen))

    asked = replace(options, recalibrate_norms=2, evaluate_every=6)
    scored = train(network, stickmen(), asked, score=look).module
    plain = train(network, stickmen(), options).module
    unscored = train(network, stickmen(), asked).module
    assert not torch.allclose(seen[0], network.features[1].running_mean)
    assert torch.equal(scored.features[1].running_mean, seen[-1])
    # Weights are not affected: training does not read running statistics.
    for ours, theirs in ((scored, plain), (unscored, plain)):
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert torch.equal(unscored.features[1].running_mean, scored.features[1].running_mean)
    assert not torch.allclose(unscored.features[1].running_mean, plain.features[1].running_mean)
    frozen = train(network, stickmen(), replace(asked, freeze=("features",))).module
    assert torch.equal(frozen.features[1].running_mean, network.features[1].running_mean)


def test_factors_have_their_own_learning_rate(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    network.refine[0] = get_form("tucker1_out").build(network.refine[0], (4,))
    one = replace(options, steps=1, warmup=0.0, weight_decay=0.01)
    whole = train(network, stickmen(), one).module
    slow = train(network, stickmen(), replace(one, factor_rate=0.25)).module
    for (name, start), fast, other in zip(
        network.named_parameters(), whole.parameters(), slow.parameters(), strict=True
    ):
        share = 0.25 if name.startswith("refine.0.") else 1.0
        assert torch.allclose(other - start, share * (fast - start), rtol=1e-3, atol=1e-7), name
    groups = parameter_groups(network, list(network.parameters()), replace(one, factor_rate=0.25))
    assert sorted((group["rate_factor"], group["weight_decay"]) for group in groups) == [
        (0.25, 0.0), (0.25, 0.01), (1.0, 0.0), (1.0, 0.01),
    ]  # fmt: skip


def test_a_factor_rate_without_factors_is_refused(network: nn.Module, stickmen: Any, options: FineTuneOptions) -> None:
    with pytest.raises(NetworkError, match="factor_rate"):
        train(network, stickmen(), replace(options, factor_rate=0.5))


@pytest.mark.parametrize("pieces", [2, 4])
def test_gradient_accumulation_equals_a_whole_batch(
    network: nn.Module, stickmen: Any, options: FineTuneOptions, pieces: int
) -> None:
    network.refine[2].p = 0.0
    options = replace(options, freeze_statistics=True)  # otherwise each piece would be normalised separately
    whole = train(network, stickmen(), options)
    parts = train(network, stickmen(), replace(options, accumulate=pieces))
    for ours, theirs in zip(parts.log, whole.log, strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4)
    with pytest.raises(UsageError, match="multiple of 3"):
        train(network, stickmen(), replace(options, accumulate=3))


@pytest.mark.parametrize(
    "wrong", [{"accumulate": 0}, {"factor_rate": 0.0}, {"stop_after": 0}, {"recalibrate_norms": -1}, {"rollbacks": -1}]
)
def test_numbers_out_of_range_are_refused(options: FineTuneOptions, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        replace(options, **wrong)
