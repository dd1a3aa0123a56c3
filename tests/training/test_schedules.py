"""Learning rate schedules and optimizers."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from compress.errors import UsageError
from compress.training.optimizers import build_optimizer
from compress.training.options import FineTuneOptions, interval_losses, learning_rate

PLAIN = FineTuneOptions(steps=1000, learning_rate=1.0, warmup=0.0)


def rates(**changes: Any) -> list[float]:
    options = replace(PLAIN, **changes)
    return [learning_rate(step, options) for step in range(options.steps)]


def test_steps_drop_at_milestones_by_one_factor_or_one_each() -> None:
    one = rates(schedule="step", milestones=(400, 800))
    assert [one[0], one[399], one[400], one[799], one[800], one[999]] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    each = rates(schedule="step", milestones=(400, 800), gamma=(0.5, 0.002))
    assert [each[399], each[400], each[800]] == pytest.approx([1, 0.5, 0.001])


def test_an_exponential_decays_by_the_same_factor_at_every_step() -> None:
    found = rates(schedule="exponential", final_rate=7.38e-6 / 8e-5)
    assert found[-1] == pytest.approx(7.38e-6 / 8e-5)
    ratios = [b / a for a, b in pairwise(found)]
    assert max(ratios) == pytest.approx(min(ratios))


@pytest.mark.parametrize("schedule", ["cosine", "poly", "exponential"])
def test_decaying_schedules_run_from_the_highest_to_the_final_rate(schedule: Any) -> None:
    found = rates(schedule=schedule, final_rate=0.05)
    assert (found[0], found[-1]) == pytest.approx((1, 0.05))
    assert all(b < a for a, b in pairwise(found))


def test_poly_is_a_power_of_the_remaining_share() -> None:
    found = rates(schedule="poly", power=2.0, final_rate=0.0)
    assert found[333] == pytest.approx((1 - 333 / 999) ** 2)


@pytest.mark.parametrize("schedule", ["constant", "step", "poly", "exponential", "plateau"])
def test_a_warm_up_in_steps_precedes_any_schedule(schedule: Any) -> None:
    found = rates(schedule=schedule, milestones=(900,), warmup_steps=100, warmup=0.5)
    assert found[:3] == pytest.approx([0.01, 0.02, 0.03])
    assert found[99] == found[100] == 1


def test_plateau_drops_after_more_evaluations_without_improvement_than_patience() -> None:
    options = replace(PLAIN, schedule="plateau", patience=2, threshold=0.01)
    # Improvement, none, below the threshold (2), none (3: drop), none, improvement, ...
    scores = list(zip(range(0, 80, 10), [0.1, 0.2, 0.2, 0.205, 0.2, 0.2, 0.3, 0.3], strict=True))

    def rate(step: int) -> float:
        return learning_rate(step, options, scores)

    assert [rate(step) for step in (5, 35, 40, 45, 79)] == pytest.approx([1, 1, 0.1, 0.1, 0.1])
    more = [*scores, (80, 0.3), (90, 0.3), (100, 0.3)]
    assert learning_rate(95, options, more) == pytest.approx(0.01)
    assert learning_rate(95, options) == 1


def test_the_rate_of_context_cpm_drops_by_10_two_times_on_loss_plateaus_and_never_again() -> None:
    # Paper: 4e-5, "decreased by a factor of 10 two times on loss platos". Losses of ten steps each: 8, 6, then no loss
    # below 0.99 * 6 = 5.94 for three intervals (patience 2), a drop; 5, then nothing any more.
    options = replace(
        PLAIN, learning_rate=4e-5, schedule="plateau", plateau_metric="loss", patience=2, threshold=0.01, max_drops=2,
        evaluate_every=10,
    )  # fmt: skip
    losses = [(10 * (i + 1), x) for i, x in enumerate([8.0, 6.0, 5.95, 5.96, 6.1, 5.0] + [5.0] * 12)]
    rate = {step: learning_rate(step, options, losses) for step in range(0, 190, 10)}
    expected = {0: 4e-5, 40: 4e-5, 50: 4e-6, 80: 4e-6, 90: 4e-7, 120: 4e-7, 180: 4e-7}
    assert {step: rate[step] for step in expected} == pytest.approx(expected)
    unlimited = replace(options, max_drops=None)
    assert learning_rate(120, unlimited, losses) == pytest.approx(4e-8)
    assert learning_rate(180, replace(options, max_drops=0), losses) == pytest.approx(4e-5)


def test_losses_are_averaged_over_whole_intervals() -> None:
    assert interval_losses([1.0, 3.0, 5.0, 9.0, 100.0], 2) == [(2, 2.0), (4, 7.0)]
    assert interval_losses([1.0], 2) == []


def test_the_two_readings_of_the_attention_cpm_s_rate_are_decays_by_0_98() -> None:
    # Printed: "from 8e-5 to 7.38e-6" with illegible exponents. 120 epochs of 200 steps.
    epochs = replace(PLAIN, steps=24000, learning_rate=8e-5, schedule="exponential", final_rate=0.09225)
    factor = learning_rate(200, epochs) / learning_rate(0, epochs)
    assert factor == pytest.approx(0.98, abs=5e-4)
    assert learning_rate(23999, epochs) == pytest.approx(7.38e-6)
    assert pytest.approx(7.375e-6, abs=1e-9) == 8e-5 * 0.98**118
    # 8 * 0.98^4 = 7.379: the exponent of the last rate a misprint, and four decays.
    stages = replace(epochs, schedule="step", milestones=(4800, 9600, 14400, 19200), gamma=(0.98,))
    assert learning_rate(23999, stages) == pytest.approx(7.379e-5, abs=1e-8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule": "plateau", "plateau_metric": "loss"}, "evaluate_every must be set for a plateau of the loss"),
        ({"plateau_metric": "accuracy"}, "score or loss"),
        ({"max_drops": -1}, "0 or more, or None"),
        ({"loss_kernel": 0.0}, "a width above 0"),
        ({"overlap": "mean"}, "lightweight, cao"),
        ({"schedule": "stairs"}, "one of cosine, constant, step, poly"),
        ({"optimizer": "lion"}, "one of adam, adamw, sgd, rmsprop"),
        ({"schedule": "step"}, "at least one for the schedule step"),
        ({"schedule": "step", "milestones": (20, 10)}, "ascending order"),
        ({"schedule": "step", "milestones": (10, 20, 30), "gamma": (0.1, 0.2)}, "one for each milestone"),
        ({"gamma": (0.0,)}, "above 0"),
        ({"schedule": "exponential", "final_rate": 0.0}, "above 0 for an exponential"),
        ({"momentum": 1.0}, "below 1"),
        ({"warmup_steps": -1}, "0 or more"),
        ({"patience": -1}, "0 or more"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(PLAIN, **changes)


def step_of(kind: Any, steps: int = 1, **changes: Any) -> float:
    """Change that the optimizer makes to a weight of 2 with gradient 0.5."""
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    options = replace(PLAIN, optimizer=kind, learning_rate=0.1, **changes)
    optimizer = build_optimizer([{"params": [weight], "weight_decay": options.weight_decay}], options)
    for _ in range(steps):
        weight.grad = torch.tensor([0.5], dtype=torch.float64)
        optimizer.step()
    return 2.0 - float(weight.detach())


def test_each_optimizer_makes_its_own_step() -> None:
    assert step_of("sgd") == pytest.approx(0.1 * 0.5)
    assert step_of("sgd", 2, momentum=0.5) == pytest.approx(0.05 + 0.1 * (0.5 + 0.5 * 0.5))
    assert step_of("adam") == pytest.approx(0.1, rel=1e-4)
    assert step_of("adamw") == pytest.approx(0.1, rel=1e-4)
    assert step_of("rmsprop", momentum=0.0) == pytest.approx(0.1 / math.sqrt(0.01), rel=1e-4)


def test_decay_is_part_of_the_gradient_except_for_adamw() -> None:
    assert step_of("sgd", weight_decay=0.25) == pytest.approx(0.1 * (0.5 + 0.25 * 2))
    assert step_of("adam", weight_decay=0.25) == pytest.approx(0.1, rel=1e-4)
    assert step_of("adamw", weight_decay=0.25) == pytest.approx(0.1 + 0.1 * 0.25 * 2, rel=1e-4)
