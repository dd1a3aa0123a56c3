"""Applying a plan to a network: decompose each kernel and put its factors in the layer's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.decomposition.fitting import Metric, Problem
from compress.decomposition.matrix import low_rank
from compress.decomposition.tucker import tucker2
from compress.errors import NetworkError, RankError
from compress.network.duplicate import duplicate
from compress.network.factors import group_kernels
from compress.network.inputs import InputSpec, image_input
from compress.network.layers import LayerIndex, kind_of
from compress.planning.check import check_plan
from compress.planning.plan import LayerPlan, Plan
from compress.surgery.factorized import build_like
from compress.surgery.substitute import factorize_in_place


@dataclass(frozen=True)
class Factorized:
    """A network after surgery.

    Attributes
    ----------
    module : nn.Module
        The new network.
    plan : Plan
        What was done, with true costs and the errors of each replaced kernel.
    biases : tuple of str
        Layers that had no bias and got one.
    """

    module: nn.Module
    plan: Plan
    biases: tuple[str, ...] = ()


@dataclass(frozen=True)
class LayerFactors:
    """The weights of a factorized layer.

    Attributes
    ----------
    parts : mapping of str to Tensor
        By the names of the children; any shape of the right number of values in their order.
    error : float
        Relative Frobenius error of the kernel.
    bias : Tensor, shape (T,), or None
        The new bias; None keeps the layer's own.
    output_error : float or None
        As of `LayerPlan`.
    """

    parts: Mapping[str, Tensor]
    error: float
    bias: Tensor | None = None
    output_error: float | None = None


def factorize(module: nn.Module, plan: Plan, inputs: Sequence[InputSpec] | None = None) -> Factorized:
    """Factorize the layers of a network as planned, from their weights alone.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was and shares nothing with the new one.
    plan : Plan
        A plan for this network, from `compress.planning.policies.make_plan` or edited by hand.
    inputs : sequence of InputSpec, optional
        What the network reads; without it one colour image of the plan's size.

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
    plan = check_plan(plan, module, plan.network, plan.input_size, LayerIndex.of(module, inputs))
    network = duplicate(module)
    found: dict[Any, LayerFactors] = {}
    factors = {}
    for entry in plan.changed:
        layer = network.get_submodule(entry.name)
        weight = layer.get_parameter("weight")
        if weight not in found:  # tied layers have one weight, and so one set of factors
            found[weight] = decompose(layer, entry)
        factors[entry.name] = found[weight]
    return finish(install(network, plan.changed, factors), plan, factors, inputs)


def decompose(layer: nn.Module, entry: LayerPlan) -> LayerFactors:
    """Factors of a layer's weight alone, of the method and ranks of a plan's entry.

    Raises
    ------
    RankError
        If the weight has values that are not finite.
    """
    weight = layer.get_parameter("weight").detach()
    if not torch.isfinite(weight).all():
        raise RankError(f"the weight of layer {entry.name} has values that are not finite", hint="Exclude the layer")
    if entry.method == "svd":
        matrix = low_rank(weight.flatten(1), entry.ranks[0])
        return LayerFactors({"reduce": matrix.first, "expand": matrix.last}, matrix.error)
    kernels = group_kernels(weight, str(kind_of(layer)), int(getattr(layer, "groups", 1)))
    if entry.method == "tucker2":
        found = [tucker2(kernel, (entry.ranks[0], entry.ranks[1])) for kernel in kernels]
        energies = torch.stack([kernel.double().square().sum() for kernel in kernels])
        squares = energies * torch.tensor([kernel.error**2 for kernel in found], dtype=torch.float64)
        cores = torch.stack([kernel.core for kernel in found])  # [groups, r4, r3, *k]
        if isinstance(layer, nn.ConvTranspose2d):
            cores = cores.transpose(1, 2)
        parts = {
            "reduce": torch.cat([kernel.first for kernel in found]),
            "core": cores.flatten(0, 1),
            "expand": torch.cat([kernel.last for kernel in found]),
        }
        return LayerFactors(parts, float((squares.sum() / energies.sum().clamp_min(1e-300)).sqrt()))
    kernel = kernels[0]
    # Where all inputs and outputs weigh alike the start is the optimum: the leading singular vectors of an unfolding.
    fit = Problem(kernel, Metric.plain(len(kernel), kernel.device), entry.method).fit(entry.ranks, sweeps=0)
    return LayerFactors({"reduce": fit.reduce, "expand": fit.expand}, fit.error**0.5)


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

    biased = {name for name, found in factors.items() if found.bias is not None}
    layers = {entry.name: (entry.method, entry.ranks) for entry in entries}
    network = factorize_in_place(network, layers, build, biased)
    with torch.no_grad():
        for entry in entries:
            bias = factors[entry.name].bias
            if bias is not None:
                network.get_submodule(f"{entry.name}.expand".lstrip(".")).get_parameter("bias").copy_(bias)
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
        If it does not run, or goes around a replaced layer.
    """
    entries = []
    for entry in plan.layers:
        if entry.name in factors:
            found = factors[entry.name]
            entry = replace(entry, error=found.error, output_error=found.output_error)
            if entry.name in biases:
                added = network.get_submodule(f"{entry.name}.expand".lstrip(".")).get_parameter("bias").numel()
                entry = replace(entry, params=(entry.params[0], entry.params[1] + added))
        entries.append(entry)
    plan = replace(plan, layers=tuple(entries))
    _check_calls(network, plan, inputs)
    return Factorized(network, plan, biases)


def _check_calls(network: nn.Module, plan: Plan, inputs: Sequence[InputSpec]) -> None:
    """Make sure that the new layers are what the network now runs."""
    try:
        layers = LayerIndex.of(network, inputs)
    except NetworkError as error:
        raise NetworkError(
            f"the network's code does not work with a replaced layer: {error.cause}",
            hint="Exclude the layer whose attributes it reads",
        ) from error
    called = {layer.name for layer in layers if layer.calls}
    for entry in plan.changed:
        if f"{entry.name}.expand".lstrip(".") not in called:
            raise NetworkError(
                "a replaced layer is never called: the network reaches the old one in another way than by its name",
                found=entry.name,
                hint="Exclude the layer",
            )
