"""Plans and networks by a budget: the search for the best use of MACs, parameters, error or keypoint accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from compress.compression.calibration import curves_of
from compress.compression.latency import within_latency
from compress.compression.work import Work
from compress.data.sample import Dataset
from compress.errors import RankError, UsageError
from compress.evaluation.score import evaluate
from compress.measure.machine import vector_channels
from compress.model import Model
from compress.network.cost import Cost, cost
from compress.network.layers import list_layers
from compress.network.output_error import map_errors
from compress.planning.budget import Budget, infeasible
from compress.planning.budgeted import Budgeted, plan_for_error, weight_curves, with_prior
from compress.planning.curves import Candidate
from compress.planning.selection import Selection
from compress.progress import Progress
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.factorize import Factorized

#: Bytes of a parameter in a checkpoint.
BYTES = 4

#: How often a budget that is known only by measuring is halved in on.
TRIALS = 6


@dataclass(frozen=True)
class BudgetRequest:
    """What a user asks of a budget.

    Attributes
    ----------
    budget : Budget
        The bound.
    selection : Selection
        Layers that may be replaced.
    align : str or None
        ``"auto"``, a number, or None.
    prior : str or None
        ``"vbmf"`` or None.
    rounds : int
        As of `factorize_with_data`.
    """

    budget: Budget
    selection: Selection
    align: str | None = None
    prior: str | None = None
    rounds: int = 12


def by_budget(
    checkpoint: Model,
    module: nn.Module,
    size: tuple[int, int],
    request: BudgetRequest,
    images: list[Tensor],
    dataset: Dataset | None,
    progress: Progress,
) -> tuple[Factorized, dict[str, Any]]:
    """The network for a budget, and a record of what was asked, predicted and reached.

    Parameters
    ----------
    checkpoint : Model
        Of the network.
    module : nn.Module
        The network itself.
    size : (int, int)
        Input size for costs and latency.
    request : BudgetRequest
        What is wanted.
    images : list of Tensor
        Calibration images, perhaps none.
    dataset : Dataset or None
        Annotated images for a budget of accuracy.
    progress : Progress
        Told of every step.
    """
    budget, layers = request.budget, list_layers(module, size)
    align = _read_align(request.align, budget)
    calibration = None
    if images:
        calibration, curves = curves_of(module, layers, request.selection, images, progress, align=align)
    else:
        curves = weight_curves(module, layers, request.selection, align=align)
    if request.prior == "vbmf":
        curves = with_prior(module, curves)
    work = Work(module, checkpoint.source.name, size, curves, calibration, request.rounds)
    if budget.kind == "error":
        done, record = within_error(work, budget, progress)
    elif budget.kind == "drop":
        if dataset is None or not dataset.annotated:
            raise UsageError("a budget of AP is measured on annotated images", found=str(budget), hint="Add --data")

        def score(candidate: nn.Module) -> float:
            with progress.bar("scoring", len(dataset)) as advance:
                runner = TorchRunner(candidate, checkpoint.pose)
                found = evaluate(dataset, runner, height=size[0], progress=lambda *_: advance(1))
            return found.score.headline[1]

        done, record = within_drop(work, budget, score, progress)
    elif budget.kind == "latency":
        done, record = within_latency(work, budget, checkpoint, align, progress)
    else:
        done, record = within_cost(work, budget, progress)
    policy = {"budget": str(budget), "align": align, "prior": request.prior, **request.selection.to_dict()}
    plan = replace(done.plan, policy=policy)
    return replace(done, plan=plan), {"budget": str(budget), **record}


def _read_align(text: str | None, budget: Budget) -> int:
    if text is None and budget.kind != "latency":
        return 1
    if text is None or text == "auto":
        return vector_channels()
    if not text.isdigit() or int(text) < 1:
        raise UsageError("--align takes auto or a whole number from 1 on", found=text)
    return int(text)


def by_macs(_: str, candidate: Candidate) -> float:
    """Price in multiply-adds."""
    return candidate.macs


def by_params(_: str, candidate: Candidate) -> float:
    """Price in parameters."""
    return candidate.params


def within_cost(work: Work, budget: Budget, progress: Progress) -> tuple[Factorized, dict[str, Any]]:
    """The network for a budget of MACs, parameters or bytes, and what was asked, predicted and reached.

    Raises
    ------
    RankError
        If the budget can't be met; it names the nearest one that can.
    """
    price, unit = (by_macs, 1) if budget.kind == "macs" else (by_params, BYTES if budget.kind == "size" else 1)
    whole = cost(work.module, work.input_size)
    total = _amount(whole, budget.kind)
    rest = total / unit - sum(price(name, listed[0]) for name, listed in work.curves.candidates.items())
    bound = budget.bound(total)
    # Folding the means into biases may add a few parameters that no plan knows of; they count against the budget.
    spare = 0.0
    while True:
        planned = work.plan((bound - spare) / unit, price, rest)
        if isinstance(planned, float):
            raise infeasible(budget, planned * unit + spare, total)
        done = work.make(planned, progress)
        reached = _amount(cost(done.module, work.input_size), budget.kind)
        if reached <= bound:
            break
        spare += reached - bound
    record = {"asked": bound, "predicted": planned.price * unit, "reached": reached, "original": total}
    return done, record | {"predicted_error": planned.error}


def within_error(work: Work, budget: Budget, progress: Progress) -> tuple[Factorized, dict[str, Any]]:
    """The cheapest network whose final maps have at most so large a relative squared error on the calibration images.

    The prediction adds up first-order errors; what is reached is measured, and the bound is searched for by it.
    """
    if work.calibration is None:
        raise RankError("an error budget is measured on images", hint="Add --data")
    images = work.calibration.images

    def lost(module: nn.Module) -> float:
        found = map_errors(work.module, module, images)
        return sum(found.values()) / len(found)

    return _search(work, budget.value, lost, progress)


def within_drop(
    work: Work, budget: Budget, score: Callable[[nn.Module], float], progress: Progress
) -> tuple[Factorized, dict[str, Any]]:
    """The cheapest network that loses at most so much accuracy.

    Parameters
    ----------
    work : Work
        The network.
    budget : Budget
        Of kind ``drop``.
    score : callable
        Accuracy of a network.
    progress : Progress
        Told of every trial.
    """
    original = score(work.module)
    done, record = _search(work, budget.value, lambda module: original - score(module), progress)
    return done, record | {"original_score": original}


def _search(
    work: Work, bound: float, lost: Callable[[nn.Module], float], progress: Progress
) -> tuple[Factorized, dict[str, Any]]:
    """The cheapest network found whose measured loss is within a bound, by bisecting the predicted error."""
    total = _amount(cost(work.module, work.input_size), "macs")
    rest = total - sum(by_macs(name, listed[0]) for name, listed in work.curves.candidates.items())
    low, high = 0.0, sum(max(x.error for x in listed) for listed in work.curves.candidates.values())
    best: tuple[Factorized, Budgeted, float] | None = None
    for _ in range(TRIALS):
        # Losses grow about in proportion, over many orders of magnitude: so the middle is the geometric one.
        middle = (max(low, high * 1e-4) * high) ** 0.5
        planned = plan_for_error(
            work.curves, middle, by_macs, fixed=rest, network=work.network, input_size=work.input_size
        )
        done = work.make(planned, progress)
        loss = lost(done.module)
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
    record = {"asked": bound, "predicted": planned.error, "reached": loss, "original": 0.0}
    return done, record | {"predicted_error": planned.error}


def _amount(found: Cost, kind: str) -> float:
    amounts: Mapping[str, float] = {"macs": found.macs, "params": found.params, "size": found.size_bytes}
    return amounts[kind]
