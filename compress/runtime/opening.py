"""Opening a model or a file on the runtime that it is for."""

from __future__ import annotations

import os
from pathlib import Path

from compress.checkpoint.load import load
from compress.checkpoint.own_code import Network
from compress.errors import UsageError
from compress.model import Model
from compress.runtime.onnx_runner import OnnxRunner
from compress.runtime.openvino_runner import OpenVinoRunner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchOptions, TorchRunner
from compress.target import PRECISIONS, RUNTIMES, Target

#: Runtimes of exported files; every other file is taken for a checkpoint, which torch runs.
_BY_SUFFIX = {".onnx": "onnxruntime", ".xml": "openvino"}

#: Most images that a network takes at once unless more are asked for: each holds memory of its own.
MOST_STREAMS = 4


def runtime_of(path: Path) -> str:
    """The runtime that a file is for, by its suffix."""
    return _BY_SUFFIX.get(path.suffix.lower(), "torch")


def usual_streams(runtime: str, device: str = "cpu", threads: int | None = None) -> int:
    """Number of images that a runner takes at once where throughput counts: several with OpenVINO on a CPU."""
    if (runtime, device) != ("openvino", "cpu"):
        return 1
    return min(MOST_STREAMS, threads or os.cpu_count() or 1)


def target_for(
    source: Path | Model, *, runtime: str | None = None, device: str = "cpu", precision: str = "fp32"
) -> Target:
    """The target of a model or a file, on its own runtime unless another is named.

    Raises
    ------
    UsageError
        If the runtime or precision is unknown.
    """
    if runtime is None:
        runtime = "torch" if isinstance(source, Model) else runtime_of(source)
    if runtime not in RUNTIMES:
        raise UsageError("unknown runtime", found=runtime, hint=f"Known: {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise UsageError("unknown precision", found=precision, hint=f"Known: {', '.join(PRECISIONS)}")
    return Target(runtime, device, precision)


def open_runner(
    source: Path | Model,
    target: Target | None = None,
    *,
    threads: int | None = None,
    streams: int = 1,
    network: Network | None = None,
    torch_options: TorchOptions | None = None,
) -> Runner:
    """A runner for a model or a file.

    Parameters
    ----------
    source : Path or Model
        A model, a checkpoint (``.pt``, ``.safetensors``, a public state dict), an ONNX file or an OpenVINO IR
        (``.xml``).
    target : Target, optional
        Runtime, device and precision; by default the runtime that the file is for, on the CPU in FP32. The file's own
        precision decides how exact its weights are, and whether it is quantised.
    threads : int, optional
        CPU threads; the runtime's own choice by default.
    streams : int
        Number of threads that may use the runner at once; more than one with OpenVINO alone.
    network : str, callable or nn.Module, optional
        The network in a file that does not say what it is, or one of the user's own.
    torch_options : TorchOptions, optional
        How torch runs a checkpoint; not used by other runtimes.

    Raises
    ------
    UsageError
        If the file belongs to another runtime, there are no threads, or more streams than the runtime or the threads
        allow.
    RuntimeAbsent
        If this machine lacks the runtime, the device or the precision.
    CompressError
        If the file can't be read.
    """
    target = target or target_for(source)
    if threads is not None and threads < 1:
        raise UsageError("a runner needs at least one thread", found=threads)
    if streams < 1 or (threads is not None and streams > threads):
        raise UsageError("a runner needs at least one stream, and a thread for each", found=streams)
    own = _checked_runtime(source, target)
    if own != "openvino" and streams > 1:
        raise UsageError(
            f"{own} takes one image after the other", found=streams, hint="Several at once need an OpenVINO file"
        )
    if isinstance(source, Model):
        return TorchRunner.of(source, target, threads=threads, options=torch_options)
    if own == "onnxruntime":
        return OnnxRunner(source, device=target.device, precision=target.precision, threads=threads, network=network)
    if own == "openvino":
        return OpenVinoRunner(
            source,
            device=target.device,
            precision=target.precision,
            threads=threads,
            streams=streams,
            network=network,
        )
    return TorchRunner.of(load(source, network), target, threads=threads, options=torch_options)


def _checked_runtime(source: Path | Model, target: Target) -> str:
    """The runtime that runs a model or a file; a `UsageError` if the target is another one."""
    if isinstance(source, Model):
        own, hint = "torch", "Export the model first: compress.export"
    else:
        own = runtime_of(source)
        hint = f"Export the checkpoint first: compress export {source}" if own == "torch" else "Leave out the runtime"
        if source.suffix.lower() == ".bin" and source.with_suffix(".xml").exists():
            raise UsageError(
                "this file holds the weights of an OpenVINO model",
                found=str(source),
                hint=f"Name {source.with_suffix('.xml').name}",
            )
    if target.runtime != own:
        name = source.label if isinstance(source, Model) else str(source)
        raise UsageError(f"{target.runtime} does not run a file that is for {own}", found=name, hint=hint)
    return own
