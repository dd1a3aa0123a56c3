"""What a layer would cost as a product of smaller ones, and which ranks it can have.

T output and S input channels, K kernel places (height times width), all of one layer. The costs are those of Kim et
al., "Compression of deep convolutional neural networks for fast and low power mobile applications" (2016,
arXiv:1511.06530), section 3.1, with the stride taken into account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.model.layers import LayerInfo

#: A convolution's kernel (T, S, *k) or a matrix (T, S).
Shape = Sequence[int]


def channel_ranks(shape: Shape) -> tuple[int, ...]:
    """Ranks at which nothing is left out: (S, T) for a kernel, (min(S, T),) for a 1x1 kernel or a matrix."""
    outputs, inputs, places = shape[0], shape[1], math.prod(shape[2:])
    return (min(inputs, outputs),) if places == 1 else (inputs, outputs)


def clip_ranks(shape: Shape, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The largest ranks, none above those given, that a factorization can use in full.

    A mode of the core (r4, r3, *k) can't have a rank above the product of the core's other sizes, so ``r3 <= r4 K``
    and ``r4 <= r3 K``; ranks (40, 2) of a 3x3 kernel would be (18, 2) and a lot of zeros.

    Parameters
    ----------
    shape : sequence of int
        Weight shape (T, S, *k) or (T, S).
    ranks : tuple of int
        (r3, r4), or (r,) for a matrix, each at least 1.
    """
    clipped = tuple(min(rank, full) for rank, full in zip(ranks, channel_ranks(shape), strict=True))
    if len(clipped) == 1:
        return clipped
    places = math.prod(shape[2:])
    r3 = min(clipped[0], clipped[1] * places)
    return r3, min(clipped[1], r3 * places)


def factor_params(shape: Shape, ranks: tuple[int, ...]) -> int:
    """Parameters of the factors without bias: ``S r3 + r3 r4 K + r4 T``, or ``r (S + T)`` of a matrix."""
    outputs, inputs = shape[0], shape[1]
    if len(ranks) == 1:
        return ranks[0] * (inputs + outputs)
    r3, r4 = ranks
    return inputs * r3 + r3 * r4 * math.prod(shape[2:]) + r4 * outputs


def factorized_cost(layer: LayerInfo, ranks: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and MACs of a layer after its factorization.

    The first 1x1 convolution of a Tucker-2 runs at the input's resolution, everything else at the output's. The first
    factor of a 1x1 convolution takes over its stride, so both run at the output's.

    Parameters
    ----------
    layer : LayerInfo
        An ungrouped convolution or a linear layer.
    ranks : tuple of int
        (r3, r4) for Tucker-2, (r,) for two matrices.

    Returns
    -------
    params, macs : int
        Parameters by the rule of `LayerInfo.params`, and MACs of all calls.
    """
    weight = factor_params(layer.weight_shape, ranks)
    # A weight that an earlier layer holds too is not among this layer's own parameters, before or after.
    params = layer.params if layer.tied_to else layer.params - math.prod(layer.weight_shape) + weight
    reduce = layer.weight_shape[1] * ranks[0] * (layer.input_positions if len(ranks) == 2 else layer.output_positions)
    rest = weight - layer.weight_shape[1] * ranks[0]
    return params, reduce + rest * layer.output_positions
