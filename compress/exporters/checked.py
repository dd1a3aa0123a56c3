"""Exporting to several files at once, each compared with its network before it gets its name."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from compress.errors import UsageError
from compress.exporters.parity import Parity, check, require
from compress.exporters.peaks_graph import PeakOptions
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import PRECISIONS, atomic_pair, write_ir
from compress.files import atomic_path
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.runtime.opening import open_runner
from compress.runtime.torch_runner import TorchRunner

if TYPE_CHECKING:
    from compress.data.sample import Image


@dataclass(frozen=True)
class Target:
    """A file to write.

    Attributes
    ----------
    path : Path
        Ends in ``.onnx``, or in ``.xml`` for OpenVINO IR.
    precision : {"fp32", "fp16"}
        How weights are stored; an ONNX file has them in float32.
    """

    path: Path
    precision: str = "fp32"

    def __post_init__(self) -> None:
        allowed = {".onnx": ("fp32",), ".xml": PRECISIONS}.get(self.path.suffix)
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
class Exported:
    """A file that was written and agrees with its network.

    Attributes
    ----------
    target : Target
        What was asked for.
    parity : Parity
        How closely it agrees.
    """

    target: Target
    parity: Parity


def export_checked(
    module: nn.Module,
    pose: PoseSpec,
    targets: Sequence[Target],
    images: Sequence[Image],
    *,
    network: NetworkSpec | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    heights: Sequence[int] | None = None,
    threads: int | None = None,
    peaks: PeakOptions | None = None,
    then: Callable[[Path], None] | None = None,
    force: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> tuple[Exported, ...]:
    """Write a network to files that each reproduce it on real images; all of them or none.

    Every file is written under a temporary name, read back, run by its own runtime in float32 and compared with the
    network in torch (`compress.exporters.parity.check`). Only when all agree do they get their names.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was.
    pose : PoseSpec
        What it expects and gives.
    targets : sequence of Target
        Files to write, each at another path.
    images : sequence of array, shape (H, W, 3), uint8
        BGR images to compare on, best with people on them.
    network, history
        For the metadata, as in `compress.exporters.to_onnx.export_onnx`.
    heights : sequence of int, optional
        Heights that images are scaled to, as in `compress.exporters.parity.check`.
    threads : int, optional
        Threads of each runtime during the comparison.
    peaks : PeakOptions, optional
        Find peaks inside the graph, too, as in `compress.exporters.to_onnx.export_onnx`; they are compared as well.
    then : callable, optional
        Called as ``then(ONNX file)`` when all files agree and none has its name yet: if it fails, none gets it.
    force : bool
        Replace existing files.
    progress : callable, optional
        Called as ``progress(what was done, seconds it took)`` after each step.

    Returns
    -------
    tuple of Exported
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
    clock = _Clock(progress)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="compress-export-")))
        reserved = [
            stack.enter_context((atomic_path if t.path.suffix == ".onnx" else atomic_pair)(t.path, force=force))
            for t in targets
        ]
        onnx_path = export_onnx(module, pose, scratch / "model.onnx", network=network, history=history, peaks=peaks)
        clock.done("the network as ONNX")
        reference = TorchRunner(module, pose, device="cpu", threads=threads)
        results = []
        for target, temporary in zip(targets, reserved, strict=True):
            if target.path.suffix == ".onnx":
                temporary.write_bytes(onnx_path.read_bytes())
            else:
                write_ir(onnx_path, temporary, precision=target.precision)
            runner = open_runner(temporary, device="cpu", precision="fp32", threads=threads)
            try:
                parity = check(
                    reference, runner, images, pose=pose, heights=heights, precision=target.precision, peaks=peaks
                )
            finally:
                runner.close()
            results.append(Exported(target, require(parity)))
            clock.done(f"{target.path.name} written and compared")
        if then is not None:
            then(onnx_path)
    return tuple(results)


class _Clock:
    """Tells how long each step took."""

    def __init__(self, progress: Callable[[str, float], None] | None) -> None:
        self._progress = progress
        self._start = time.perf_counter()

    def done(self, step: str) -> None:
        now = time.perf_counter()
        if self._progress is not None:
            self._progress(step, now - self._start)
        self._start = now
