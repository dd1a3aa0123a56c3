"""The least time that a machine's measured arithmetic and memory allow a network.

After Williams, Waterman and Patterson (2009), "Roofline". A layer can't end before its multiply-adds are done, nor
before its weights and input are read and its output is written: it takes at least the longer of the two. Summed over
layers this is a tighter bound than the same for the whole network, in which one layer's arithmetic may overlap with
another's memory traffic; runtimes run layer after layer.

Only convolutions and linear layers count. Activations, normalisation, concatenation and attention gates are free, as
if all were fused. Bytes move at the rate at which this machine copies a block of the layer's size, so a layer that
fits into a cache is not charged the rate of main memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.measure.ceilings import Ceilings
from compress.network.inputs import InputSpec
from compress.network.layers import LayerIndex
from compress.runtime.openvino_runner import shared_core

#: Bytes of a value.
WIDTHS = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}

_PRODUCTS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")


@dataclass(frozen=True)
class LayerLoad:
    """Arithmetic and memory traffic of a layer for one image.

    Attributes
    ----------
    macs : int
        Multiply-adds.
    inputs, weights, outputs : int
        Numbers read and written.
    quantised : bool
        Whether its weights are INT8.
    """

    macs: int
    inputs: int
    weights: int
    outputs: int
    quantised: bool = False


@dataclass(frozen=True)
class RooflineBound:
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
        Share of ``least_ms`` in memory-bound layers.
    """

    least_ms: float
    overlapped_ms: float
    macs: int
    bytes_moved: int
    memory_share: float


def module_loads(layers: LayerIndex) -> tuple[LayerLoad, ...]:
    """Loads of all layers that a network calls, at the input size of the index."""
    loads = []
    for layer in layers:
        first, second = layer.weight_shape[:2]
        if layer.kind == "conv_transpose":
            channels, outputs = first, second * layer.groups
        else:
            channels, outputs = second * layer.groups, first
        if layer.calls:
            weights = math.prod(layer.weight_shape) * layer.calls
            loads.append(
                LayerLoad(layer.macs, layer.input_positions * channels, weights, layer.output_positions * outputs)
            )
    return tuple(loads)


def file_loads(path: Path, inputs: Sequence[InputSpec]) -> tuple[LayerLoad, ...]:
    """Loads of all layers of an ONNX file or OpenVINO IR, read by OpenVINO at those shapes of its inputs.

    Raises
    ------
    RuntimeAbsent
        If OpenVINO is not installed.
    """
    model = shared_core().read_model(path)
    model.reshape({port: list(spec.shape) for port, spec in zip(model.inputs, inputs, strict=True)})
    return tuple(_node_load(node) for node in model.get_ordered_ops() if node.get_type_name() in _PRODUCTS)


def _node_load(node: Any) -> LayerLoad:
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
    return LayerLoad(macs, inputs, weights, outputs, _is_quantised(node.input_value(1).get_node()))


def _is_quantised(node: Any) -> bool:
    """Whether weights are quantised, or stored as INT8 and widened by the nodes before the layer."""
    while True:
        if node.get_type_name() == "FakeQuantize":
            return True
        if not node.get_input_size():
            return node.get_element_type().get_type_name() in ("i8", "u8")
        node = node.input_value(0).get_node()


def roofline_bound(
    loads: Iterable[LayerLoad], ceilings: Ceilings, precision: str, threads: int, *, batch: int = 1
) -> RooflineBound | None:
    """The least time of layers on a machine.

    Parameters
    ----------
    loads : iterable of LayerLoad
        Of all layers, for one image.
    ceilings : Ceilings
        Of the device that they run on.
    precision : str
        As a runner reports it: ``"fp32"``, ``"bf16"``, ``"fp16"``, and for a quantised file ``"int8"`` or
        ``"int8+bf16"``, whose other layers run in fp32 or bf16.
    threads : int
        CPU threads.
    batch : int
        Images.

    Returns
    -------
    RooflineBound or None
        None if arithmetic in that precision can't be measured here.
    """
    first, _, rest = precision.partition("+")
    unquantised = (rest or "fp32") if first == "int8" else precision
    arithmetic: list[float] = []
    memory: list[float] = []
    macs = moved = 0
    for layer in loads:
        used = "int8" if first == "int8" and layer.quantised else unquantised
        peak = ceilings.macs_per_s(used, threads)
        if peak is None:
            return None
        size = WIDTHS[used] * (layer.weights + batch * (layer.inputs + layer.outputs))
        arithmetic.append(batch * layer.macs / peak)
        memory.append(size / ceilings.bytes_per_s(size, threads))
        macs += batch * layer.macs
        moved += size
    return _bound(arithmetic, memory, macs, moved)


def _bound(arithmetic: Sequence[float], memory: Sequence[float], macs: int, moved: int) -> RooflineBound:
    slowest = [max(pair) for pair in zip(arithmetic, memory, strict=True)]
    memory_bound = sum(time for time, compute in zip(slowest, arithmetic, strict=True) if time > compute)
    least = sum(slowest)
    return RooflineBound(
        least_ms=least * 1e3,
        overlapped_ms=max(sum(arithmetic), sum(memory)) * 1e3,
        macs=macs,
        bytes_moved=moved,
        memory_share=memory_bound / least if least else 0.0,
    )
