"""Weights of layers as convolution kernels.

T output and S input channels of one group; k stands for the spatial sizes, none for a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from compress.network.layers import LayerInfo


def kernel_shape(kind: str, weight_shape: Sequence[int], groups: int) -> tuple[int, ...]:
    """Shape (T, S, *k) of the kernel of one group, whatever the order in which torch stores the layer's weight.

    Parameters
    ----------
    kind : str
        As of `LayerInfo`.
    weight_shape : sequence of int
        Of the layer's weight.
    groups : int
        Groups of channels.
    """
    first, second, *places = weight_shape
    return (second, first // groups, *places) if kind == "conv_transpose" else (first // groups, second, *places)


def layer_kernel(layer: LayerInfo) -> tuple[int, ...]:
    """`kernel_shape` of a layer."""
    return kernel_shape(layer.kind, layer.weight_shape, layer.groups)


def group_kernels(weight: Tensor, kind: str, groups: int) -> Tensor:
    """A layer's weight as the kernels of its groups.

    Parameters
    ----------
    weight : Tensor
        As torch stores it.
    kind : str
        As of `LayerInfo`.
    groups : int
        Groups of channels.

    Returns
    -------
    Tensor, shape (groups, T, S, *k)
        A view.
    """
    kernels = weight.unflatten(0, (groups, -1))
    return kernels.transpose(1, 2) if kind == "conv_transpose" else kernels
