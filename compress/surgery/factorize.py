"""Applying a plan to a network: decompose each kernel and put its factors in the layer's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from compress.errors import NetworkError, RankError
from compress.forms.base import LayerFactors
from compress.forms.registry import get_form
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, image_input
from compress.network.layers import LayerIndex
from compress.planning.check import check_plan
from compress.planning.plan import LayerPlan, Plan
from compress.surgery.substitute import build_like, factorize_in_place


@dataclass(frozen=True)
class Factorized:
    """A network after surgery.

    Attributes
    ----------
    module : nn.Module
        The new network.
    plan : Plan
        What was done, with true costs and the errors of each replaced kernel.
    layers : LayerIndex
        Of the new network.
    biases : tuple of str
        Layers that had no bias and got one.
    """

    module: nn.Module
    plan: Plan
    layers: LayerIndex
    biases: tuple[str, ...] = ()


def factorize(
    module: nn.Module,
    plan: Plan,
    inputs: Sequence[InputSpec] | None = None,
    *,
    layers: LayerIndex | None = None,
) -> Factorized:
    """Factorize the layers of a network as planned, from their weights alone.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was and shares nothing with the new one.
    plan : Plan
        A plan for this network, from `compress.planning.policies.make_plan` or edited by hand.
    inputs : sequence of InputSpec, optional
        What the network reads; without it one colour image of the plan's size.
    layers : LayerIndex, optional
        Of the network at these inputs, if it was made before; without it the network runs once more.

    Raises
    ------
    PlanError
        If the plan does not fit the network.
    RankError
        If a kernel has values that are not finite.
    NetworkError
        If the network's code does not work with a replaced layer, because it reads the layer's attributes or reaches
        it in another way than by its name.
    """
    inputs = image_input(plan.input_size) if inputs is None else inputs
    layers = LayerIndex.of(module, inputs) if layers is None else layers
    plan = check_plan(plan, module, plan.network, plan.input_size, layers)
    network = duplicate(module)
    made: dict[Any, LayerFactors] = {}
    factors = {}
    for entry in plan.changed:
        layer = network.get_submodule(entry.name)
        weight = layer.get_parameter("weight")
        if weight not in made:  # tied layers have one weight, and so one set of factors
            made[weight] = decompose(layer, entry)
        factors[entry.name] = made[weight]
    return finish(install(network, plan.changed, factors), plan, factors, inputs)


def decompose(layer: nn.Module, entry: LayerPlan) -> LayerFactors:
    """Factors of a layer's weight alone, with the form and ranks of a plan's entry.

    Raises
    ------
    RankError
        If the weight has values that are not finite.
    """
    if not torch.isfinite(layer.get_parameter("weight")).all():
        raise RankError(f"the weight of layer {entry.name} has values that are not finite", hint="Exclude the layer")
    return get_form(entry.method).decompose(layer, entry.ranks)


def install(network: nn.Module, entries: Sequence[LayerPlan], factors: Mapping[str, LayerFactors]) -> nn.Module:
    """Put factors in the places of layers.

    Parameters
    ----------
    network : nn.Module
        The network; it is changed.
    entries : sequence of LayerPlan
        The layers to replace.
    factors : mapping of str to LayerFactors
        For each of them.

    Returns
    -------
    nn.Module
        The network; another object only if the network itself is a layer that was replaced.
    """
    by_weight = {network.get_submodule(x.name).get_parameter("weight"): factors[x.name] for x in entries}

    def build(layer: Any, method: str, ranks: tuple[int, ...]) -> nn.Module:
        # Made without values, so that nothing is drawn from the random state.
        new = build_like(layer, method, ranks, torch.device("meta"))
        for part, values in by_weight[layer.weight].parts.items():
            child: Any = new.get_submodule(part)
            # Contiguous as in a network whose weights were loaded, so that both run the same kernels.
            values = values.reshape(child.weight.shape).to(layer.weight.dtype)
            values = values.clone(memory_format=torch.contiguous_format)
            child.weight = nn.Parameter(values, layer.weight.requires_grad)
        return new

    biased = {name for name, made in factors.items() if made.bias is not None}
    layers = {entry.name: (entry.method, entry.ranks) for entry in entries}
    network = factorize_in_place(network, layers, build, biased)
    with torch.no_grad():
        for entry in entries:
            bias = factors[entry.name].bias
            if bias is not None:
                network.get_parameter(_in_layer(entry.name, "expand.bias")).copy_(bias)
    return network


def finish(
    network: nn.Module,
    plan: Plan,
    factors: Mapping[str, LayerFactors],
    inputs: Sequence[InputSpec],
    biases: tuple[str, ...] = (),
) -> Factorized:
    """Check that a network runs with its new layers on such inputs, and write their errors into the plan.

    Raises
    ------
    NetworkError
        If it does not run, or bypasses a replaced layer.
    """
    entries = []
    for entry in plan.layers:
        if entry.name in factors:
            made = factors[entry.name]
            entry = replace(entry, error=made.error, output_error=made.output_error)
            if entry.name in biases:
                added = network.get_parameter(_in_layer(entry.name, "expand.bias")).numel()
                entry = replace(entry, params=(entry.params[0], entry.params[1] + added))
        entries.append(entry)
    plan = replace(plan, layers=tuple(entries))
    return Factorized(network, plan, _checked_layers(network, plan, inputs), biases)


def _checked_layers(network: nn.Module, plan: Plan, inputs: Sequence[InputSpec]) -> LayerIndex:
    """The layers of the new network, if the replaced ones are among those that it runs."""
    try:
        layers = LayerIndex.of(network, inputs)
    except NetworkError as error:
        raise NetworkError(
            f"the network's code does not work with a replaced layer: {error.cause}",
            hint="Exclude the layer whose attributes it reads",
        ) from error
    called = {layer.name for layer in layers if layer.calls}
    for entry in plan.changed:
        if _in_layer(entry.name, "expand") not in called:
            raise NetworkError(
                "a replaced layer is never called: the network reaches the old one in another way than by its name",
                found=entry.name,
                hint="Exclude the layer",
            )
    return layers


def _in_layer(name: str, part: str) -> str:
    """Name of a part of a layer; the network itself may be the layer."""
    return f"{name}.{part}" if name else part
