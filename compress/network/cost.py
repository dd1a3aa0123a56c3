"""What a whole network costs."""

from __future__ import annotations

from torch import nn

from compress.network.layers import Cost, list_layers

__all__ = ["Cost", "cost"]


def cost(module: nn.Module, input_size: tuple[int, int], channels: int = 3) -> Cost:
    """Cost of a network at an input size (H, W).

    Raises
    ------
    NetworkError
        If the network can't be run on such an input.
    """
    return list_layers(module, input_size, channels).cost
