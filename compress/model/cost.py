"""What a whole network costs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compress.model.layers import list_layers


@dataclass(frozen=True)
class Cost:
    """The size and the work of a network.

    Attributes
    ----------
    params : int
        All parameters, shared ones once.
    macs : int
        Multiply-adds of the convolution and linear layers that one forward pass executes, batch size 1.
    size_bytes : int
        Bytes of all parameters and buffers.
    """

    params: int
    macs: int
    size_bytes: int


def cost(module: nn.Module, input_size: tuple[int, int], channels: int = 3) -> Cost:
    """Cost of a network at an input size (H, W).

    Raises
    ------
    NetworkError
        If the network can't be run on such an input.
    """
    params = tuple(module.parameters())
    macs = sum(layer.macs for layer in list_layers(module, input_size, channels))
    return Cost(
        params=sum(p.numel() for p in params),
        macs=macs,
        size_bytes=sum(t.numel() * t.element_size() for t in (*params, *module.buffers())),
    )
