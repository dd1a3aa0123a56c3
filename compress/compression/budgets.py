"""Networks within a budget: the best use of MACs, parameters, bytes, output error or keypoint accuracy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from compress.compression.latency import LatencyClock, TargetClock, within_latency
from compress.compression.problem import BudgetProblem, cheapest_price
from compress.compression.reached import Reached
from compress.errors import Infeasible, RankError
from compress.forms.registry import timed_forms
from compress.measure.machine import vector_channels
from compress.network.layers import Cost
from compress.network.output_error import output_errors
from compress.planning.budget import Budget, infeasible
from compress.planning.budgeted import Budgeted, plan_for_error
from compress.planning.curves import Candidate
from compress.progress import Progress
from compress.surgery.factorize import Factorized

#: Bytes of a parameter in a checkpoint.
PARAMETER_BYTES = 4

#: Number of bisection steps for a budget whose outcome is only known by measuring.
BISECTIONS = 6

#: Accuracy of a network, or another score of which more is better.
Scorer = Callable[[nn.Module], float]


def alignment(align: int | str | None, budget: Budget) -> int:
    """The number that ranks are multiples of: as asked, else the vector width for latency and 1 for the rest."""
    if isinstance(align, int):
        return align
    return vector_channels() if align == "auto" or budget.kind == "latency" else 1


def considered_forms(budget: Budget) -> tuple[str, ...] | None:
    """Names of the forms whose error curves a budget needs; None for all.

    Curves are corrected by errors measured at a few of their points, so forms that a budget can't choose are left out
    of them instead of only being priced like the layer itself.
    """
    return timed_forms() if budget.kind == "latency" else None


def within_budget(
    problem: BudgetProblem,
    budget: Budget,
    progress: Progress,
    *,
    score: Scorer | None = None,
    clock: LatencyClock | None = None,
    align: int = 1,
) -> tuple[Factorized, Reached]:
    """The network for a budget of any kind, and the record of what was asked, predicted and reached.

    Parameters
    ----------
    problem : BudgetProblem
        The model and what its layers could become.
    budget : Budget
        The bound.
    progress : Progress
        Receives every step.
    score : callable, optional
        Accuracy of a network; a budget of kind ``drop`` needs it.
    clock : LatencyClock, optional
        What measures latency; by default the target of the budget.
    align : int
        Width of the steps in which ranks cost time.

    Raises
    ------
    Infeasible
        If the budget can't be met; it names the nearest one that can.
    RankError
        If a budget of error has no images, one of accuracy no annotations, or no network within it is found.
    RuntimeAbsent
        If the target of a latency budget is not on this machine.
    """
    if budget.kind == "error":
        return within_error(problem, budget, progress)
    if budget.kind == "drop":
        if score is None:
            raise RankError(
                "a budget of accuracy is measured on annotated images with a pose network",
                found=str(budget),
                hint="Give annotated images, such as coco:DIR, or a budget of kind error",
            )
        return within_drop(problem, budget, score, progress)
    if budget.kind == "latency":
        assert budget.target is not None  # of every latency budget
        return within_latency(problem, budget, clock or TargetClock(problem.model, budget.target, align), progress)
    return within_cost(problem, budget, progress)


def by_macs(_: str, candidate: Candidate) -> float:
    """Price in multiply-adds."""
    return candidate.macs


def by_params(_: str, candidate: Candidate) -> float:
    """Price in parameters."""
    return candidate.params


def within_cost(problem: BudgetProblem, budget: Budget, progress: Progress) -> tuple[Factorized, Reached]:
    """The network for a budget of MACs, parameters or bytes.

    Raises
    ------
    Infeasible
        If the budget can't be met; it names the nearest one that can.
    """
    price, unit = (
        (by_macs, 1) if budget.kind == "macs" else (by_params, PARAMETER_BYTES if budget.kind == "size" else 1)
    )
    total = amount(problem.model.cost, budget.kind)
    fixed = total / unit - sum(price(name, listed[0]) for name, listed in problem.curves.candidates.items())
    bound = budget.bound(total)
    # Folding the means into biases may add a few parameters that no plan knows of; they count against the budget.
    spare = 0.0
    while True:
        try:
            planned = problem.plan((bound - spare) / unit, price, fixed)
        except Infeasible as error:
            raise infeasible(budget, cheapest_price(error) * unit + spare, total) from None
        done = problem.build(planned, progress)
        reached = amount(done.layers.cost, budget.kind)
        if reached <= bound:
            break
        spare += reached - bound
    return done, Reached(str(budget), bound, planned.price * unit, reached, total, planned.error)


def within_error(problem: BudgetProblem, budget: Budget, progress: Progress) -> tuple[Factorized, Reached]:
    """The cheapest network whose outputs have at most this relative squared error on the calibration images.

    The prediction adds up first-order errors; the reached error is measured, and the bound is bisected by it.
    """
    if problem.calibration is None:
        raise RankError("an error budget is measured on images", hint="Add --data")
    images = problem.calibration.images

    def loss(module: nn.Module) -> float:
        errors = output_errors(problem.module, module, images, problem.model.outputs)
        return sum(errors.values()) / len(errors)

    return _bisect(problem, budget, loss, progress)


def within_drop(
    problem: BudgetProblem, budget: Budget, score: Scorer, progress: Progress
) -> tuple[Factorized, Reached]:
    """The cheapest network found that loses at most this much accuracy.

    Parameters
    ----------
    problem : BudgetProblem
        The model.
    budget : Budget
        Of kind ``drop``.
    score : callable
        Accuracy of a network.
    progress : Progress
        Receives every trial.
    """
    original = score(problem.module)
    done, reached = _bisect(problem, budget, lambda module: original - score(module), progress)
    return done, replace(reached, original_score=original)


def _bisect(
    problem: BudgetProblem, budget: Budget, loss_of: Callable[[nn.Module], float], progress: Progress
) -> tuple[Factorized, Reached]:
    """The cheapest network found whose measured loss is within a bound, by bisecting the predicted error."""
    model, candidates, bound = problem.model, problem.curves.candidates, budget.value
    total = model.cost.macs
    fixed = total - sum(by_macs(name, listed[0]) for name, listed in candidates.items())
    low, high = 0.0, sum(max(x.error for x in listed) for listed in candidates.values())
    best: tuple[Factorized, Budgeted, float] | None = None
    for _ in range(BISECTIONS):
        # Losses grow about in proportion, over many orders of magnitude: so the middle is the geometric one.
        middle = (max(low, high * 1e-4) * high) ** 0.5
        planned = plan_for_error(
            problem.curves, middle, by_macs, fixed=fixed, network=model.name, input_size=model.size
        )
        done = problem.build(planned, progress)
        loss = loss_of(done.module)
        progress.say(f"predicted error {planned.error:.4f}: {planned.price / total:.1%} of the MACs, loss {loss:.4f}")
        if loss <= bound:
            low, best = middle, (done, planned, loss)
        else:
            high = middle
    if best is None:
        raise RankError(
            "no smaller network within this bound was found",
            found=bound,
            hint="Allow more, or calibrate on more images",
        )
    done, planned, loss = best
    return done, Reached(str(budget), bound, planned.error, loss, 0.0, planned.error)


def amount(cost: Cost, kind: str) -> float:
    """The part of a cost that a kind of budget bounds."""
    amounts = {"macs": cost.macs, "params": cost.params, "size": cost.size_bytes}
    return amounts[kind]
