"""Applying a plan to a network: decompose each kernel and put its factors in the layer's place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from compress.decomposition.matrix import low_rank
from compress.decomposition.tucker import tucker2
from compress.errors import NetworkError, RankError
from compress.model.duplicate import duplicate
from compress.model.layers import list_layers
from compress.plan import Plan
from compress.ranks.fixed import check_plan
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
        What was done, with true costs and the relative error of each replaced kernel.
    """

    module: nn.Module
    plan: Plan


def factorize(module: nn.Module, plan: Plan) -> Factorized:
    """Factorize the layers of a network as planned.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was and shares nothing with the new one.
    plan : Plan
        A plan for this network, from `compress.ranks.fixed.make_plan` or edited by a person.

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
    plan = check_plan(plan, module, plan.network, plan.input_size)
    network = duplicate(module)
    weights = {entry.name: network.get_submodule(entry.name).get_parameter("weight") for entry in plan.changed}
    errors: dict[Tensor, float] = {}

    def decompose(layer: Any, method: str, ranks: tuple[int, ...]) -> nn.Module:
        if not torch.isfinite(layer.weight).all():
            name = next(name for name, weight in weights.items() if weight is layer.weight)
            raise RankError(f"the weight of layer {name} has values that are not finite", way_out="Exclude the layer")
        factors, errors[layer.weight] = _factors(layer.weight.detach(), ranks)
        # Made without values, so that nothing is drawn from the random state.
        new = build_like(layer, method, ranks, torch.device("meta"))
        for part, values in factors.items():
            child: Any = new.get_submodule(part)
            # Contiguous as in a network whose weights were loaded, so that both run the same kernels.
            values = values.reshape(child.weight.shape).clone(memory_format=torch.contiguous_format)
            child.weight = nn.Parameter(values, layer.weight.requires_grad)
        return new

    layers = {entry.name: (entry.method, entry.ranks) for entry in plan.changed}
    network = factorize_in_place(network, layers, decompose)
    entries = [replace(x, error=errors[weights[x.name]]) if x.name in weights else x for x in plan.layers]
    plan = replace(plan, layers=tuple(entries))
    _check_calls(network, plan)
    return Factorized(network, plan)


def _factors(weight: Tensor, ranks: tuple[int, ...]) -> tuple[dict[str, Tensor], float]:
    """The weights of a factorized layer by the names of its parts, and the relative error of their product."""
    if len(ranks) == 1:
        matrix = low_rank(weight.flatten(1), ranks[0])
        return {"reduce": matrix.first, "expand": matrix.last}, matrix.error
    kernel = tucker2(weight, (ranks[0], ranks[1]))
    return {"reduce": kernel.first, "core": kernel.core, "expand": kernel.last}, kernel.error


def _check_calls(network: nn.Module, plan: Plan) -> None:
    """Make sure that the new layers are what the network now runs."""
    try:
        layers = list_layers(network, plan.input_size)
    except NetworkError as error:
        raise NetworkError(
            f"the network's code does not work with a replaced layer: {error.what}",
            way_out="Exclude the layer whose attributes it reads",
        ) from error
    called = {layer.name for layer in layers if layer.calls}
    for entry in plan.changed:
        if f"{entry.name}.expand".lstrip(".") not in called:
            raise NetworkError(
                "a replaced layer is never called: the network reaches the old one in another way than by its name",
                found=entry.name,
                way_out="Exclude the layer",
            )
