"""Checking a plan, perhaps edited by hand, against the network that it is applied to."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from compress.errors import PlanError, similar
from compress.forms.registry import forms_for, get_form
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerIndex, LayerInfo, list_layers
from compress.planning.plan import KEEP, KEPT, LayerPlan, Plan
from compress.planning.policies import keep_layer, replace_layer
from compress.planning.selection import obstacle


def check_plan(
    plan: Plan, module: nn.Module, network: str, input_size: tuple[int, int], layers: LayerIndex | None = None
) -> Plan:
    """Check a plan, perhaps edited by hand, against the network that it is applied to.

    Parameters
    ----------
    plan : Plan
        Layers that it does not name are kept.
    module : nn.Module
        The network; it is only read.
    network : str
        Name of the network.
    input_size : (int, int)
        H and W at which MACs are counted.
    layers : LayerIndex, optional
        Of the network, if it was made before; without it the network runs once on an image of three channels.

    Returns
    -------
    Plan
        One entry for each layer in the order of the network, with true costs and errors left open.

    Raises
    ------
    PlanError
        One error with everything that does not fit: another network, unknown layers, methods a layer can't have,
        ranks it can't use, tied layers with different ranks.
    """
    layers = list_layers(module, input_size) if layers is None else layers
    by_name = layers.by_name
    problems = []
    if plan.network != network:
        problems.append(f"it was made for {plan.network}")
    wanted: dict[str, LayerPlan] = {}
    for entry in plan.layers:
        known = by_name.get(entry.name)
        if known is None:
            problems.append(f"there is no layer {entry.name}{similar(entry.name, by_name)}")
        elif known.name in wanted:
            problems.append(f"{entry.name} is listed twice")
        else:
            wanted[known.name] = entry
            problems += _misfits(known, entry)
    for layer in layers:
        ranks = [wanted[name].ranks if name in wanted else () for name in (layer.name, layer.tied_to or layer.name)]
        if ranks[0] != ranks[1]:
            problems.append(f"{layer.name} and {layer.tied_to} have the same weight and need the same ranks")
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise PlanError(
            f"the plan does not fit the network {network}: " + "; ".join(problems[:10]) + more,
            hint="Make a plan for this network by compress factorize --dry-run --save-plan",
        )
    return replace(plan, input_size=input_size, layers=tuple(_renew(x, wanted.get(x.name)) for x in layers))


def _misfits(layer: LayerInfo, entry: LayerPlan) -> list[str]:
    """Why a plan's entry can't be applied to the layer."""
    if entry.method == KEEP:
        return []
    reason = obstacle(layer)
    if reason:
        return [f"{entry.name} can't be factorized ({KEPT[reason].removeprefix('kept: ')})"]
    shape = layer_kernel(layer)
    methods = [form.name for form in forms_for(layer)]
    if entry.method not in methods:
        return [f"{entry.name} takes the method {' or '.join(methods)}, not {entry.method}"]
    usable = get_form(entry.method).clip(shape, entry.ranks)
    if usable != entry.ranks:
        return [f"{entry.name} can use ranks of at most {usable}, not {entry.ranks}"]
    return []


def _renew(layer: LayerInfo, entry: LayerPlan | None) -> LayerPlan:
    """The plan's decision with the network's numbers."""
    if entry is None:
        return keep_layer(layer, "excluded")
    if entry.method == KEEP:
        return keep_layer(layer, entry.reason if entry.reason in KEPT else "plan")
    return replace_layer(layer, entry.method, entry.ranks, "plan" if entry.reason in KEPT else entry.reason)
