"""The forms that a layer can be factorized into: which ranks they take and what they cost.

T output and S input channels of one group, K = kh kw kernel places. A grouped convolution has the same ranks in every
group; a transposed one is counted by its kernel (T, S, kh, kw) as if it were not. Costs are those of Kim et al.,
"Compression of deep convolutional neural networks for fast and low power mobile applications" (2016,
arXiv:1511.06530), section 3.1, with the stride taken into account.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from compress.network.layers import LayerInfo

#: A convolution's kernel (T, S, *k) or a matrix (T, S).
Shape = Sequence[int]

#: The two-step forms of a kernel with more than one place: 1x1 then kxk, kxk then 1x1, kx1 then 1xk, 1xk then kx1.
TWO_STEP = ("tucker1_in", "tucker1_out", "spatial_vh", "spatial_hv")


def kernel_shape(kind: str, weight_shape: Shape, groups: int) -> tuple[int, ...]:
    """(T, S, *k) of one group, whatever the order in which torch keeps a layer's weight.

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
        As torch keeps it.
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


def methods_for(shape: Shape, kind: str = "conv", groups: int = 1) -> tuple[str, ...]:
    """Methods by which a layer can be replaced, the usual one first; none for a depthwise convolution.

    Parameters
    ----------
    shape : sequence of int
        Kernel of one group, as `kernel_shape` gives it.
    kind : str
        As of `LayerInfo`.
    groups : int
        Groups of channels.
    """
    if groups > 1 and min(shape[:2]) == 1:
        return ()
    if kind == "conv_transpose":
        return ("tucker2",)
    if math.prod(shape[2:]) == 1:
        return ("svd",) if groups == 1 else ()
    if groups > 1:
        return ("tucker2",)
    spatial = ("spatial_vh", "spatial_hv") if min(shape[2:]) > 1 else ()
    return ("tucker2", "tucker1_in", "tucker1_out", *spatial)


def full_ranks(shape: Shape, method: str) -> tuple[int, ...]:
    """The largest ranks that a method can use: nothing is left out at them.

    Parameters
    ----------
    shape : sequence of int
        Kernel (T, S, *k) or matrix (T, S).
    method : str
        ``"tucker2"`` gives (S, T), each as far as the core can use it; every other method one rank.
    """
    outputs, inputs, places = shape[0], shape[1], math.prod(shape[2:])
    if method == "tucker2":
        return clip_ranks(shape, method, (inputs, outputs))
    split = {"tucker1_in": 1, "spatial_vh": shape[2], "spatial_hv": shape[3]} if places > 1 else {}
    rows = split.get(method, places)
    return (min(inputs * rows, outputs * places // rows),)


def clip_ranks(shape: Shape, method: str, ranks: tuple[int, ...]) -> tuple[int, ...]:
    """The largest ranks, none above those given, that a factorization can use in full.

    A mode of the core (r4, r3, *k) can't have a rank above the product of the core's other sizes, so ``r3 <= r4 K``
    and ``r4 <= r3 K``; ranks (40, 2) of a 3x3 kernel would be (18, 2) and a lot of zeros.

    Parameters
    ----------
    shape : sequence of int
        Kernel (T, S, *k) or matrix (T, S).
    method : str
        How the layer is factorized.
    ranks : tuple of int
        (r3, r4) for Tucker-2, else (r,), each at least 1.
    """
    if method != "tucker2":
        return (min(ranks[0], full_ranks(shape, method)[0]),)
    places = math.prod(shape[2:])
    r3, r4 = min(ranks[0], shape[1]), min(ranks[1], shape[0])
    r3 = min(r3, r4 * places)
    return r3, min(r4, r3 * places)


def factorized_cost(layer: LayerInfo, method: str, ranks: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and MACs of a layer after its factorization.

    Where a first 1x1 convolution precedes the one with the stride it runs at the input's resolution. The first factor
    of a 1x1 convolution takes over its stride, so both run at the output's; kx1 before 1xk has the stride of the rows
    alone.

    Parameters
    ----------
    layer : LayerInfo
        A convolution, transposed or not, or a linear layer.
    method : str
        One of `methods_for` the layer.
    ranks : tuple of int
        (r3, r4) for Tucker-2, else (r,).

    Returns
    -------
    params, macs : int
        Parameters by the rule of `LayerInfo.params`, and MACs of all calls.
    """
    parts = part_costs(layer, method, ranks)
    weight = sum(count for _, count, _ in parts)
    # A weight that an earlier layer holds too is not among this layer's own parameters, before or after.
    params = layer.params if layer.tied_to else layer.params - math.prod(layer.weight_shape) + weight
    return params, sum(macs for _, _, macs in parts)


def part_costs(layer: LayerInfo, method: str, ranks: tuple[int, ...]) -> tuple[tuple[str, int, int], ...]:
    """Name, weights and MACs of each step of a factorized layer; parameters as of `factorized_cost`."""
    shape, before, after = layer_kernel(layer), layer.input_positions, layer.output_positions
    outputs, inputs, places = shape[0] * layer.groups, shape[1] * layer.groups, math.prod(shape[2:])
    r = ranks[0]
    if method == "tucker2":
        core = layer.groups * ranks[0] * ranks[1] * places
        at = before if layer.kind == "conv_transpose" else after
        steps: tuple[tuple[str, int, int], ...]
        steps = (("reduce", inputs * r, before), ("core", core, at), ("expand", outputs * ranks[1], after))
    elif method == "tucker1_in":
        steps = (("reduce", inputs * r, before), ("expand", r * outputs * places, after))
    elif method in ("spatial_vh", "spatial_hv"):
        assert layer.input_size is not None  # it is called
        assert layer.output_size is not None
        vertical = method == "spatial_vh"
        first, second = (shape[2], shape[3]) if vertical else (shape[3], shape[2])
        rows = (layer.output_size if vertical else layer.input_size)[0]
        columns = (layer.input_size if vertical else layer.output_size)[1]
        middle = rows * columns * layer.calls
        steps = (("reduce", inputs * r * first, middle), ("expand", r * outputs * second, after))
    else:
        steps = (("reduce", inputs * r * places, after), ("expand", r * outputs, after))
    return tuple((name, count, count * positions) for name, count, positions in steps)
