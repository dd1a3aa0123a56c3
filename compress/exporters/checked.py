"""Exporting to several files at once, each compared with its network before it gets its name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.errors import UsageError
from compress.exporters.parity import Parity, check, check_heights, check_outputs, require
from compress.exporters.peaks_graph import PeakOptions
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import WEIGHT_PRECISIONS, atomic_pair, write_ir
from compress.files import atomic_path
from compress.model import Model
from compress.progress import Progress, Silent
from compress.runtime.file_interface import fixed_sides
from compress.runtime.opening import open_runner
from compress.runtime.runner import ArrayInputs, Runner
from compress.runtime.torch_runner import TorchRunner

if TYPE_CHECKING:
    from compress.data.sample import Image


@dataclass(frozen=True)
class ExportFile:
    """A file to write.

    Attributes
    ----------
    path : Path
        Ends in ``.onnx``, or in ``.xml`` for OpenVINO IR.
    precision : {"fp32", "fp16"}
        How weights are stored; an ONNX file has them in FP32.
    """

    path: Path
    precision: str = "fp32"

    def __post_init__(self) -> None:
        allowed = {".onnx": ("fp32",), ".xml": WEIGHT_PRECISIONS}.get(self.path.suffix)
        if allowed is None:
            raise UsageError("an exported file's name must end in .onnx or .xml", found=str(self.path))
        if self.precision not in allowed:
            raise UsageError(
                f"a {self.path.suffix} file can't store weights in this precision",
                found=self.precision,
                hint=f"Known: {', '.join(allowed)}",
            )

    @property
    def files(self) -> tuple[Path, ...]:
        """Everything that is written for it."""
        return (self.path,) if self.path.suffix == ".onnx" else (self.path, self.path.with_suffix(".bin"))


@dataclass(frozen=True)
class FileParity:
    """A file that was written and agrees with its network.

    Attributes
    ----------
    target : ExportFile
        What was asked for.
    parity : Parity
        How closely it agrees.
    size_bytes : int
        Size of the file, or of both files of an OpenVINO IR.
    """

    target: ExportFile
    parity: Parity
    size_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return {"file": str(self.target.path), "size_bytes": self.size_bytes, **self.parity.to_dict()}


@dataclass(frozen=True)
class CheckOptions:
    """How exported files are compared with the network.

    Attributes
    ----------
    height : int or None
        Height in pixels that images are scaled to; the network's own by default. A network of free size is compared
        at about 0.7 of it, too.
    threads : int or None
        CPU threads of each runtime.
    peaks : PeakOptions or None
        Find peaks inside the graph, too, as in `compress.exporters.to_onnx.export_onnx`; they are compared as well.
    """

    height: int | None = None
    threads: int | None = None
    peaks: PeakOptions | None = None


def export_checked(
    model: Model,
    targets: Sequence[ExportFile],
    images: Sequence[Image] | Sequence[ArrayInputs],
    options: CheckOptions | None = None,
    *,
    then: Callable[[Path], None] | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> tuple[FileParity, ...]:
    """Write a network to files that each reproduce it on real images; all of them or none.

    Every file is written under a temporary name, read back, run by its own runtime in FP32 and compared with the
    network in torch (`compress.exporters.parity`). Only when all agree do they get their names.

    Parameters
    ----------
    model : Model
        The network; it stays as it was.
    targets : sequence of ExportFile
        Files to write, each at another path.
    images : sequence of array, shape (H, W, 3), uint8; or of network inputs
        BGR images to compare a pose network on, best with people; the inputs of any other network.
    options : CheckOptions, optional
        How files are compared.
    then : callable, optional
        Called as ``then(ONNX file)`` when all files agree and none has its name yet: if it fails, none gets it.
    force : bool
        Replace existing files.
    progress : Progress, optional
        Told of each step.

    Returns
    -------
    tuple of FileParity
        One for each target, in their order.

    Raises
    ------
    ParityError
        If a file does not reproduce the network.
    FileError
        If a file exists already.
    NetworkError
        If the network can't be exported.
    UsageError
        If there is no target, two targets share a path, or there is no image.
    """
    if not targets:
        raise UsageError("there is nothing to export to", hint="Name a file ending in .onnx or .xml")
    files = [file for target in targets for file in target.files]
    if len(set(files)) < len(files):
        raise UsageError("two exported files have the same name", found=[str(file) for file in files])
    options, progress = options or CheckOptions(), progress or Silent()
    steps = _Steps(progress)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-export-")))
        reserved = [
            stack.enter_context((atomic_path if t.path.suffix == ".onnx" else atomic_pair)(t.path, force=force))
            for t in targets
        ]
        onnx_path = export_onnx(model, scratch / "model.onnx", peaks=options.peaks, progress=progress)
        steps.done("the network written as ONNX")
        reference = TorchRunner.of(model, threads=options.threads)
        results = []
        for target, temporary in zip(targets, reserved, strict=True):
            if target.path.suffix == ".onnx":
                temporary.write_bytes(onnx_path.read_bytes())
            else:
                write_ir(onnx_path, temporary, precision=target.precision)
            with closing(open_runner(temporary, threads=options.threads)) as runner:
                parity = _compare(model, reference, runner, images, target.precision, options)
            size_bytes = sum(file.stat().st_size for file in ExportFile(temporary, target.precision).files)
            results.append(FileParity(target, require(parity), size_bytes))
            steps.done(f"{target.path.name} written and compared")
        if then is not None:
            then(onnx_path)
    return tuple(results)


def _compare(
    model: Model, reference: Runner, exported: Runner, images: Sequence[Any], precision: str, options: CheckOptions
) -> Parity:
    if model.pose is None:
        return check_outputs(reference, exported, images, precision=precision)
    heights: tuple[int, ...] = check_heights(model.pose, options.height)
    if fixed_sides(exported):  # the network takes one size only, which export_onnx has reported
        heights = (model.pose.height,)
    return check(reference, exported, images, heights=heights, precision=precision, peaks=options.peaks)


class _Steps:
    """Reports how long each step took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._start = time.perf_counter()

    def done(self, step: str) -> None:
        now = time.perf_counter()
        self._progress.say(f"{step} ({now - self._start:.1f} s)")
        self._start = now
