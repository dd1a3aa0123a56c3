"""Plans and networks by a budget of latency: measured where the network will run, before and after."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.compression.work import Work
from compress.errors import UsageError
from compress.exporters.to_onnx import export_onnx
from compress.measure.gate import Gate, never_slower
from compress.measure.layer_latency import LatencyTable, measure_variants, spread_variants
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

#: Forms that a latency budget chooses from: kxk - 1x1 hardly ever pays, and every form costs measurements.
FORMS = ("tucker2", "svd", "tucker1_in", "spatial_vh", "spatial_hv")

#: Plans that are measured before one is fitted.
TRIALS = 4

#: A plan is good enough if its measured latency is no further below the aim than this share of it.
CLOSE = 0.03

#: Plans aim so far below the bound: two measurements of one network differ by about this much.
MARGIN = 0.015

#: Networks that are made before one is taken that is measured above the bound.
ATTEMPTS = 2


def within_latency(
    work: Work, budget: Budget, checkpoint: Model, step: int, progress: Progress
) -> tuple[Factorized, dict[str, Any]]:
    """The network for a budget of latency, and what was asked, predicted and reached.

    Layers are priced by what they cost inside the running network; the plan is measured as a whole, and where sum and
    whole differ it is made again. The fitted network is measured against the original: if it is not faster, the
    original comes back.

    Parameters
    ----------
    work : Work
        The network.
    budget : Budget
        Of kind ``latency``.
    checkpoint : Model
        Of the network.
    step : int
        Channels in which the runtime blocks.
    progress : Progress
        Told of every step.

    Raises
    ------
    RankError
        If the budget can't be met; it names the nearest one that can.
    RuntimeAbsent
        If the target is not on this machine.
    """
    assert budget.target is not None  # of every latency budget
    target = budget.target
    names = tuple(work.curves.candidates)
    variants = spread_variants(work.curves.layers, names, align=step, methods=FORMS)
    with progress.bar(f"timing layers on {target}", None):
        table = measure_variants(work.module, checkpoint.pose, work.input_size, target, variants, align=step)
    bound = budget.bound(table.original_ms)
    aim = bound * (1 - MARGIN)
    room = 1 / (1 - MARGIN)
    for attempt in range(ATTEMPTS):
        planned, measured = _settle(work, budget, checkpoint, table, aim, room, progress)
        done = work.make(planned, progress)
        with progress.bar("measuring the network", None):
            gate = _gate(work, checkpoint, target, done)
        reached = gate.ratio * table.original_ms
        if reached <= bound or gate.verdict != "faster" or attempt + 1 == ATTEMPTS:
            break
        progress.say(f"the network takes {reached:.2f} ms, which is above {bound:.2f} ms: once more with a margin")
        room = reached / aim / (1 - MARGIN)
        aim = bound / room
    record = {
        "asked": bound,
        "predicted": planned.price,
        "planned": measured,
        "reached": reached,
        "original": table.original_ms,
        "predicted_error": planned.error,
        "gate": gate.to_dict(),
    }
    if gate.verdict == "faster":
        return done, record
    progress.say(f"{gate.verdict}: the network stays as it was")
    return unchanged(work), record


def unchanged(work: Work) -> Factorized:
    """The original, and a plan that keeps all of it because nothing made it faster."""
    entries = tuple(keep_layer(layer, work.curves.kept.get(layer.name, "not_faster")) for layer in work.curves.layers)
    return Factorized(duplicate(work.module), Plan(work.network, work.input_size, entries))


def _settle(
    work: Work,
    budget: Budget,
    checkpoint: Model,
    table: LatencyTable,
    aim: float,
    room: float,
    progress: Progress,
) -> tuple[Budgeted, float]:
    """The plan of least error whose measured latency is what is aimed at, and that latency.

    Layers say what a plan should save; how much of that the whole network saved is learnt from the plans before it.
    ``room`` is what a budget has to be, as a multiple of what is aimed at: with it, the nearest one is named.
    """

    def price(name: str, candidate: Candidate) -> float:
        try:
            return table.latency_ms(name, candidate.method, candidate.ranks)
        except UsageError:  # neither may a form that was not timed look cheap, nor one of a layer merged with others
            return table.layers_ms.get(name, 0.0)

    assert budget.target is not None
    fixed = table.original_ms - sum(table.layers_ms.get(name, 0.0) for name in work.curves.candidates)
    true = 1.0
    best: tuple[Budgeted, float] | None = None
    measured = table.original_ms
    for trial in range(TRIALS):
        planned = work.plan(table.original_ms - (table.original_ms - aim) / true, price, fixed)
        if isinstance(planned, float):
            smallest = table.original_ms - (table.original_ms - planned) * true
            raise infeasible(budget, smallest * room, table.original_ms)
        settings = {entry.name: (entry.method, entry.ranks) for entry in planned.plan.changed}
        if not settings:
            return planned, table.original_ms
        with progress.bar(f"timing plan {trial + 1}", None):
            found = measure_variants(
                work.module, checkpoint.pose, work.input_size, budget.target, {"plan": settings}, fresh=True, rounds=30
            )
        measured = found.whole_ms["plan"] / found.original_ms * table.original_ms
        saved = table.original_ms - planned.price
        predicted = replace(planned, price=table.original_ms - saved * true)
        progress.say(
            f"plan {trial + 1}: predicted {predicted.price:.2f} ms, measured {measured:.2f} ms, aim {aim:.2f} ms"
        )
        if measured <= aim * (1 + MARGIN / 2):
            if best is None or planned.error < best[0].error:
                best = predicted, measured
            if measured >= aim * (1 - CLOSE):
                break
        # A plan that saves next to nothing says little; the next one may be smaller by half at most.
        true = min(1.5, max(true / 2, (table.original_ms - measured) / saved))
    if best is None:
        raise infeasible(budget, measured * room, table.original_ms)
    return best


def _gate(work: Work, checkpoint: Model, target: Target, done: Factorized) -> Gate:
    """Measure the result against the original, both as they are exported."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runners = []
        for label, module in (("original", work.module), ("result", done.module)):
            runner = runner_for(module, checkpoint, target, folder / label, work.input_size)
            stack.callback(runner.close)
            runners.append(runner)
        return never_slower(runners[0], runners[1], checkpoint.at_size(work.input_size).inputs)


def runner_for(module: nn.Module, checkpoint: Model, target: Target, stem: Path, size: tuple[int, int]) -> Runner:
    """A network on a target, exported to files beside ``stem`` where the runtime reads files."""
    if target.runtime == "torch":
        return TorchRunner(module, checkpoint.pose, device=target.device, precision=target.precision)
    return open_on_target(export_onnx(module, checkpoint.pose, stem.with_suffix(".onnx")), target, size)
