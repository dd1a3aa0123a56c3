"""Layers that are products of smaller ones, built like the layer they stand for.

A weight with the name of its place in the formula: ``reduce`` brings S input channels down to a rank, ``core`` (where
there is one) works there, ``expand`` brings the rank up to T output channels and adds the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class TuckerConv2d(nn.Module):
    """A convolution as 1x1, kxk, 1x1: a kernel in Tucker-2 form.

    Kim et al. (2016, arXiv:1511.06530), section 3.1, equations 5 to 7: ``W = C x_3 U3 x_4 U4``. Stride, padding and
    dilation belong to the core; the bias to the last convolution. Any padding mode is right, because padding and a
    1x1 convolution without bias commute. A grouped convolution has a product in each group; of a transposed one the
    core is transposed.

    Parameters
    ----------
    conv : nn.Conv2d or nn.ConvTranspose2d
        The layer to stand for; its weights are not read.
    ranks : (int, int)
        (r3, r4) of each group, mode 3 being the input and mode 4 the output channels.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(
        self, conv: nn.Conv2d | nn.ConvTranspose2d, ranks: tuple[int, int], device: torch.device | None = None
    ) -> None:
        super().__init__()
        groups, place = conv.groups, _place(conv, device)
        r3, r4 = (groups * rank for rank in ranks)
        self.reduce = nn.Conv2d(conv.in_channels, r3, 1, groups=groups, bias=False, **place)
        geometry: dict[str, Any] = {**_geometry(conv), "groups": groups, "bias": False, **place}
        if isinstance(conv, nn.ConvTranspose2d):
            geometry["output_padding"] = conv.output_padding
            self.core: nn.Module = nn.ConvTranspose2d(r3, r4, conv.kernel_size, **geometry)  # type: ignore[arg-type]
        else:
            self.core = nn.Conv2d(r3, r4, conv.kernel_size, **geometry)  # type: ignore[arg-type]
        self.expand = nn.Conv2d(r4, conv.out_channels, 1, groups=groups, bias=conv.bias is not None, **place)
        _follow(self, conv)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, S, H, W) to (N, T, H', W')."""
        output: Tensor = self.expand(self.core(self.reduce(input)))
        return output


class _TwoStepConv2d(nn.Module):
    """Two convolutions, the second with the bias; subclasses say what each of them is."""

    reduce: nn.Conv2d
    expand: nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, S, H, W) to (N, T, H', W')."""
        output: Tensor = self.expand(self.reduce(input))
        return output


class LowRankConv2d(_TwoStepConv2d):
    """A convolution as kxk then 1x1: a matrix of rank r after all kernel places have been put beside each other.

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

    def __init__(self, conv: nn.Conv2d, ranks: tuple[int], device: torch.device | None = None) -> None:
        super().__init__()
        place = _place(conv, device)
        self.reduce = nn.Conv2d(conv.in_channels, ranks[0], conv.kernel_size, bias=False, **_geometry(conv), **place)  # type: ignore[arg-type]
        self.expand = nn.Conv2d(ranks[0], conv.out_channels, 1, bias=conv.bias is not None, **place)
        _follow(self, conv)


class InputRankConv2d(_TwoStepConv2d):
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

    def __init__(self, conv: nn.Conv2d, ranks: tuple[int], device: torch.device | None = None) -> None:
        super().__init__()
        place, bias = _place(conv, device), conv.bias is not None
        self.reduce = nn.Conv2d(conv.in_channels, ranks[0], 1, bias=False, **place)
        self.expand = nn.Conv2d(ranks[0], conv.out_channels, conv.kernel_size, bias=bias, **_geometry(conv), **place)  # type: ignore[arg-type]
        _follow(self, conv)


class SpatialConv2d(_TwoStepConv2d):
    """A convolution as a column and a row of kernel places: kx1 then 1xk, or 1xk then kx1.

    Jaderberg et al., "Speeding up convolutional neural networks with low rank expansions" (2014, arXiv:1405.3866),
    scheme 2. Each step has the stride, padding and dilation of its axis.

    Parameters
    ----------
    conv : nn.Conv2d
        The layer to stand for, ungrouped; its weights are not read.
    ranks : (int,)
        The channels r between the steps.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    vertical_first : bool
        Whether the column comes first.
    """

    def __init__(
        self, conv: nn.Conv2d, ranks: tuple[int], device: torch.device | None = None, *, vertical_first: bool = True
    ) -> None:
        super().__init__()
        place, bias = _place(conv, device), conv.bias is not None
        first, second = (0, 1) if vertical_first else (1, 0)
        self.reduce = nn.Conv2d(conv.in_channels, ranks[0], bias=False, **_along(conv, first), **place)
        self.expand = nn.Conv2d(ranks[0], conv.out_channels, bias=bias, **_along(conv, second), **place)
        _follow(self, conv)


class LowRankLinear(nn.Module):
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

    def __init__(self, linear: nn.Linear, ranks: tuple[int], device: torch.device | None = None) -> None:
        super().__init__()
        place = _place(linear, device)
        self.reduce = nn.Linear(linear.in_features, ranks[0], bias=False, **place)
        self.expand = nn.Linear(ranks[0], linear.out_features, bias=linear.bias is not None, **place)
        _follow(self, linear)

    def forward(self, input: Tensor) -> Tensor:
        """Features (..., S) to (..., T)."""
        return self.expand(self.reduce(input))


#: All of them.
FACTORIZED = (TuckerConv2d, LowRankConv2d, InputRankConv2d, SpatialConv2d, LowRankLinear)


def build_like(layer: nn.Module, method: str, ranks: tuple[int, ...], device: torch.device | None = None) -> nn.Module:
    """The factorized form of a layer, freshly initialised.

    Parameters
    ----------
    layer : nn.Module
        A plain convolution or linear layer.
    method : str
        A key of `compress.planning.plan.METHODS` that fits the layer.
    ranks : tuple of int
        As in a plan.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """
    form: Any = LowRankLinear if isinstance(layer, nn.Linear) else _FORMS[method]
    return form(layer, ranks, device)


_FORMS: dict[str, Callable[..., nn.Module]] = {
    "tucker2": TuckerConv2d,
    "svd": LowRankConv2d,
    "tucker1_in": InputRankConv2d,
    "tucker1_out": LowRankConv2d,
    "spatial_vh": SpatialConv2d,
    "spatial_hv": partial(SpatialConv2d, vertical_first=False),
}


def _place(layer: nn.Module, device: torch.device | None) -> dict[str, Any]:
    weight = layer.get_parameter("weight")
    return {"device": device or weight.device, "dtype": weight.dtype}


def _geometry(conv: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "padding_mode")
    return {name: getattr(conv, name) for name in names}


def _along(conv: nn.Conv2d, axis: int) -> dict[str, Any]:
    """Kernel and geometry of the convolution along one axis, and of one place along the other."""
    values: dict[str, Any] = {"padding_mode": conv.padding_mode}
    for name, idle in (("kernel_size", 1), ("stride", 1), ("padding", 0), ("dilation", 1)):
        value = getattr(conv, name)
        if not isinstance(value, str):  # "same" and "valid" hold along each axis
            value = (value[0], idle) if axis == 0 else (idle, value[1])
        values[name] = value
    return values


def _follow(module: nn.Module, layer: Any) -> None:
    """Take over the training mode and which parameters are trained."""
    module.train(layer.training)
    module.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        module.get_parameter("expand.bias").requires_grad_(layer.bias.requires_grad)
