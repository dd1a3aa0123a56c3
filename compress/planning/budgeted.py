"""Ranks and forms by a budget for the whole network: one allocation over all layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.decomposition.fitting import is_finite
from compress.network.layers import LayerInfo
from compress.network.moments import Moments, gather_moments, in_groups
from compress.network.statistics import Calibration, Change, directional_errors
from compress.planning.allocate import Allocation, Choice, allocate, cheapest, least_cost
from compress.planning.curves import (
    Candidate,
    Problems,
    bounded,
    candidates,
    corrected,
    keep,
    pareto,
    reference_changes,
)
from compress.planning.curves import weight_only as only
from compress.planning.plan import LayerPlan, Plan
from compress.planning.policies import keep_layer, keep_tied, replace_layer
from compress.planning.selection import Selection, kept_by_selection

#: Images on which errors of single layers are measured; the rest are for moments.
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
        Predicted relative squared error of the final maps: the sum over layers.
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
    methods: Sequence[str] | None = None,
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
    methods : sequence of str, optional
        Forms to consider, without it all.
    progress : callable, optional
        Called as ``progress(layers done, all layers)``.
    """
    info = {layer.name: layer for layer in layers}
    found: dict[str, tuple[Candidate, ...]] = {}
    references: dict[str, list[tuple[Candidate, Change]]] = {}
    for names in in_groups(module, list(calibration.sensitivities), len(calibration.sensitivities)):
        for name, moment in gather_moments(module, module, calibration.images, calibration.sensitivities, names):
            weight = module.get_submodule(name).get_parameter("weight").detach()
            sensitivity = calibration.sensitivities[name].outputs
            if not _varies(moment):
                found[name], references[name] = (keep(info[name]),), []
                continue
            problems = Problems.of(weight, moment.covariance, sensitivity)
            found[name] = candidates(info[name], problems, methods=methods, align=align)
            references[name] = reference_changes(found[name], moment.mean, problems)
            if progress is not None:
                progress(len(found), len(calibration.sensitivities))
    measured = directional_errors(
        module, calibration.images[:PROBED], {name: [x for _, x in made] for name, made in references.items()}, seed=1
    )
    curves = {
        name: corrected(listed, [point for point, _ in references[name]], measured[name])
        for name, listed in found.items()
    }
    missing = {x.name: "unused" for x in layers if x.name not in curves and x.name not in kept}
    return Curves(tuple(layers), {**kept, **missing}, curves)


def weight_curves(
    module: nn.Module,
    layers: Sequence[LayerInfo],
    selection: Selection,
    *,
    align: int = 1,
    methods: Sequence[str] | None = None,
) -> Curves:
    """Curves of all layers that a selection allows, from their weights alone."""
    names, kept = eligible(layers, selection)
    info = {layer.name: layer for layer in layers}
    found = {}
    for name in names:
        weight = module.get_submodule(name).get_parameter("weight").detach().cpu()
        found[name] = only(info[name], weight, methods=methods, align=align)
    return Curves(tuple(layers), kept, found)


def with_prior(module: nn.Module, curves: Curves) -> Curves:
    """Curves without candidates whose ranks are below those of EVBMF: it calls nothing noise that it is not sure of.

    Layers in which it finds nothing but noise stay unbounded.
    """
    found = {}
    for name, listed in curves.candidates.items():
        weight = module.get_submodule(name).get_parameter("weight").detach()
        first, last = evbmf_kernel(weight.flatten(1) if weight[0, 0].numel() == 1 else weight)
        found[name] = bounded(listed, (first.rank, last.rank))
    return replace(curves, candidates=found)


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
) -> Budgeted | float:
    """The plan of least predicted error within a budget, or the least price that could be had if it is too small.

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
    """
    fronts = fronts_of(curves, price)
    choices = _choices(fronts, price)
    found = allocate(choices, budget - fixed)
    if found is None:
        return fixed + cheapest(choices)
    return _planned(curves, fronts, found, fixed, network, input_size)


def plan_for_error(
    curves: Curves,
    error: float,
    price: Price,
    *,
    fixed: float = 0.0,
    network: str,
    input_size: tuple[int, int],
) -> Budgeted:
    """The cheapest plan with at most so large a predicted error; parameters as of `plan_within`."""
    fronts = fronts_of(curves, price)
    return _planned(curves, fronts, least_cost(_choices(fronts, price), error), fixed, network, input_size)


def fronts_of(curves: Curves, price: Price) -> dict[str, tuple[Candidate, ...]]:
    """For each layer the candidates worth their price; the layer itself always among them."""
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
    found: Allocation,
    fixed: float,
    network: str,
    input_size: tuple[int, int],
) -> Budgeted:
    chosen = {name: front[pick] for (name, front), pick in zip(fronts.items(), found.picks, strict=True)}
    entries: list[LayerPlan] = []
    for layer in curves.layers:
        candidate = chosen.get(layer.name)
        if candidate is None or candidate.method == "keep":
            entries.append(keep_layer(layer, curves.kept.get(layer.name, "budget_kept")))
        else:
            entries.append(replace_layer(layer, candidate.method, candidate.ranks, "budget"))
    plan = Plan(network, input_size, keep_tied(curves.layers, entries))
    return Budgeted(plan, fixed + found.cost, found.error)
