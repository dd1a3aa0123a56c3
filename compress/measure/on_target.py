"""Exported networks as they run on the target of a latency budget."""

from __future__ import annotations

from pathlib import Path

from compress.exporters.quantise import quantise_for_timing
from compress.exporters.to_openvino import write_ir
from compress.runtime.opening import open_runner
from compress.runtime.openvino_runner import shared_core
from compress.runtime.runner import Runner
from compress.target import Target


def open_on_target(path: Path, target: Target, size: tuple[int, int], *, threads: int | None = None) -> Runner:
    """A runner for an ONNX file on a target that is not torch.

    Parameters
    ----------
    path : Path
        As `compress.exporters.to_onnx.export_onnx` writes it. OpenVINO's files are written beside it.
    target : Target
        Runtime, device and precision. Where it has eight bits, the maps are worth nothing: see
        `compress.exporters.quantise.quantise_for_timing`.
    size : (int, int)
        H and W of the images to come.
    threads : int, optional
        CPU threads; what the runtime takes by default.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the runtime, the device or the precision.
    """
    if target.runtime == "openvino":
        source, path = path, path.with_suffix(".xml")
        write_ir(source, path)
    if target.int8:
        path = write_quantised(path, size)
    return open_runner(path, device=target.device, precision=target.precision, threads=threads)


def write_quantised(path: Path, size: tuple[int, int]) -> Path:
    """Write what `compress.exporters.quantise.quantise_for_timing` makes of an OpenVINO IR beside it."""
    import openvino

    written = path.with_name(f"{path.stem}-int8.xml")
    openvino.save_model(quantise_for_timing(shared_core().read_model(path), size), written, compress_to_fp16=False)
    return written
