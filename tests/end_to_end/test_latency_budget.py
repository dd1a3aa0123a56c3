"""Latency budgets where time is known: a millisecond for every million MACs, whatever this machine does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from torch import nn

from compress.checkpoint.load import create
from compress.compression import latency as latency_budget
from compress.compression.latency import within_latency
from compress.compression.work import Work
from compress.errors import RankError, UsageError
from compress.measure.gate import Gate
from compress.model import Model
from compress.network.cost import cost
from compress.network.layers import list_layers
from compress.planning.budget import Budget
from compress.planning.budgeted import weight_curves
from compress.planning.plan import Plan
from compress.planning.selection import Selection
from compress.progress import Silent

SIZE = (64, 96)


class Table:
    """Prices of layers by their MACs; whole networks take ``excess`` times as long as their layers say."""

    def __init__(self, work: Work, variants: Mapping[str, Any], excess: float, merged: tuple[str, ...] = ()) -> None:
        self.listed = {name: found for name, found in work.curves.candidates.items() if name not in merged}
        self.layers_ms = {name: found[0].macs / 1e6 for name, found in self.listed.items()}
        self.original_ms = cost(work.module, SIZE).macs / 1e6
        self.whole_ms = {}
        for label, settings in variants.items():
            entries = {
                (name, x.method, x.ranks): x.macs for name, found in self.listed.items() for x in found
            }  # of the same shapes for whatever is asked
            saved = sum(
                self.layers_ms[name] - entries[name, method, ranks] / 1e6
                for name, (method, ranks) in settings.items()
                if (name, method, ranks) in entries
            )
            self.whole_ms[label] = self.original_ms - saved / excess

    def latency_ms(self, name: str, method: str, ranks: tuple[int, ...]) -> float:
        """As of the measured table."""
        for x in self.listed.get(name, ()):
            if (x.method, x.ranks) == (method, ranks):
                return x.macs / 1e6
        raise UsageError("not timed", found=(name, method))


@pytest.fixture(scope="module")
def checkpoint() -> Model:
    return create("default")


@pytest.fixture(scope="module")
def work(checkpoint: Model) -> Work:
    module = checkpoint.module
    curves = weight_curves(module, list_layers(module, SIZE), Selection(pointwise=True))
    return Work(module, "default", SIZE, curves, None, 0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, work: Work) -> Callable[..., list[float]]:
    """Set what whole networks take beside what their layers say, and what the gate then says of the made ones."""

    def patch(excess: float = 1.0, gates: tuple[float, ...] = (), merged: tuple[str, ...] = ()) -> list[float]:
        seen: list[float] = []

        def measure(*_: Any, **__: Any) -> Table:
            return Table(work, _[4], excess, merged)  # its fifth argument: the variants

        def gate(_: Work, __: Model, ___: Any, done: Any) -> Gate:
            share = 1 - (1 - cost(done.module, SIZE).macs / cost(work.module, SIZE).macs) / excess
            seen.append(share * (gates[len(seen)] if len(seen) < len(gates) else 1.0))
            verdict = "faster" if seen[-1] < 0.999 else "slower" if seen[-1] > 1.001 else "no difference"
            return Gate(seen[-1], (seen[-1] - 0.01, seen[-1] + 0.01), 100.0, 100.0 * seen[-1], 60, verdict)

        monkeypatch.setattr(latency_budget, "measure_variants", measure)
        monkeypatch.setattr(latency_budget, "_gate", gate)
        return seen

    return patch


def run(work: Work, checkpoint: Model, share: float) -> tuple[nn.Module, Plan, dict[str, Any]]:
    budget = Budget.parse(f"latency={share}@openvino-cpu")
    done, record = within_latency(work, budget, checkpoint, 8, Silent())
    return done.module, done.plan, record


@pytest.mark.parametrize("excess", [1.0, 1.3, 0.9])
def test_a_network_is_within_its_budget_though_sums_and_wholes_differ(
    work: Work, checkpoint: Model, clock: Callable[..., list[float]], excess: float
) -> None:
    clock(excess)
    module, plan, record = run(work, checkpoint, 0.8)
    assert plan.changed
    assert record["reached"] <= record["asked"] == pytest.approx(0.8 * record["original"])
    assert record["reached"] >= 0.9 * record["asked"]
    assert record["predicted"] == pytest.approx(record["reached"], rel=0.05)
    assert cost(module, SIZE).macs < cost(work.module, SIZE).macs


def test_a_network_that_is_measured_above_its_budget_is_made_smaller(
    work: Work, checkpoint: Model, clock: Callable[..., list[float]]
) -> None:
    seen = clock(gates=(1.06,))
    _, plan, record = run(work, checkpoint, 0.8)
    assert len(seen) == 2
    assert seen[0] > 0.8 >= seen[1]
    assert record["reached"] <= record["asked"]
    assert plan.changed


def test_a_network_that_is_not_faster_comes_back_as_it_was(
    work: Work, checkpoint: Model, clock: Callable[..., list[float]]
) -> None:
    clock(gates=(1.5,))
    module, plan, record = run(work, checkpoint, 0.8)
    assert record["gate"]["verdict"] == "slower"
    assert not plan.changed
    assert {x.reason for x in plan.layers if x.name in work.curves.candidates} == {"not_faster"}
    assert cost(module, SIZE) == cost(work.module, SIZE)
    assert module is not work.module


def test_layers_that_the_runtime_merges_with_others_are_left_alone(
    work: Work, checkpoint: Model, clock: Callable[..., list[float]]
) -> None:
    merged = tuple(work.curves.candidates)[::2]
    clock(merged=merged)
    _, plan, _ = run(work, checkpoint, 0.9)
    changed = {x.name for x in plan.changed}
    assert changed
    assert not changed & set(merged)


def test_a_budget_below_what_can_be_reached_names_the_nearest(
    work: Work, checkpoint: Model, clock: Callable[..., list[float]]
) -> None:
    clock()
    with pytest.raises(RankError, match="nearest") as refused:
        run(work, checkpoint, 0.01)
    assert "latency=" in str(refused.value)


@pytest.mark.parametrize("late", [(), (1.3,)])
def test_the_nearest_budget_that_is_named_can_be_met(
    work: Work, checkpoint: Model, clock: Callable[..., list[float]], late: tuple[float, ...]
) -> None:
    """Also where the fitted network took longer than its plan, so that the plan had to be smaller than the budget."""
    clock()
    with pytest.raises(RankError) as refused:
        run(work, checkpoint, 0.01)
    smallest = Budget.parse(refused.value.hint.split("budget is ")[1].split(";")[0]).value
    asked = 1.1 * smallest if late else smallest
    clock(gates=late * 2)
    if late:
        with pytest.raises(RankError) as refused:
            run(work, checkpoint, asked)
        nearest = Budget.parse(refused.value.hint.split("budget is ")[1].split(";")[0]).value
        assert nearest == pytest.approx(late[0] * smallest, rel=0.05)
        asked = nearest
        clock(gates=late * 2)
    _, plan, record = run(work, checkpoint, asked)
    assert plan.changed
    assert record["reached"] <= record["asked"]
