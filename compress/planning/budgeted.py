"""Ranks and forms by a budget for the whole network: one allocation over all layers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.decomposition.metric import is_finite
from compress.decomposition.problems import Problems
from compress.errors import Infeasible
from compress.network.layers import LayerInfo
from compress.network.moments import Moments, gather_moments, in_groups
from compress.network.statistics import Calibration, Change, directional_errors
from compress.planning.allocate import Allocation, Choice, allocate, cheapest, least_cost
from compress.planning.curves import (
    Candidate,
    bounded,
    candidates,
    corrected,
    keep,
    pareto,
    reference_changes,
    weight_only,
)
from compress.planning.plan import KEEP, LayerPlan, Plan
from compress.planning.policies import keep_layer, keep_tied, replace_layer
from compress.planning.selection import Selection, kept_by_selection

#: Number of images on which errors of single layers are measured; the rest are for moments.
PROBED = 24

#: What a layer costs as a candidate: (layer name, candidate) -> price.
Price = Callable[[str, Candidate], float]


@dataclass(frozen=True)
class Curves:
    """What all layers of a network could become.

    Attributes
    ----------
    layers : tuple of LayerInfo
        All layers, in the order of the network's modules.
    kept : mapping of str to str
        Layers that stay in any case, and the reason code.
    candidates : mapping of str to tuple of Candidate
        Of all other layers; the first is the layer as it is.
    """

    layers: tuple[LayerInfo, ...]
    kept: Mapping[str, str]
    candidates: Mapping[str, tuple[Candidate, ...]]


@dataclass(frozen=True)
class Budgeted:
    """A plan with what it was made for.

    Attributes
    ----------
    plan : Plan
        Method and ranks of each layer.
    price : float
        Of all layers together, in the budget's unit.
    error : float
        Predicted relative squared error of the network's outputs: the sum over layers.
    """

    plan: Plan
    price: float
    error: float


def eligible(layers: Sequence[LayerInfo], selection: Selection) -> tuple[tuple[str, ...], dict[str, str]]:
    """Layers whose curves can be measured, and the reasons of all others.

    Beside what `kept_by_selection` keeps these are layers that share a weight, and those that data-aware fitting does
    not reach: grouped and transposed ones.
    """
    kept = {name: reason for name, reason in kept_by_selection(layers, selection).items() if reason}
    shared = {x.tied_to for x in layers if x.tied_to} | {x.name for x in layers if x.tied_to}
    for layer in layers:
        if layer.name in shared:
            kept.setdefault(layer.name, "tied")
        if layer.groups > 1 or layer.kind == "conv_transpose":
            kept.setdefault(layer.name, "by_weight_only")
    return tuple(x.name for x in layers if x.name not in kept), kept


def measure_curves(
    module: nn.Module,
    layers: Sequence[LayerInfo],
    kept: Mapping[str, str],
    calibration: Calibration,
    *,
    align: int = 1,
    methods: Collection[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Error curves of all layers of a calibration, corrected by measured errors.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode.
    layers : sequence of LayerInfo
        All its layers.
    kept : mapping
        Layers that stay, with reasons.
    calibration : Calibration
        Images and the sensitivities of the layers to judge.
    align : int
        Ranks are multiples of it.
    methods : collection of str, optional
        Names of the forms to consider; without it all.
    progress : callable, optional
        Called as ``progress(layers done, all layers)``.
    """
    info = {layer.name: layer for layer in layers}
    predicted: dict[str, tuple[Candidate, ...]] = {}
    references: dict[str, list[tuple[Candidate, Change]]] = {}
    for names in in_groups(module, list(calibration.sensitivities), len(calibration.sensitivities)):
        for name, moment in gather_moments(module, module, calibration.images, calibration.sensitivities, names):
            weight = module.get_submodule(name).get_parameter("weight").detach()
            sensitivity = calibration.sensitivities[name].outputs
            if not _varies(moment):
                predicted[name], references[name] = (keep(info[name]),), []
                continue
            problems = Problems.of(weight, moment.covariance, sensitivity)
            predicted[name] = candidates(info[name], problems, methods=methods, align=align)
            references[name] = reference_changes(predicted[name], moment.mean, problems)
            if progress is not None:
                progress(len(predicted), len(calibration.sensitivities))
    changes = {name: [change for _, change in points] for name, points in references.items()}
    measured = directional_errors(module, calibration.images[:PROBED], changes, outputs=calibration.outputs, seed=1)
    curves = {
        name: corrected(listed, [point for point, _ in references[name]], measured[name])
        for name, listed in predicted.items()
    }
    missing = {x.name: "unused" for x in layers if x.name not in curves and x.name not in kept}
    return Curves(tuple(layers), {**kept, **missing}, curves)


def weight_curves(
    module: nn.Module,
    layers: Sequence[LayerInfo],
    selection: Selection,
    *,
    align: int = 1,
    methods: Collection[str] | None = None,
) -> Curves:
    """Curves of all layers that a selection allows, from their weights alone."""
    names, kept = eligible(layers, selection)
    info = {layer.name: layer for layer in layers}
    curves = {}
    for name in names:
        weight = module.get_submodule(name).get_parameter("weight").detach().cpu()
        curves[name] = weight_only(info[name], weight, methods=methods, align=align)
    return Curves(tuple(layers), kept, curves)


def with_prior(module: nn.Module, curves: Curves) -> Curves:
    """Curves without candidates whose ranks are below those of EVBMF, which are conservative.

    Layers in which it finds nothing but noise stay unbounded.
    """
    allowed = {}
    for name, listed in curves.candidates.items():
        weight = module.get_submodule(name).get_parameter("weight").detach()
        first, last = evbmf_kernel(weight.flatten(1) if weight[0, 0].numel() == 1 else weight)
        allowed[name] = bounded(listed, first.rank, last.rank)
    return replace(curves, candidates=allowed)


def _varies(moments: Moments) -> bool:
    return is_finite(moments.covariance) and float(moments.covariance.diagonal().mean()) > 0


def plan_within(
    curves: Curves,
    budget: float,
    price: Price,
    *,
    fixed: float = 0.0,
    network: str,
    input_size: tuple[int, int],
) -> Budgeted:
    """The plan of least predicted error within a budget.

    A larger budget never gives a larger predicted error.

    Parameters
    ----------
    curves : Curves
        What layers could become.
    budget : float
        For the whole network, in the unit of ``price``.
    price : callable
        Of a layer as a candidate.
    fixed : float
        What everything that is not in the curves costs.
    network : str
        Name of the network, for the plan.
    input_size : (int, int)
        H and W at which the plan's MACs are counted.

    Raises
    ------
    Infeasible
        If no plan is within the budget; ``nearest`` is the price of the cheapest one.
    """
    fronts = fronts_of(curves, price)
    choices = _choices(fronts, price)
    allocation = allocate(choices, budget - fixed)
    if allocation is None:
        raise Infeasible("no plan is within this budget", found=budget, nearest=repr(fixed + cheapest(choices)))
    return _planned(curves, fronts, allocation, fixed, network, input_size)


def plan_for_error(
    curves: Curves,
    error: float,
    price: Price,
    *,
    fixed: float = 0.0,
    network: str,
    input_size: tuple[int, int],
) -> Budgeted:
    """The cheapest plan whose predicted error is at most ``error``; other parameters as of `plan_within`."""
    fronts = fronts_of(curves, price)
    return _planned(curves, fronts, least_cost(_choices(fronts, price), error), fixed, network, input_size)


def fronts_of(curves: Curves, price: Price) -> dict[str, tuple[Candidate, ...]]:
    """The Pareto front of each layer's candidates; the layer itself is always among them."""
    fronts = {}
    for name, listed in curves.candidates.items():
        front = pareto(listed, lambda x, name=name: price(name, x))  # type: ignore[misc]
        fronts[name] = front if listed[0] in front else (*front, listed[0])
    return fronts


def _choices(fronts: Mapping[str, Sequence[Candidate]], price: Price) -> list[list[Choice]]:
    return [[Choice(price(name, x), x.error) for x in front] for name, front in fronts.items()]


def _planned(
    curves: Curves,
    fronts: Mapping[str, Sequence[Candidate]],
    allocation: Allocation,
    fixed: float,
    network: str,
    input_size: tuple[int, int],
) -> Budgeted:
    chosen = {name: front[pick] for (name, front), pick in zip(fronts.items(), allocation.picks, strict=True)}
    entries: list[LayerPlan] = []
    for layer in curves.layers:
        candidate = chosen.get(layer.name)
        if candidate is None or candidate.method == KEEP:
            entries.append(keep_layer(layer, curves.kept.get(layer.name, "budget_kept")))
        else:
            entries.append(replace_layer(layer, candidate.method, candidate.ranks, "budget"))
    plan = Plan(network, input_size, keep_tied(curves.layers, entries))
    return Budgeted(plan, fixed + allocation.cost, allocation.error)
