"""ONNX files on onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compress.checkpoint.own_code import Network
from compress.errors import FileError, RuntimeAbsent, UsageError
from compress.files import read_bytes
from compress.network.inputs import InputSpec
from compress.pose.spec import PoseSpec
from compress.runtime.file_interface import SECTION, Port, read_interface, specs_of
from compress.runtime.runner import Array, ArrayInputs, Shape, cannot_run, check_inputs, fits, one_by_one

#: Where an exported file's metadata holds the pose specification as JSON.
POSE_KEY = f"{SECTION}.pose"

_DTYPES = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(bool)": "bool", "tensor(uint8)": "uint8"}

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRunner:
    """An ONNX file as onnxruntime runs it.

    Parameters
    ----------
    path : Path
        The file. Its metadata says what the network expects and returns, or ``network`` does.
    device : {"cpu", "cuda"}
        Where to run.
    precision : {"fp32"}
        onnxruntime computes in the types that the file's graph names; only float32 graphs are run.
    threads : int, optional
        CPU threads; all cores by default.
    network : str, callable or nn.Module, optional
        The network in a file from elsewhere.

    Attributes
    ----------
    shape : tuple of int or None
        Sizes of the first input that the file fixes, None for each free one.
    inputs : tuple of InputSpec
        What the network reads; empty where the file leaves heights or widths free.

    Raises
    ------
    RuntimeAbsent
        If onnxruntime, the device or the precision is not there.
    FileError
        If the file is missing, empty, no ONNX model, or does not fit its pose specification.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        network: Network | None = None,
    ) -> None:
        read_bytes(path, "ONNX model")
        self._session, options = _open(path, device, precision, threads)
        self.device = device
        self.precision = precision
        self.threads = options.intra_op_num_threads or _cores()
        outputs = self._session.get_outputs()
        ports = [Port(frozenset({output.name}), _channels(output.shape)) for output in outputs]
        found = read_interface(path, ports, _metadata(self._session, path), network)
        self.pose: PoseSpec | None = found.pose
        self._names = found.names
        self._outputs = [outputs[index].name for index in found.indices]
        self._inputs = self._session.get_inputs()
        if self.pose is not None:
            _check_image(self._inputs, self.pose, path)
        shapes = [_shape(port) for port in self._inputs]
        self.shape: Shape | None = shapes[0] if shapes else None
        self.inputs: tuple[InputSpec, ...] = specs_of(
            shapes, [_DTYPES.get(port.type, "float32") for port in self._inputs]
        )

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Outputs of the network; see `compress.runtime.runner.Runner.run`."""
        arrays = check_inputs(inputs, self.pose)
        if len(arrays) != len(self._inputs):
            raise UsageError(f"the file takes {len(self._inputs)} input(s)", found=len(arrays))
        for port, array in zip(self._inputs, arrays, strict=True):
            shape = _shape(port)
            if not fits(shape, array):
                if shape[0] == 1 < len(array):
                    return one_by_one(self.run, inputs)
                raise UsageError(
                    "the file takes inputs of one shape only", found=array.shape, hint=f"It takes {port.shape}"
                )
        try:
            feed = {port.name: array for port, array in zip(self._inputs, arrays, strict=True)}
            values = self._session.run(self._outputs, feed)
        except Exception as error:  # onnxruntime's exceptions share no base but this
            raise cannot_run(self.name, arrays, error) from error
        return dict(zip(self._names, values, strict=True))

    def close(self) -> None:
        """Drop the session."""
        del self._session


def _open(path: Path, device: str, precision: str, threads: int | None) -> tuple[Any, Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise RuntimeAbsent("onnxruntime is not installed", hint="pip install onnxruntime") from error
    provider = _PROVIDERS.get(device)
    if provider not in onnxruntime.get_available_providers():
        raise RuntimeAbsent(
            f"onnxruntime has no device {device} on this machine",
            found=device,
            hint="Use --device cpu; for cuda, install onnxruntime-gpu",
        )
    if precision != "fp32":
        raise RuntimeAbsent(
            f"onnxruntime has no {precision} arithmetic for float32 files",
            found=precision,
            hint="Use --precision fp32, or another runtime",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what goes wrong comes as an exception too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no base but this
        raise FileError(
            f"the file can't be read as an ONNX model ({str(error).strip().splitlines()[0][:200]})",
            found=str(path),
            hint="Fetch or export it again",
        ) from error
    if provider not in session.get_providers():
        # It falls back to the CPU silently when the driver or a library is missing.
        raise RuntimeAbsent(f"onnxruntime can't use the device {device}", found=device, hint="Use --device cpu")
    return session, options


def _metadata(session: Any, path: Path) -> dict[str, str]:
    """Our own metadata, keys without their prefix."""
    try:
        entries: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise FileError("the file's metadata is not valid UTF-8", found=str(path), hint="Export it again") from error
    prefix = f"{SECTION}."
    return {key.removeprefix(prefix): value for key, value in entries.items() if key.startswith(prefix)}


def _check_image(inputs: list[Any], pose: PoseSpec, path: Path) -> None:
    """Refuse a pose network whose first input is no batch of float32 images."""
    shape = inputs[0].shape if inputs else []
    axis = 3 if pose.layout == "nhwc" else 1
    if len(shape) != 4 or (isinstance(shape[axis], int) and shape[axis] != pose.channels):
        raise FileError(
            f"the model does not take one batch of images with {pose.channels} channel(s)",
            found=", ".join(f"{i.name} {i.shape}" for i in inputs),
            hint=f"Is {path.name} a pose network, and is its pose specification right?",
        )
    if inputs[0].type != "tensor(float)":
        raise FileError("the model does not take float32", found=inputs[0].type, hint="Export it in float32")


def _channels(shape: list[int | str | None] | None) -> int | None:
    """Size of the second axis where it is fixed."""
    count = shape[1] if shape and len(shape) > 1 else None
    return count if isinstance(count, int) else None


def _shape(port: Any) -> Shape:
    """Sizes that the file fixes."""
    return tuple(side if isinstance(side, int) else None for side in port.shape)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
