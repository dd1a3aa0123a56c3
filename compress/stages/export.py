"""Write ONNX and OpenVINO files, checked against the network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from compress.data.sample import Image
from compress.errors import UsageError
from compress.export.checked import Target, export_checked
from compress.stages.base import Progress, StageResult, option
from compress.stages.models import DataOptions, ModelOptions, load, open_dataset
from compress.stages.registry import Stage

#: Drawn people that an export is checked on where no data is named.
DEFAULT_DATA = "synthetic:900:8"


class ExportOptions(ModelOptions, DataOptions):
    """Options of `compress export`."""

    onnx: bool = option(False, "Write ONNX")
    openvino: bool = option(False, "Write OpenVINO IR (.xml and .bin)")
    fp16: bool = option(False, "Write OpenVINO IR with weights stored in half precision, too")
    output: Path | None = option(None, "Folder (default: beside the model)", flag="-o", output=True)
    check_images: int = option(4, "Images on which each file is compared with the network")
    height: int | None = option(None, "Height that those images are scaled to (default: the network's own)")
    threads: int | None = option(None, "Threads (default: all cores)")
    force: bool = option(False, "Replace existing files")


def pick_images(options: ExportOptions) -> Sequence[Image]:
    """Images spread over the named data; drawn people where none is named."""
    chosen = options if options.has_data else options.model_copy(update={"data": DEFAULT_DATA})
    dataset = open_dataset(chosen)
    if options.check_images < 1:
        raise UsageError("--check-images must be at least 1", found=options.check_images)
    indices = np.linspace(0, len(dataset) - 1, min(options.check_images, len(dataset))).astype(int)
    return [dataset[int(index)].image for index in indices]


def run(options: ExportOptions, progress: Progress) -> StageResult:
    """Write every asked format; none is called a success before it agrees with torch."""
    if not (options.onnx or options.openvino or options.fp16):
        raise UsageError("there is nothing to export to", way_out="Name one or more of --onnx, --openvino, --fp16")
    checkpoint = load(options)
    folder = options.output or options.model.parent
    stem = options.model.stem
    targets = []
    if options.onnx:
        targets.append(Target(folder / f"{stem}.onnx"))
    if options.openvino:
        targets.append(Target(folder / f"{stem}.xml"))
    if options.fp16:
        targets.append(Target(folder / f"{stem}-fp16.xml", "fp16"))
    with progress.bar("export", None):
        exported = export_checked(
            checkpoint.build(),
            checkpoint.pose,
            targets,
            pick_images(options),
            network=checkpoint.network,
            history=checkpoint.history,
            heights=None if options.height is None else [options.height],
            threads=options.threads,
            force=options.force,
        )
    files = tuple(file for target in targets for file in target.files)
    parity = [
        {
            "file": str(done.target.path),
            "size_bytes": sum(file.stat().st_size for file in done.target.files),
            **done.parity.to_dict(),
        }
        for done in exported
    ]
    return StageResult({"files": [str(file) for file in files], "parity": parity}, files)


STAGE = Stage(ExportOptions, run, "compress export model.pt --onnx --openvino -o exported")
