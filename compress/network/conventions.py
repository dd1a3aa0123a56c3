"""Conventions by which papers count operations: the same network has a different number in each.

This project counts the multiply-adds that convolution and linear layers execute (`compress.network.cost`). The others
serve to compare with published numbers, and are never shown without their name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.network.duplicate import duplicate
from compress.network.layers import LayerInfo, list_layers

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Convention:
    """A way to count operations.

    Attributes
    ----------
    name : str
        As tables show it.
    divisor : int
        Operations in one unit of the printed number.
    unit : str
        Suffix that papers print, ``"G"`` or ``"M"``.
    summary : str
        What is counted.
    """

    name: str
    divisor: int
    unit: str
    summary: str


CONVENTIONS = {
    convention.name: convention
    for convention in (
        Convention("mac", 10**9, "G", "executed multiply-adds of convolution and linear layers / 1e9"),
        Convention("2mac", 10**9, "G", "two operations for each executed multiply-add / 1e9"),
        Convention("hrnet", 1024**3, "G", "multiply-adds, transposed convolutions at their output size / 1024^3"),
        Convention(
            "lite-hrnet",
            1024**2,
            "M",
            "convolutions with biases, normalisation, ReLU, pooling and upsampling, each layer once / 1024^2",
        ),
    )
}


def executed(layers: Sequence[LayerInfo]) -> int:
    """Multiply-adds that the layers execute."""
    return sum(layer.macs for layer in layers)


def at_output_size(layers: Sequence[LayerInfo]) -> int:
    """Multiply-adds as if every layer, transposed ones included, applied its kernel at each output position."""
    return sum(layer.output_positions * math.prod(layer.weight_shape) for layer in layers)


def counted_once(module: nn.Module, input_size: tuple[int, int]) -> int:
    """Operations of a counter that counts each layer once, however often it runs.

    Multiply-adds of convolution and linear layers, one for each output with a bias, two for each normalised element,
    one for each output of a ReLU layer, and one for each input of a pooling or upsampling layer. Like any counter based
    on modules it does not see functional operations.

    Parameters
    ----------
    module : Module
        The network; it is only read.
    input_size : (int, int)
        H and W in pixels.
    """
    network = duplicate(module, "meta").eval()
    counts: dict[nn.Module, int] = {}

    def record(part: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        counts.setdefault(part, _operations(part, args[0], output))

    for part in network.modules():
        if not any(part.children()):
            part.register_forward_hook(record)
    with torch.no_grad(), torch.device("meta"):
        network(torch.zeros(1, 3, *input_size))
    return sum(counts.values())


#: Conventions that are sums over convolution and linear layers.
LAYER_CONVENTIONS: dict[str, Callable[[Sequence[LayerInfo]], int]] = {
    "mac": executed,
    "2mac": lambda layers: 2 * executed(layers),
    "hrnet": at_output_size,
}


def layers_number(convention: str, layers: Sequence[LayerInfo]) -> float:
    """The count of these layers by one of `LAYER_CONVENTIONS`, in its unit."""
    return LAYER_CONVENTIONS[convention](layers) / CONVENTIONS[convention].divisor


def published_number(convention: str, module: nn.Module, input_size: tuple[int, int]) -> float:
    """The count of a network by a convention, in its unit.

    Parameters
    ----------
    convention : str
        A key of `CONVENTIONS`.
    module : Module
        The network; it is only read.
    input_size : (int, int)
        H and W in pixels.

    Raises
    ------
    NetworkError
        If the network can't be run on such an input.
    """
    if convention in LAYER_CONVENTIONS:
        return layers_number(convention, list_layers(module, input_size))
    return counted_once(module, input_size) / CONVENTIONS[convention].divisor


def _operations(part: Any, x: Tensor, output: Tensor) -> int:
    if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
        places = output.numel() // output.shape[-1 if isinstance(part, nn.Linear) else 1]
        return places * part.weight.numel() + (output.numel() if part.bias is not None else 0)
    if isinstance(part, nn.BatchNorm2d):
        return 2 * x.numel()
    if isinstance(part, nn.ReLU):
        return output.numel()
    return x.numel() if isinstance(part, (*_POOLS, nn.Upsample)) else 0
