"""The ONNX operators that the steps of a factorized layer are exported to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class OnnxStep:
    """One operator in the place of a step.

    Attributes
    ----------
    operator : str
        ``"Conv"``, ``"ConvTranspose"``, ``"Gemm"`` or ``"MatMul"``.
    weight_shape : tuple of int
        Of its weight, as the operator stores it.
    attributes : dict
        As of ``onnx.helper.make_node``.
    """

    operator: str
    weight_shape: tuple[int, ...]
    attributes: dict[str, Any]


def onnx_steps(module: nn.Module, operator: str) -> tuple[OnnxStep, ...]:
    """The operators of all children of a factorized layer, in order.

    Parameters
    ----------
    module : nn.Module
        A factorized layer.
    operator : str
        The one that the layer itself was exported to.
    """
    return tuple(_onnx_step(step, operator) for step in module.children())


def _onnx_step(step: nn.Module, operator: str) -> OnnxStep:
    shape = tuple(step.get_parameter("weight").shape)
    if not isinstance(step, (nn.Conv2d, nn.ConvTranspose2d)):
        stored = shape[::-1] if operator == "MatMul" else shape
        return OnnxStep(operator, stored, {"transB": 1} if operator == "Gemm" else {})
    attributes: dict[str, Any] = {
        "kernel_shape": list(step.kernel_size),
        "strides": list(step.stride),
        "dilations": list(step.dilation),
        "group": step.groups,
        "pads": _pads(step),
    }
    if isinstance(step, nn.ConvTranspose2d):
        return OnnxStep("ConvTranspose", shape, attributes | {"output_padding": list(step.output_padding)})
    return OnnxStep("Conv", shape, attributes)


def _pads(step: nn.Conv2d | nn.ConvTranspose2d) -> list[int]:
    """Begin of both axes, then their end; any padding but zeros is an operator of its own before the layer."""
    if step.padding == "valid" or step.padding_mode != "zeros":
        return [0, 0, 0, 0]
    if step.padding == "same":
        totals = [d * (k - 1) for d, k in zip(step.dilation, step.kernel_size, strict=True)]
        return [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]
    pads = [int(side) for side in step.padding]
    return [*pads, *pads]
