"""Opening a file on the runtime it is made for."""

from __future__ import annotations

import os
from pathlib import Path

from compress.checkpoint.load import load
from compress.errors import UsageError
from compress.runtime.onnx_runner import OnnxRunner
from compress.runtime.openvino_runner import OpenVinoRunner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchOptions, TorchRunner

RUNTIMES = ("torch", "onnxruntime", "openvino")
PRECISIONS = ("fp32", "bf16", "fp16")

#: Runtimes of exported files; every other file is taken for a checkpoint, which torch runs.
_BY_SUFFIX = {".onnx": "onnxruntime", ".xml": "openvino"}

#: Most images that a network takes at once unless more are asked for: each holds memory of its own.
MOST_STREAMS = 4


def runtime_of(path: Path) -> str:
    """The runtime that a file is made for, by its suffix."""
    return _BY_SUFFIX.get(path.suffix.lower(), "torch")


def usual_streams(runtime: str, device: str = "cpu", threads: int | None = None) -> int:
    """How many images a runner takes at once where nobody waits for one of them: several with OpenVINO on a CPU."""
    if (runtime, device) != ("openvino", "cpu"):
        return 1
    return min(MOST_STREAMS, threads or os.cpu_count() or 1)


def open_runner(
    path: Path,
    *,
    runtime: str | None = None,
    device: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    streams: int = 1,
    network: str | None = None,
    torch_options: TorchOptions | None = None,
) -> Runner:
    """A runner for a file.

    Parameters
    ----------
    path : Path
        A checkpoint (``.pt``, ``.safetensors``, a public state dict), an ONNX file or an OpenVINO IR (``.xml``).
    runtime : {"torch", "onnxruntime", "openvino"}, optional
        By default the runtime that the file is made for, which is the only one that runs it.
    device : str
        ``"cpu"``, ``"cuda"``, or another device of the runtime.
    precision : {"fp32", "bf16", "fp16"}
        What to compute in. The file's own precision decides how exact its weights are.
    threads : int, optional
        CPU threads; what the runtime takes by default.
    streams : int
        So many threads may use the runner at once; more than one with OpenVINO alone.
    network : str, optional
        Name of the network in a foreign file that can't say what it is.
    torch_options : TorchOptions, optional
        How torch runs a checkpoint; other runtimes have no use for it.

    Raises
    ------
    UsageError
        If the runtime or precision is unknown, the file belongs to another runtime, there are no threads, or more
        streams than the runtime or the threads allow.
    RuntimeAbsent
        If this machine lacks the runtime, the device or the precision.
    CompressError
        If the file can't be read, or does not say what it expects and gives.
    """
    own = runtime_of(path)
    wanted = own if runtime is None else runtime
    if wanted not in RUNTIMES:
        raise UsageError("unknown runtime", found=runtime, hint=f"Known: {', '.join(RUNTIMES)}")
    if precision not in PRECISIONS:
        raise UsageError("unknown precision", found=precision, hint=f"Known: {', '.join(PRECISIONS)}")
    if threads is not None and threads < 1:
        raise UsageError("a runner needs at least one thread", found=threads)
    if streams < 1 or (threads is not None and streams > threads):
        raise UsageError("a runner needs at least one stream, and a thread for each", found=streams)
    if path.suffix.lower() == ".bin" and path.with_suffix(".xml").exists():
        raise UsageError(
            "this is the weights of an OpenVINO model", found=str(path), hint=f"Name {path.with_suffix('.xml').name}"
        )
    if wanted != own:
        hint = "Leave out the runtime" if own != "torch" else f"Export the checkpoint first: compress export {path}"
        raise UsageError(f"{wanted} does not run a file that is for {own}", found=str(path), hint=hint)
    if own != "openvino" and streams > 1:
        raise UsageError(
            f"{own} takes one image after the other", found=streams, hint="Several at once need an OpenVINO file"
        )
    if own == "onnxruntime":
        return OnnxRunner(path, device=device, precision=precision, threads=threads, network=network)
    if own == "openvino":
        return OpenVinoRunner(
            path, device=device, precision=precision, threads=threads, streams=streams, network=network
        )
    checkpoint = load(path, network)
    return TorchRunner(
        checkpoint.module,
        checkpoint.pose,
        device=device,
        precision=precision,
        threads=threads,
        options=torch_options,
    )
