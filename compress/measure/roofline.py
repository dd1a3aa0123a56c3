"""The least time that a machine's arithmetic and memory allow a network, both measured, and the share reached.

After Williams, Waterman and Patterson (2009), "Roofline". A layer can't end before its multiply-adds are done, nor
before its weights and input are read and its output is written: it takes at least the longer of the two. Summed over
layers this bounds tighter than the same for the whole network, in which one layer's arithmetic may overlap with
another's memory; runtimes run layer after layer.

Only convolutions and linear layers count. Activations, normalisation, concatenation and attention gates are free, as
if all were fused. Bytes go at the rate at which this machine copies a block of the layer's size, so what fits into a
cache is not held against main memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from compress.measure.ceilings import Ceilings
from compress.network.layers import list_layers
from compress.runtime.openvino_runner import shared_core

#: Bytes of a value.
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}

_PRODUCTS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


@dataclass(frozen=True)
class Work:
    """What a layer does with one image.

    Attributes
    ----------
    macs : int
        Multiply-adds.
    inputs, weights, outputs : int
        Numbers read and written.
    quantised : bool
        Whether its weights are eight-bit ones.
    """

    macs: int
    inputs: int
    weights: int
    outputs: int
    quantised: bool = False


@dataclass(frozen=True)
class Bound:
    """The least time of a network.

    Attributes
    ----------
    least_ms : float
        Sum over layers of the longer of arithmetic and memory.
    overlapped_ms : float
        The longer of both sums: if layers could overlap. Never above ``least_ms``.
    macs : int
        Multiply-adds of the whole batch.
    bytes_moved : int
        Weights, inputs and outputs of all layers.
    memory_share : float
        Share of ``least_ms`` in layers that memory bounds.
    """

    least_ms: float
    overlapped_ms: float
    macs: int
    bytes_moved: int
    memory_share: float


def module_work(module: nn.Module, size: tuple[int, int]) -> tuple[Work, ...]:
    """Work of all layers of a network at that input height and width."""
    found = []
    for layer in list_layers(module, size):
        first, second = layer.weight_shape[:2]
        if layer.kind == "conv_transpose":
            channels, outputs = first, second * layer.groups
        else:
            channels, outputs = second * layer.groups, first
        if layer.calls:
            weights = math.prod(layer.weight_shape) * layer.calls
            work = Work(layer.macs, layer.input_positions * channels, weights, layer.output_positions * outputs)
            found.append(work)
    return tuple(found)


def file_work(path: Path, size: tuple[int, int]) -> tuple[Work, ...]:
    """Work of all layers of an ONNX file or OpenVINO IR, read by OpenVINO.

    Raises
    ------
    RuntimeAbsent
        If OpenVINO is not there.
    """
    model = shared_core().read_model(path)
    model.reshape([1, 3, *size])
    return tuple(_node_work(node) for node in model.get_ordered_ops() if node.get_type_name() in _PRODUCTS)


def _node_work(node: Any) -> Work:
    kind = node.get_type_name()
    inputs, weights = (math.prod(node.input_value(index).get_shape()) for index in range(2))
    output = list(node.output(0).get_shape())
    kernel = list(node.input_value(1).get_shape())
    outputs = math.prod(output)
    if kind == "MatMul":
        transposed = node.get_attributes().get("transpose_b", False)
        macs = outputs * kernel[-1 if transposed else -2]
    elif kind.endswith("BackpropData"):  # weights (S, T, *k), with groups (G, S / G, T / G, *k)
        grouped = kind.startswith("Group")
        macs = inputs * math.prod(kernel[2 if grouped else 1 :])
    else:  # weights (T, S, *k), with groups (G, T / G, S / G, *k)
        macs = outputs * math.prod(kernel[2 if kind.startswith("Group") else 1 :])
    return Work(macs, inputs, weights, outputs, _eight_bits(node.input_value(1).get_node()))


def _eight_bits(node: Any) -> bool:
    """Whether weights are quantised, or kept in eight bits and widened by the nodes before the layer."""
    while True:
        if node.get_type_name() == "FakeQuantize":
            return True
        if not node.get_input_size():
            return node.get_element_type().get_type_name() in ("i8", "u8")
        node = node.input_value(0).get_node()


def bound(work: Iterable[Work], ceilings: Ceilings, precision: str, threads: int, *, batch: int = 1) -> Bound | None:
    """The least time of layers on a machine.

    Parameters
    ----------
    work : iterable of Work
        Layers, one image.
    ceilings : Ceilings
        Of the device that they run on.
    precision : str
        As a runner tells it: ``"fp32"``, ``"bf16"``, ``"fp16"``, and of a quantised file ``"int8"`` or
        ``"int8+bf16"``, whose other layers run in fp32 or bf16.
    threads : int
        CPU threads.
    batch : int
        Images.

    Returns
    -------
    Bound or None
        None if arithmetic in that precision can't be measured here.
    """
    eight, _, rest = precision.partition("+")
    wide = (rest or "fp32") if eight == "int8" else precision
    arithmetic: list[float] = []
    memory: list[float] = []
    macs = moved = 0
    for layer in work:
        used = "int8" if eight == "int8" and layer.quantised else wide
        peak = ceilings.macs_per_s(used, threads)
        if peak is None:
            return None
        size = WIDTHS[used] * (layer.weights + batch * (layer.inputs + layer.outputs))
        arithmetic.append(batch * layer.macs / peak)
        memory.append(size / ceilings.bytes_per_s(size, threads))
        macs += batch * layer.macs
        moved += size
    return _bound(arithmetic, memory, macs, moved)


def _bound(arithmetic: Sequence[float], memory: Sequence[float], macs: int, moved: int) -> Bound:
    each = [max(pair) for pair in zip(arithmetic, memory, strict=True)]
    by_memory = sum(time for time, first in zip(each, arithmetic, strict=True) if time > first)
    least = sum(each)
    return Bound(
        least_ms=least * 1e3,
        overlapped_ms=max(sum(arithmetic), sum(memory)) * 1e3,
        macs=macs,
        bytes_moved=moved,
        memory_share=by_memory / least if least else 0.0,
    )
