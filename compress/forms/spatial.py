"""Spatially separable kernels, in either order of the two axes.

Jaderberg et al., "Speeding up convolutional neural networks with low rank expansions" (2014, arXiv:1405.3866),
scheme 2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from compress.decomposition.fitting import Split
from compress.forms.base import Ranks, Shape, Step
from compress.forms.modules import FactorizedLayer, placement
from compress.forms.two_step import TwoStepForm
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo


class SpatialForm(TwoStepForm):
    """A convolution along one axis to r channels, then one along the other; each has the geometry of its axis.

    Attributes
    ----------
    axis : int
        Along which the first step runs: 0 for the column kx1, 1 for the row 1xk.
    """

    spatial: ClassVar[bool] = True
    axis: ClassVar[int]

    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        """Ungrouped convolutions with a kernel of more than one row and column."""
        return super().applies(shape, kind, groups) and min(shape[2:]) > 1

    def split(self, shape: Shape) -> Split:
        """Channels and one spatial axis are reduced."""
        return Split((1, 2 + self.axis), (3 - self.axis,))

    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        """Between the steps the map has the output's size along the first axis and the input's along the second."""
        outputs, inputs, *places = layer_kernel(layer)
        assert layer.input_size is not None  # it is called
        assert layer.output_size is not None
        other = 1 - self.axis
        middle = layer.output_size[self.axis] * layer.input_size[other] * layer.calls
        reduce, expand = inputs * ranks[0] * places[self.axis], ranks[0] * outputs * places[other]
        return Step("reduce", reduce, reduce * middle), Step("expand", expand, expand * layer.output_positions)

    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> FactorizedLayer:
        """Two convolutions with a kernel of one place along one axis."""
        assert isinstance(layer, nn.Conv2d)
        place, bias = placement(layer, device), layer.bias is not None
        steps = {
            "reduce": nn.Conv2d(layer.in_channels, ranks[0], bias=False, **_along(layer, self.axis), **place),
            "expand": nn.Conv2d(ranks[0], layer.out_channels, bias=bias, **_along(layer, 1 - self.axis), **place),
        }
        return FactorizedLayer(self.name, layer, steps)


def _along(conv: nn.Conv2d, axis: int) -> dict[str, Any]:
    """Kernel and geometry of the convolution along one axis, and of one place along the other."""
    values: dict[str, Any] = {"padding_mode": conv.padding_mode}
    for name, idle in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(conv, name)
        if not isinstance(value, str):  # "same" and "valid" hold along each axis
            value = (value[0], idle) if axis == 0 else (idle, value[1])
        values[name] = value
    return values
