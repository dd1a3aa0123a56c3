"""Write ONNX and OpenVINO files, checked against the network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from compress.commands.base import StageResult, option
from compress.commands.options import DataOptions, ModelOptions, load_model, open_dataset
from compress.commands.registry import Stage
from compress.data.sample import Image
from compress.data.source import open_data
from compress.data.tolerant import spread
from compress.errors import UsageError
from compress.exporters.checked import Target, export_checked
from compress.exporters.int8 import quantise_checked
from compress.exporters.peaks_graph import PeakOptions
from compress.exporters.to_openvino import atomic_pair
from compress.progress import Progress

#: Drawn people that an export is checked on where no data is named.
DEFAULT_DATA = "synthetic:900:8"


class ExportOptions(ModelOptions, DataOptions):
    """Options of `compress export`."""

    onnx: bool = option(False, "Write ONNX")
    openvino: bool = option(False, "Write OpenVINO IR (.xml and .bin)")
    fp16: bool = option(False, "Write OpenVINO IR with weights stored in half precision, too")
    int8: bool = option(
        False, "Write OpenVINO IR in eight bits, too: calibrated on --data and only if its keypoints pass --max-drop"
    )
    max_drop: float | None = option(
        None,
        "Most that --int8 may lose of AP (default: 0.01; where images have no annotations 0.2 of AP against the "
        "network's own people, of which small moves cost far more)",
    )
    calibrate: int = option(100, "Most images with people that --int8 is calibrated on")
    validation: str | None = option(None, "Data (as for --data) on which --int8 is judged (default: --data itself)")
    with_peaks: bool = option(False, "Find the peaks of heatmaps inside the graph: one more output, peaks")
    top_k: int = option(32, "Peaks of each map in that output")
    upsample: int = option(4, "Interpolated points per cell and axis among which it finds them: 1, 2 or 4")
    output: Path | None = option(None, "Folder (default: beside the model)", flag="-o", output=True)
    check_images: int = option(4, "Images on which each file is compared with the network")
    height: int | None = option(None, "Height that those images are scaled to (default: the network's own)")
    threads: int | None = option(None, "Threads (default: all cores)")
    force: bool = option(False, "Replace existing files")


def pick_images(options: ExportOptions) -> Sequence[Image]:
    """Images spread over the named data; drawn people where none is named."""
    chosen = options if options.has_data else options.model_copy(update={"data": (DEFAULT_DATA,)})
    dataset = open_dataset(chosen)
    if options.check_images < 1:
        raise UsageError("--check-images must be at least 1", found=options.check_images)
    return [sample.image for sample in spread(dataset, options.check_images)]


def run(options: ExportOptions, progress: Progress) -> StageResult:
    """Write every asked format; none is called a success before it agrees with torch, or passes the gate of INT8."""
    check(options)
    checkpoint = load_model(options)
    folder = options.output or options.model.parent
    stem = options.model.stem
    targets = []
    if options.onnx:
        targets.append(Target(folder / f"{stem}.onnx"))
    if options.openvino:
        targets.append(Target(folder / f"{stem}.xml"))
    if options.fp16:
        targets.append(Target(folder / f"{stem}-fp16.xml", "fp16"))
    files = [file for target in targets for file in target.files]
    record: dict[str, Any] = {}
    with ExitStack() as stack:
        checked, then = list(targets), None
        if options.int8:
            path = folder / f"{stem}-int8.xml"
            temporary = stack.enter_context(atomic_pair(path, force=options.force))
            files += [path, path.with_suffix(".bin")]
            # What is quantized is compared with torch in any case.
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="compress-export-")))
            checked = targets or [Target(scratch / "fp32.xml")]

            def then(onnx_path: Path) -> None:
                record["int8"] = {"file": str(path)} | quantise_to(onnx_path, temporary, options, progress)

        # Quantization has bars of its own.
        with nullcontext() if options.int8 else progress.bar("export", None):
            exported = export_checked(
                checkpoint.module,
                checkpoint.pose,
                checked,
                pick_images(options),
                network=checkpoint.source,
                history=checkpoint.history,
                heights=None if options.height is None else [options.height],
                threads=options.threads,
                peaks=PeakOptions(options.top_k, options.upsample) if options.with_peaks else None,
                then=then,
                force=options.force,
            )
    parity = [
        {
            "file": str(done.target.path),
            "size_bytes": sum(file.stat().st_size for file in done.target.files),
            **done.parity.to_dict(),
        }
        for done in exported
        if done.target in targets
    ]
    return StageResult({"files": [str(file) for file in files], "parity": parity} | record, tuple(files))


def check(options: ExportOptions) -> None:
    """Refuse combinations that mean nothing, before any work."""
    if not (options.onnx or options.openvino or options.fp16 or options.int8):
        raise UsageError("there is nothing to export to", hint="Name one or more of --onnx, --openvino, --fp16, --int8")
    if options.int8 and options.onnx and not options.openvino:
        raise UsageError(
            "INT8 is written as OpenVINO IR alone, not as ONNX", hint="Add --openvino, or leave out --onnx or --int8"
        )
    if options.int8 and not options.has_data:
        raise UsageError(
            "--int8 needs images with people, to calibrate with and to be judged on",
            hint="Name them by --data, or by --annotations and --images; drawn people: --data synthetic:900:100",
        )
    if options.max_drop is not None and not 0 <= options.max_drop < 1:
        raise UsageError("--max-drop must be from 0 to below 1", found=options.max_drop)
    if options.calibrate < 2:
        raise UsageError("--calibrate must be at least 2", found=options.calibrate, hint="A hundred images are best")


def quantise_to(onnx_path: Path, path: Path, options: ExportOptions, progress: Progress) -> dict[str, Any]:
    """Write the file in eight bits that passes the gate; the record of how."""
    calibration = open_dataset(options)
    validation = calibration if options.validation is None else open_data(options.validation, split=options.split)
    return quantise_checked(
        onnx_path,
        path,
        calibration=calibration,
        validation=validation,
        count=options.calibrate,
        height=options.height,
        max_drop=options.max_drop,
        threads=options.threads,
        progress=progress,
    )


STAGE = Stage(ExportOptions, run, "compress export model.pt --onnx --openvino -o exported")
