"""Latency budgets on a simulated clock: one millisecond for every million MACs, whatever the speed of this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from torch import nn

from compress.checkpoint.load import create
from compress.compression.latency import Settings, within_latency
from compress.compression.problem import BudgetProblem
from compress.compression.reached import Reached
from compress.errors import Infeasible, UsageError
from compress.measure.gate import Gate
from compress.model import Model
from compress.network.layers import list_layers
from compress.planning.budget import Budget
from compress.planning.budgeted import weight_curves
from compress.planning.plan import Plan
from compress.planning.selection import Selection
from compress.progress import Silent

SIZE = (64, 96)


@pytest.fixture(scope="module")
def problem() -> BudgetProblem:
    model: Model = create("default").at_size(SIZE)
    curves = weight_curves(model.module, model.layers, Selection(pointwise=True))
    return BudgetProblem(model, curves, None, 0)


@dataclass
class SimulatedClock:
    """A clock that derives all times from MACs.

    Attributes
    ----------
    problem : BudgetProblem
        The network and the candidates that have a price.
    excess : float
        The whole network saves this many times less than its layers say.
    finished : tuple of float
        Factors by which the finished networks, one after the other, are slower than that.
    merged : tuple of str
        Layers that the runtime merges with others, so that nothing is known of them.
    compared : list of float
        Shares of the original's latency that `compare` returned.
    """

    problem: BudgetProblem
    excess: float = 1.0
    finished: tuple[float, ...] = ()
    merged: tuple[str, ...] = ()
    compared: list[float] = field(default_factory=list)

    @property
    def original_ms(self) -> float:
        """Latency of the whole original."""
        return self.problem.model.cost.macs / 1e6

    @property
    def layers_ms(self) -> Mapping[str, float]:
        """Latency of each layer as it is."""
        listed = self.problem.curves.candidates.items()
        return {name: found[0].macs / 1e6 for name, found in listed if name not in self.merged}

    def latency_ms(self, name: str, method: str, ranks: tuple[int, ...]) -> float:
        """Latency of a layer in another form."""
        for candidate in self.problem.curves.candidates[name] if name not in self.merged else ():
            if (candidate.method, candidate.ranks) == (method, ranks):
                return candidate.macs / 1e6
        raise UsageError("not timed", found=(name, method))

    def prices(self, layers: tuple[str, ...]) -> SimulatedClock:
        """Knows all prices already."""
        assert set(layers) == set(self.problem.curves.candidates)
        return self

    def planned_share(self, settings: Settings) -> float:
        """What the whole network saves is less, by ``excess``, than what its layers say."""
        saved = sum(self.layers_ms[name] - self.latency_ms(name, *form) for name, form in settings.items())
        return 1 - saved / self.excess / self.original_ms

    def compare(self, result: nn.Module) -> Gate:
        """The finished network, slower than planned by the next factor of ``finished``."""
        share = 1 - (1 - list_layers(result, SIZE).cost.macs / self.problem.model.cost.macs) / self.excess
        place = len(self.compared)
        share *= self.finished[place] if place < len(self.finished) else 1.0
        self.compared.append(share)
        verdict = "faster" if share < 0.999 else "slower" if share > 1.001 else "no difference"
        return Gate(share, (share - 0.01, share + 0.01), 100.0, 100.0 * share, 60, verdict)


def compress(clock: SimulatedClock, share: float) -> tuple[nn.Module, Plan, Reached]:
    budget = Budget.parse(f"latency={share}@openvino-cpu")
    done, reached = within_latency(clock.problem, budget, clock, Silent())
    return done.module, done.plan, reached


@pytest.mark.parametrize("excess", [1.0, 1.3, 0.9])
def test_the_budget_is_met_even_if_the_whole_saves_more_or_less_than_its_layers(
    problem: BudgetProblem, excess: float
) -> None:
    module, plan, reached = compress(SimulatedClock(problem, excess), 0.8)
    assert plan.changed
    assert reached.reached <= reached.asked == pytest.approx(0.8 * reached.original)
    assert reached.reached >= 0.9 * reached.asked
    assert reached.predicted == pytest.approx(reached.reached, rel=0.05)
    assert list_layers(module, SIZE).cost.macs < problem.model.cost.macs


def test_a_network_that_is_measured_above_its_budget_is_made_smaller(problem: BudgetProblem) -> None:
    clock = SimulatedClock(problem, finished=(1.06,))
    _, plan, reached = compress(clock, 0.8)
    assert len(clock.compared) == 2
    assert clock.compared[0] > 0.8 >= clock.compared[1]
    assert reached.reached <= reached.asked
    assert plan.changed


def test_a_network_that_is_not_faster_is_returned_unchanged(problem: BudgetProblem) -> None:
    module, plan, reached = compress(SimulatedClock(problem, finished=(1.5,)), 0.8)
    assert reached.gate is not None
    assert reached.gate.verdict == "slower"
    assert reached.to_dict()["gate"]["verdict"] == "slower"
    assert not plan.changed
    assert {x.reason for x in plan.layers if x.name in problem.curves.candidates} == {"not_faster"}
    assert list_layers(module, SIZE).cost == problem.model.cost
    assert module is not problem.module


def test_layers_that_the_runtime_merges_with_others_are_kept(problem: BudgetProblem) -> None:
    merged = tuple(problem.curves.candidates)[::2]
    _, plan, _ = compress(SimulatedClock(problem, merged=merged), 0.9)
    changed = {x.name for x in plan.changed}
    assert changed
    assert not changed & set(merged)


def nearest(clock: SimulatedClock, share: float) -> float:
    """The nearest budget that the refusal of this one names."""
    with pytest.raises(Infeasible, match="nearest") as refused:
        compress(clock, share)
    assert refused.value.nearest in str(refused.value)
    return Budget.parse(refused.value.nearest).value


def test_the_nearest_budget_that_is_named_can_be_met(problem: BudgetProblem) -> None:
    smallest = nearest(SimulatedClock(problem), 0.01)
    assert 0.01 < smallest < 1
    _, plan, reached = compress(SimulatedClock(problem), smallest)
    assert plan.changed
    assert reached.reached <= reached.asked


def test_the_nearest_budget_allows_for_a_network_slower_than_its_plan(problem: BudgetProblem) -> None:
    smallest = nearest(SimulatedClock(problem), 0.01)
    slower = SimulatedClock(problem, finished=(1.3, 1.3))
    asked = nearest(slower, 1.1 * smallest)
    assert asked == pytest.approx(1.3 * smallest, rel=0.05)
    _, plan, reached = compress(SimulatedClock(problem, finished=(1.3, 1.3)), asked)
    assert plan.changed
    assert reached.reached <= reached.asked
