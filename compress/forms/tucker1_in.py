"""Tucker-1 along the input channels: 1x1, kxk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import nn

from compress.decomposition.fitting import WIDE, Split
from compress.decomposition.problems import Problems
from compress.forms.base import Point, Ranks, Shape, Step
from compress.forms.modules import FactorizedLayer, geometry, placement
from compress.forms.ranks import LARGEST, rank_steps
from compress.forms.two_step import TwoStepForm
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo

#: The first factor reduces the channels and leaves the kernel places.
CHANNELS = Split((1,), (2, 3))


class InputRankConv2d(FactorizedLayer):
    """A convolution as 1x1 then kxk: Tucker-1 along mode 3, the input channels.

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
        expand = nn.Conv2d(ranks[0], conv.out_channels, conv.kernel_size, bias=bias, **geometry(conv), **place)  # type: ignore[arg-type]
        steps = {"reduce": nn.Conv2d(conv.in_channels, ranks[0], 1, bias=False, **place), "expand": expand}
        super().__init__("tucker1_in", conv, steps)


class Tucker1InForm(TwoStepForm):
    """A 1x1 convolution to r channels, then the kernel."""

    name: ClassVar[str] = "tucker1_in"
    summary: ClassVar[str] = "1x1, kxk"

    def split(self, shape: Shape) -> Split:
        """Input channels are reduced."""
        return CHANNELS

    def least_ranks(self, r3: int, r4: int) -> Ranks:
        """That of the input mode."""
        return (r3,)

    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        """The first runs at the input's resolution."""
        outputs, inputs, *places = layer_kernel(layer)
        reduce, expand = inputs * ranks[0], ranks[0] * outputs * math.prod(places)
        return (
            Step("reduce", reduce, reduce * layer.input_positions),
            Step("expand", expand, expand * layer.output_positions),
        )

    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> InputRankConv2d:
        """An `InputRankConv2d`."""
        assert isinstance(layer, nn.Conv2d)
        return InputRankConv2d(layer, ranks, device)

    def curve(self, problems: Problems, align: int) -> Iterator[Point]:
        """The same ranks as those of the input mode of Tucker-2, which shares the work."""
        problem, inputs = problems.split(CHANNELS), problems.weight.shape[1]
        most = LARGEST * inputs if problem.a * problem.b > WIDE else inputs
        ranks = [r for r in rank_steps(inputs, align) if r <= most]
        if ranks:
            for rank, total in zip(ranks, problem.totals(problem.start, ranks).tolist(), strict=True):
                yield Point((rank,), total)
