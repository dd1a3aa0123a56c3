"""Layers that are products of smaller ones, built like the layer they stand for.

A weight with the name of its place in the formula: ``reduce`` brings S input channels down to a rank, ``core`` (where
there is one) works there, ``expand`` brings the rank up to T output channels and adds the bias.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class TuckerConv2d(nn.Module):
    """A convolution as 1x1, kxk, 1x1: a kernel in Tucker-2 form.

    Kim et al. (2016, arXiv:1511.06530), section 3.1, equations 5 to 7: ``W = C x_3 U3 x_4 U4``. Stride, padding and
    dilation belong to the core; the bias to the last convolution. Any padding mode is right, because padding and a
    1x1 convolution without bias commute.

    Parameters
    ----------
    conv : nn.Conv2d
        The layer to stand for, ungrouped; its weights are not read.
    ranks : (int, int)
        (r3, r4), mode 3 being the input and mode 4 the output channels.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(self, conv: nn.Conv2d, ranks: tuple[int, int], device: torch.device | None = None) -> None:
        super().__init__()
        r3, r4 = ranks
        place = _place(conv, device)
        self.reduce = nn.Conv2d(conv.in_channels, r3, 1, bias=False, **place)
        self.core = nn.Conv2d(r3, r4, conv.kernel_size, bias=False, **_geometry(conv), **place)  # type: ignore[arg-type]
        self.expand = nn.Conv2d(r4, conv.out_channels, 1, bias=conv.bias is not None, **place)
        _follow(self, conv)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, S, H, W) to (N, T, H', W')."""
        return self.expand(self.core(self.reduce(input)))


class LowRankConv2d(nn.Module):
    """A 1x1 convolution as two of them.

    The first has the stride and the padding: the second then runs at the output's positions only, and padded places
    are zero before its bias as they were before the layer's.

    Parameters
    ----------
    conv : nn.Conv2d
        The layer to stand for, with one kernel place and ungrouped; its weights are not read.
    ranks : (int,)
        The rank r.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(self, conv: nn.Conv2d, ranks: tuple[int], device: torch.device | None = None) -> None:
        super().__init__()
        place = _place(conv, device)
        self.reduce = nn.Conv2d(conv.in_channels, ranks[0], 1, bias=False, **_geometry(conv), **place)
        self.expand = nn.Conv2d(ranks[0], conv.out_channels, 1, bias=conv.bias is not None, **place)
        _follow(self, conv)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, S, H, W) to (N, T, H', W')."""
        return self.expand(self.reduce(input))


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


def build_like(layer: nn.Module, method: str, ranks: tuple[int, ...], device: torch.device | None = None) -> nn.Module:
    """The factorized form of a layer, freshly initialised.

    Parameters
    ----------
    layer : nn.Module
        A plain convolution or linear layer.
    method : str
        ``"tucker2"`` or ``"svd"``.
    ranks : tuple of int
        As in a plan.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """
    form: Any = (
        TuckerConv2d if method == "tucker2" else LowRankLinear if isinstance(layer, nn.Linear) else LowRankConv2d
    )
    return form(layer, ranks, device)


def _place(layer: nn.Conv2d | nn.Linear, device: torch.device | None) -> dict[str, Any]:
    return {"device": device or layer.weight.device, "dtype": layer.weight.dtype}


def _geometry(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "padding_mode")
    return {name: getattr(conv, name) for name in names}


def _follow(module: nn.Module, layer: nn.Conv2d | nn.Linear) -> None:
    """Take over the training mode and which parameters are trained."""
    module.train(layer.training)
    module.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        module.get_parameter("expand.bias").requires_grad_(layer.bias.requires_grad)
