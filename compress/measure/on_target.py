"""Models on a target: the files that its runtime needs, and runners for them."""

from __future__ import annotations

from pathlib import Path

from compress.exporters.quantise import quantise_for_timing
from compress.exporters.to_openvino import write_ir
from compress.runtime.opening import open_runner
from compress.runtime.openvino_runner import shared_core
from compress.runtime.runner import Runner
from compress.target import Target


def open_on_target(path: Path, target: Target, size: tuple[int, int], *, threads: int | None = None) -> Runner:
    """A runner for an ONNX file on a target other than torch.

    Parameters
    ----------
    path, target, size
        As of `file_for_target`.
    threads : int, optional
        CPU threads; the runtime's default otherwise.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the runtime, the device or the precision.
    """
    path = file_for_target(path, target, size)
    return open_runner(path, target, threads=threads)


def file_for_target(path: Path, target: Target, size: tuple[int, int]) -> Path:
    """The file that a target's runtime runs: the ONNX file itself, or OpenVINO's files, written beside it if absent.

    Parameters
    ----------
    path : Path
        As `compress.exporters.to_onnx.export_onnx` writes it.
    target : Target
        Runtime, device and precision. If it is an INT8 target, the outputs are meaningless and only times are right:
        see `compress.exporters.quantise.quantise_for_timing`.
    size : (int, int)
        H and W of the images to come.

    Raises
    ------
    RuntimeAbsent
        If OpenVINO or what quantises for it is not installed.
    """
    if target.runtime != "openvino":
        return path
    converted = path.with_suffix(".xml")
    if not converted.exists():
        write_ir(path, converted)
    if not target.int8:
        return converted
    quantised = path.with_name(f"{path.stem}-int8.xml")
    return quantised if quantised.exists() else write_quantised(converted, size)


def write_quantised(path: Path, size: tuple[int, int]) -> Path:
    """Write the result of `compress.exporters.quantise.quantise_for_timing` for an OpenVINO IR beside it."""
    import openvino

    written = path.with_name(f"{path.stem}-int8.xml")
    openvino.save_model(quantise_for_timing(shared_core().read_model(path), size), written, compress_to_fp16=False)
    return written
