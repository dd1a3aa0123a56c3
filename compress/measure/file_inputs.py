"""Shapes of the inputs of exported files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compress.errors import RuntimeAbsent, UsageError
from compress.network.inputs import InputSpec
from compress.runtime.openvino_runner import shared_core

#: Names of element types as torch has them, by those of OpenVINO and onnxruntime.
_TYPES = {"f32": "float32", "f16": "float16", "i64": "int64", "i32": "int32", "u8": "uint8", "boolean": "bool"}
_TYPES |= {
    "tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64", "tensor(int32)": "int32",
    "tensor(uint8)": "uint8", "tensor(bool)": "bool",
}  # fmt: skip


def file_inputs(path: Path, size: tuple[int, int] | None = None) -> tuple[InputSpec, ...]:
    """Inputs of an ONNX file or OpenVINO IR, batch size 1 where it is free.

    Parameters
    ----------
    path : Path
        The file.
    size : (int, int), optional
        H and W of images where the file takes any.

    Raises
    ------
    UsageError
        If the file takes any size and none is given.
    RuntimeAbsent
        If the file's runtime is not installed.
    """
    ports = _openvino_ports(path) if path.suffix.lower() == ".xml" else _onnx_ports(path)
    specs = []
    for sides, kind in ports:
        shape = list(sides)
        if shape and shape[0] is None:
            shape[0] = 1
        if len(shape) == 4 and size is not None:
            shape[2:] = [own if own is not None else given for own, given in zip(shape[2:], size, strict=True)]
        if len(shape) == 4 and shape[1] is None:
            shape[1] = 3
        fixed = [side for side in shape if side is not None]
        if len(fixed) < len(shape):
            raise UsageError("the file takes inputs of any size", found=str(path), hint="Give a size")
        specs.append(InputSpec(tuple(fixed), _TYPES.get(kind, "float32")))
    return tuple(specs)


def _openvino_ports(path: Path) -> list[tuple[Sequence[int | None], str]]:
    model = shared_core().read_model(path)
    return [
        (
            [None if side.is_dynamic else int(side.get_length()) for side in port.get_partial_shape()],
            port.get_element_type().get_type_name(),
        )
        for port in model.inputs
    ]


def _onnx_ports(path: Path) -> list[tuple[Sequence[int | None], str]]:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeAbsent("onnxruntime is not installed", hint="pip install onnxruntime") from error
    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [
        ([side if isinstance(side, int) else None for side in port.shape], port.type) for port in session.get_inputs()
    ]
