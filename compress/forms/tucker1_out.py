"""Tucker-1 along the output channels: kxk, 1x1."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import nn

from compress.decomposition.fitting import Split
from compress.forms.base import Ranks, Shape, Step
from compress.forms.modules import FactorizedLayer, geometry, placement
from compress.forms.two_step import TwoStepForm
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo


class LowRankConv2d(FactorizedLayer):
    """A convolution as kxk then 1x1: a matrix of rank r with all kernel places side by side.

    The first has the stride and the padding: the second then runs at the output's positions only, and padded places
    are zero before its bias as they were before the layer's.

    Parameters
    ----------
    conv : nn.Conv2d
        The layer to stand for, ungrouped; its weights are not read.
    ranks : (int,)
        The rank r.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(self, conv: nn.Conv2d, ranks: Ranks, device: torch.device | None = None) -> None:
        place, bias = placement(conv, device), conv.bias is not None
        reduce = nn.Conv2d(conv.in_channels, ranks[0], conv.kernel_size, bias=False, **geometry(conv), **place)  # type: ignore[arg-type]
        steps = {"reduce": reduce, "expand": nn.Conv2d(ranks[0], conv.out_channels, 1, bias=bias, **place)}
        super().__init__("svd" if math.prod(conv.kernel_size) == 1 else "tucker1_out", conv, steps)


class Tucker1OutForm(TwoStepForm):
    """The kernel to r channels, then a 1x1 convolution."""

    name: ClassVar[str] = "tucker1_out"
    summary: ClassVar[str] = "kxk, 1x1"
    timed: ClassVar[bool] = False

    def split(self, shape: Shape) -> Split:
        """The whole patch is reduced."""
        return Split(tuple(range(1, len(shape))))

    def least_ranks(self, r3: int, r4: int) -> Ranks:
        """That of the output mode."""
        return (r4,)

    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        """Both run at the output's resolution."""
        outputs, inputs, *places = layer_kernel(layer)
        reduce, expand = inputs * ranks[0] * math.prod(places), ranks[0] * outputs
        after = layer.output_positions
        return Step("reduce", reduce, reduce * after), Step("expand", expand, expand * after)

    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> FactorizedLayer:
        """A `LowRankConv2d`."""
        assert isinstance(layer, nn.Conv2d)
        return LowRankConv2d(layer, ranks, device)
