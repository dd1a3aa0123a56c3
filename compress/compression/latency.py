"""Networks within a budget of latency, measured on the target before and after."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from torch import nn

from compress.compression.problem import BudgetProblem, cheapest_price
from compress.compression.reached import Reached
from compress.errors import Infeasible, UsageError
from compress.exporters.to_onnx import export_onnx
from compress.forms.registry import timed_forms
from compress.measure.gate import Gate, never_slower
from compress.measure.layer_latency import LatencyTable, VariantTimingOptions, measure_variants, spread_variants
from compress.measure.on_target import open_on_target
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.planning.budget import Budget, infeasible
from compress.planning.budgeted import Budgeted
from compress.planning.curves import Candidate
from compress.planning.plan import Plan
from compress.planning.policies import keep_layer
from compress.progress import Progress
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.factorize import Factorized
from compress.target import Target

#: Number of plans that are measured before one is fitted.
PLANS = 4

#: A plan is good enough if its measured latency is at most this share below the aim.
CLOSE = 0.03

#: Plans aim this far below the bound: two measurements of one network differ by about as much.
MARGIN = 0.015

#: Number of networks that are built before one is taken that is measured above the bound.
ATTEMPTS = 2

#: Form and ranks of the replaced layers of a plan.
Settings = Mapping[str, tuple[str, tuple[int, ...]]]


class LatencyPrices(Protocol):
    """Measured latencies of layers and of whole networks, in ms."""

    @property
    def original_ms(self) -> float:
        """Latency of the original network."""

    @property
    def layers_ms(self) -> Mapping[str, float]:
        """Latency of each layer as it is, for those that could be measured."""

    def latency_ms(self, name: str, method: str, ranks: tuple[int, ...]) -> float:
        """Latency of a layer in a form; `UsageError` if that was not measured."""


class LatencyClock(Protocol):
    """What measures latencies for a budget."""

    def prices(self, layers: tuple[str, ...]) -> LatencyPrices:
        """Latencies of these layers as they are and in other forms, each inside the running network."""

    def planned_share(self, settings: Settings) -> float:
        """Latency of the network with these layers replaced, as a share of the original's."""

    def compare(self, result: nn.Module) -> Gate:
        """Latency of a finished network beside the original."""


@dataclass(frozen=True)
class TargetClock:
    """Measures on a target of this machine.

    Attributes
    ----------
    model : Model
        The original.
    target : Target
        Runtime, device and precision.
    align : int
        Channels in which the runtime blocks.
    """

    model: Model
    target: Target
    align: int

    def prices(self, layers: tuple[str, ...]) -> LatencyTable:
        """Time all layers in many forms."""
        variants = spread_variants(self.model.layers, layers, align=self.align, methods=timed_forms())
        options = VariantTimingOptions(align=self.align)
        return measure_variants(self.model, self.target, variants, options=options)

    def planned_share(self, settings: Settings) -> float:
        """Time a whole network before its factors are fitted."""
        options = VariantTimingOptions(rounds=30, fresh=True)
        found = measure_variants(self.model, self.target, {"plan": settings}, options=options)
        return found.whole_ms["plan"] / found.original_ms

    def compare(self, result: nn.Module) -> Gate:
        """Time the result and the original side by side, both as they are exported."""
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            runners = []
            for label, module in (("original", self.model.module), ("result", result)):
                runner = runner_for(self.model.derive(module), self.target, folder / label)
                stack.callback(runner.close)
                runners.append(runner)
            return never_slower(runners[0], runners[1], self.model.inputs)


def runner_for(model: Model, target: Target, stem: Path) -> Runner:
    """A model on a target, exported to files beside ``stem`` if the runtime reads files."""
    if target.runtime == "torch":
        return TorchRunner.of(model, target)
    return open_on_target(export_onnx(model, stem.with_suffix(".onnx")), target, model.size)


def within_latency(
    problem: BudgetProblem, budget: Budget, clock: LatencyClock, progress: Progress
) -> tuple[Factorized, Reached]:
    """The network for a budget of latency.

    Layers are priced by what they cost inside the running network; the plan is measured as a whole, and revised where
    the sum of the layers and the whole differ. The fitted network is measured beside the original: if it is not
    faster, the original is returned.

    Parameters
    ----------
    problem : BudgetProblem
        The model.
    budget : Budget
        Of kind ``latency``.
    clock : LatencyClock
        What measures.
    progress : Progress
        Receives every step.

    Raises
    ------
    Infeasible
        If the budget can't be met; it names the nearest one that can.
    RuntimeAbsent
        If the target is not on this machine.
    """
    with progress.bar(f"timing layers on {budget.target}", None):
        prices = clock.prices(tuple(problem.curves.candidates))
    bound = budget.bound(prices.original_ms)
    aim = bound * (1 - MARGIN)
    for attempt in range(ATTEMPTS):
        planned, measured = _Search(problem, budget, clock, prices, aim, bound / aim).settle(progress)
        done = problem.build(planned, progress)
        with progress.bar("measuring the network", None):
            gate = clock.compare(done.module)
        reached = gate.ratio * prices.original_ms
        if reached <= bound or gate.verdict != "faster" or attempt + 1 == ATTEMPTS:
            break
        progress.say(f"the network takes {reached:.2f} ms, which is above {bound:.2f} ms: once more with a margin")
        aim = bound * aim / reached * (1 - MARGIN)
    record = Reached(
        str(budget), bound, planned.price, reached, prices.original_ms, planned.error, planned=measured, gate=gate
    )
    if gate.verdict == "faster":
        return done, record
    progress.say(f"{gate.verdict}: the network stays as it was")
    return unchanged(problem), record


def unchanged(problem: BudgetProblem) -> Factorized:
    """The original, and a plan that keeps all of it because nothing made it faster."""
    model, kept = problem.model, problem.curves.kept
    entries = tuple(keep_layer(layer, kept.get(layer.name, "not_faster")) for layer in problem.curves.layers)
    return Factorized(duplicate(model.module), Plan(model.name, model.size, entries), model.layers)


@dataclass(frozen=True)
class _Search:
    """The search for the plan of least error whose measured latency is ``aim``.

    ``margin`` is the ratio of bound and aim, by which the nearest feasible budget is named.
    """

    problem: BudgetProblem
    budget: Budget
    clock: LatencyClock
    prices: LatencyPrices
    aim: float
    margin: float

    def price(self, name: str, candidate: Candidate) -> float:
        """Latency of a layer as a candidate."""
        try:
            return self.prices.latency_ms(name, candidate.method, candidate.ranks)
        except UsageError:  # neither may a form that was not timed look cheap, nor one of a layer merged with others
            return self.prices.layers_ms.get(name, 0.0)

    def settle(self, progress: Progress) -> tuple[Budgeted, float]:
        """The plan, and its measured latency in ms.

        Layers predict what a plan saves; which share of that the whole network really saves is learnt from the plans
        before it.
        """
        original, aim = self.prices.original_ms, self.aim
        fixed = original - sum(self.prices.layers_ms.get(name, 0.0) for name in self.problem.curves.candidates)
        realised = 1.0
        best: tuple[Budgeted, float] | None = None
        measured = original
        for number in range(1, PLANS + 1):
            try:
                planned = self.problem.plan(original - (original - aim) / realised, self.price, fixed)
            except Infeasible as error:
                smallest = original - (original - cheapest_price(error)) * realised
                raise infeasible(self.budget, smallest * self.margin, original) from None
            settings = {entry.name: (entry.method, entry.ranks) for entry in planned.plan.changed}
            if not settings:
                return planned, original
            with progress.bar(f"timing plan {number}", None):
                measured = self.clock.planned_share(settings) * original
            saved = original - planned.price
            predicted = replace(planned, price=original - saved * realised)
            progress.say(
                f"plan {number}: predicted {predicted.price:.2f} ms, measured {measured:.2f} ms, aim {aim:.2f} ms"
            )
            if measured <= aim * (1 + MARGIN / 2):
                if best is None or planned.error < best[0].error:
                    best = predicted, measured
                if measured >= aim * (1 - CLOSE):
                    break
            # A plan that saves next to nothing says little; the next one may be smaller by half at most.
            realised = min(1.5, max(realised / 2, (original - measured) / saved))
        if best is None:
            raise infeasible(self.budget, measured * self.margin, original)
        return best
