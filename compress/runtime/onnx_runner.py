"""ONNX files on onnxruntime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from compress.errors import FileError, RuntimeAbsent, UsageError
from compress.files import read_bytes
from compress.pose.spec import PoseSpec
from compress.runtime.runner import PEAKS, Array, cannot_run, check_input, foreign_pose, match_outputs, read_pose

#: Where an exported file's metadata holds the pose specification as JSON.
POSE_KEY = "compress.pose"

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRunner:
    """An ONNX file as onnxruntime runs it.

    Parameters
    ----------
    path : Path
        The file. Its metadata says what the network expects and gives, or ``network`` does.
    device : {"cpu", "cuda"}
        Where to run.
    precision : {"fp32"}
        onnxruntime computes in the types that the file's graph names; only float32 graphs are run.
    threads : int, optional
        CPU threads; all cores by default.
    network : str, optional
        Name of the network in a file from elsewhere.

    Raises
    ------
    RuntimeAbsent
        If onnxruntime, the device or the precision is not there.
    FileError
        If the file is missing, empty, no ONNX model, or not a pose network.
    CompressError
        If the file does not say what it expects and gives, and ``network`` is not given.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        network: str | None = None,
    ) -> None:
        read_bytes(path, "ONNX model")
        self._session, options = _open(path, device, precision, threads)
        self.device = device
        self.precision = precision
        self.threads = options.intra_op_num_threads or _cores()
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.pose: PoseSpec = (
            read_pose(metadata[POSE_KEY], path) if POSE_KEY in metadata else foreign_pose(path, network)
        )
        outputs = self._session.get_outputs()
        matched = match_outputs([({o.name}, _channels(o.shape)) for o in outputs], self.pose, path)
        self._outputs = [outputs[index].name for index in matched]
        self._names = self.pose.outputs
        if any(output.name == PEAKS for output in outputs):
            self._outputs, self._names = [*self._outputs, PEAKS], (*self._names, PEAKS)
        self._input = _find_input(self._session.get_inputs(), path)

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps of images; see `compress.runtime.runner.Runner.run`."""
        check_input(images, self.pose)
        fixed = self._input.shape
        if any(isinstance(want, int) and want != have for want, have in zip(fixed, images.shape, strict=True)):
            raise UsageError("the file takes inputs of one shape only", found=images.shape, hint=f"It takes {fixed}")
        try:
            maps = self._session.run(self._outputs, {self._input.name: images})
        except Exception as error:  # onnxruntime's exceptions share no base but this
            raise cannot_run(self.name, images, error) from error
        return dict(zip(self._names, maps, strict=True))

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


def _find_input(inputs: list[Any], path: Path) -> Any:
    """The one input, a batch of float32 images."""
    if len(inputs) != 1 or len(inputs[0].shape) != 4 or _channels(inputs[0].shape) not in (3, None):
        raise FileError(
            "the model does not take one batch of images (images, 3, height, width)",
            found=", ".join(f"{i.name} {i.shape}" for i in inputs),
            hint=f"Is {path.name} a pose network?",
        )
    if inputs[0].type != "tensor(float)":
        raise FileError("the model does not take float32", found=inputs[0].type, hint="Export it in float32")
    return inputs[0]


def _channels(shape: list[int | str | None] | None) -> int | None:
    """Size of the second axis where it is fixed."""
    count = shape[1] if shape and len(shape) == 4 else None
    return count if isinstance(count, int) else None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
