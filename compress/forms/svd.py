"""Truncated SVD of a 1x1 convolution or linear layer: two matrices."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import nn

from compress.decomposition.matrix import low_rank
from compress.forms.base import LayerFactors, Ranks, Shape
from compress.forms.modules import FactorizedLayer, placement, with_weight
from compress.forms.tucker1_out import Tucker1OutForm


class LowRankLinear(FactorizedLayer):
    """A linear layer as two.

    Parameters
    ----------
    linear : nn.Linear
        The layer to stand for; its weights are not read.
    ranks : (int,)
        The rank r.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(self, linear: nn.Linear, ranks: Ranks, device: torch.device | None = None) -> None:
        place = placement(linear, device)
        steps = {
            "reduce": nn.Linear(linear.in_features, ranks[0], bias=False, **place),
            "expand": nn.Linear(ranks[0], linear.out_features, bias=linear.bias is not None, **place),
        }
        super().__init__("svd", linear, steps)


class SvdForm(Tucker1OutForm):
    """Two matrices; the first takes over the stride of a 1x1 convolution."""

    name: ClassVar[str] = "svd"
    summary: ClassVar[str] = "1x1, 1x1, or two linear layers"
    usual: ClassVar[bool] = True
    timed: ClassVar[bool] = True

    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        """Ungrouped 1x1 convolutions and linear layers."""
        return kind != "conv_transpose" and groups == 1 and math.prod(shape[2:]) == 1

    def least_ranks(self, r3: int, r4: int) -> Ranks:
        """The larger of both: a matrix has one rank."""
        return (max(r3, r4),)

    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> FactorizedLayer:
        """A `LowRankLinear` or `LowRankConv2d`."""
        if isinstance(layer, nn.Linear):
            return LowRankLinear(layer, ranks, device)
        return super().build(layer, ranks, device)

    def decompose(self, layer: nn.Module, ranks: Ranks) -> LayerFactors:
        """The best matrices of that rank."""
        matrix = low_rank(layer.get_parameter("weight").detach().flatten(1), ranks[0])
        return LayerFactors({"reduce": matrix.first, "expand": matrix.last}, matrix.error)

    def compose(self, module: nn.Module) -> nn.Module:
        """The product of the matrices."""
        first, last = list[Any](module.children())
        if not isinstance(first, nn.Linear):
            return super().compose(module)
        new = nn.Linear(first.in_features, last.out_features, bias=False, device="meta")
        return with_weight(new, module, last.weight.detach() @ first.weight.detach())
