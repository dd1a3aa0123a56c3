"""`compress export`: write ONNX and OpenVINO files, checked against the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.commands.base import Command, Result
from compress.commands.fields import DataText, option
from compress.commands.options import DataOptions, ModelOptions, load_model, open_dataset, open_validation
from compress.errors import UsageError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.exporters.checked import FileParity
    from compress.exporters.int8 import Int8Record
    from compress.exporters.parity import Parity


class ExportOptions(ModelOptions, DataOptions):
    """Options of `compress export`."""

    onnx: bool = option(False, "Write ONNX")
    openvino: bool = option(False, "Write OpenVINO IR (.xml and .bin)")
    fp16: bool = option(False, "Also write OpenVINO IR with weights stored in FP16")
    int8: bool = option(
        False,
        "Also write OpenVINO IR in INT8, calibrated on --data, and only if the loss of keypoint accuracy is within "
        "--max-drop (needs NNCF: pip install 'pose-compress[int8]')",
    )
    max_drop: float | None = option(
        None,
        "Most AP that --int8 may lose (default: 0.01; on images without annotations 0.2, measured against the people "
        "that the FP32 network finds, where small moves cost far more)",
    )
    calibrate: int = option(100, "Most images with people that --int8 is calibrated on")
    validation: DataText | None = option(
        None, "Data (as for --data) on which the loss of --int8 is measured (default: --data itself)"
    )
    with_peaks: bool = option(False, "Find the peaks of heatmaps inside the graph, as one more output, peaks")
    top_k: int = option(32, "With --with-peaks: peaks of each heatmap")
    upsample: int = option(4, "With --with-peaks: interpolated points per cell and axis, 1, 2 or 4")
    output: Path | None = option(None, "Folder (default: beside the model)", flag="-o", output=True)
    check_images: int = option(4, "Images on which each file is compared with the network")
    height: int | None = option(None, "Height that those images are scaled to (default: the network's own)")
    threads: int | None = option(None, "CPU threads (default: all cores)")
    force: bool = option(False, "Replace existing files")


@dataclass(frozen=True)
class ExportResult(Result):
    """The files, how far they are from the network, and for INT8 the loss of accuracy."""

    files: tuple[str, ...]
    parity: tuple[FileParity, ...]
    int8: Int8Record | None = None

    @property
    def record(self) -> dict[str, Any]:
        """The files, the comparison of each with torch, and the record of INT8 where there is one."""
        record = {"files": list(self.files), "parity": [compared.to_dict() for compared in self.parity]}
        return record if self.int8 is None else record | {"int8": self.int8.to_dict()}

    @property
    def summary(self) -> str:
        """The files."""
        return ", ".join(self.files)

    def show(self) -> None:
        """Print the comparison of each file, and the trials of INT8."""
        from compress.commands.terminal import print_table

        if self.parity:
            print_table(
                "Exported files, checked against torch",
                ["file", "precision", "max map error", "keypoints compared", "max moved (px)", "bytes"],
                [
                    (
                        compared.target.path,
                        compared.parity.precision,
                        f"{compared.parity.max_error:.2e}",
                        *_moved(compared.parity),
                        compared.size_bytes,
                    )
                    for compared in self.parity
                ],
                left=2,
            )
        if self.int8 is not None:
            show_int8(self.int8)


def _moved(parity: Parity) -> tuple[str, str]:
    """Keypoints that both sides found, and how far they are apart; dashes for a network without keypoints."""
    return ("-", "-") if parity.people is None else (str(parity.keypoints), f"{parity.moved_px_max:.3f}")


def show_int8(done: Int8Record) -> None:
    """Print the trials, the score before and after, the layers kept in FP32, and sizes."""
    from compress.commands.terminal import print_lines, print_table

    height = "" if done.height is None else f" at height {done.height}"
    print_table(
        f"{done.file}: INT8, calibrated on {done.calibration_images} images, evaluated on {done.images} images{height} "
        f"against {done.against}",
        ["layers kept in FP32", "layers", f"{done.metric} FP32", f"{done.metric} INT8", "lost"],
        [(t.kept, t.layers, f"{done.before:.3f}", f"{t.score:.3f}", f"{t.drop:+.4f}") for t in done.trials],
    )
    bounds = "" if done.interval is None else " (95 % interval {:+.3f} to {:+.3f})".format(*done.interval)
    lines = [
        f"loses {done.drop:+.4f} {done.metric}{bounds}; allowed: {done.max_drop:g}",
        f"{len(done.kept)} of {done.layers} layers kept in FP32: {', '.join(done.kept) or 'none'}",
        f"{done.fp32_bytes} bytes in FP32 -> {done.size_bytes} bytes",
    ]
    if done.symmetric:
        lines.append("symmetric quantisation: coarser where activations are negative, faster where gates multiply")
    if done.own and done.metric == "AP":
        lines.append(
            "note: without annotations, the people that the FP32 network finds count as the truth; it scores "
            f"{done.before:.3f} there, and small moves cost far more than on annotated data"
        )
    print_lines(*lines)


def check(options: ExportOptions) -> None:
    """Refuse combinations that mean nothing, before any work."""
    if not (options.onnx or options.openvino or options.fp16 or options.int8):
        raise UsageError("there is nothing to export to", hint="Name one or more of --onnx, --openvino, --fp16, --int8")
    if options.int8 and options.onnx and not options.openvino:
        raise UsageError(
            "INT8 is written as OpenVINO IR only, not as ONNX", hint="Add --openvino, or leave out --onnx or --int8"
        )
    if options.int8 and not options.has_data:
        raise UsageError(
            "--int8 needs images with people, for calibration and to measure the loss of accuracy",
            hint="Name them by --data, or by --annotations and --images; rendered people: --data synthetic:900:100",
        )
    if options.max_drop is not None and not 0 <= options.max_drop < 1:
        raise UsageError("--max-drop must be from 0 to below 1", found=options.max_drop)
    if options.calibrate < 2:
        raise UsageError("--calibrate must be at least 2", found=options.calibrate, hint="A hundred images are best")
    if options.check_images < 1:
        raise UsageError("--check-images must be at least 1", found=options.check_images)


def run(options: ExportOptions, progress: Progress) -> ExportResult:
    """Write every format; no file gets its name before it agrees with torch, or passes the gate of INT8."""
    from compress.exporters.export import ExportOptions as Conditions
    from compress.exporters.export import export
    from compress.exporters.peaks_graph import PeakOptions

    check(options)
    conditions = Conditions(
        name=options.model.stem,
        images=open_dataset(options) if options.has_data else None,
        check_images=options.check_images,
        height=options.height,
        threads=options.threads,
        peaks=PeakOptions(options.top_k, options.upsample) if options.with_peaks else None,
        max_drop=options.max_drop,
        calibrate=options.calibrate,
        validation=open_validation(options.validation, options),
        force=options.force,
    )
    done = export(
        load_model(options),
        options.output or options.model.parent,
        onnx=options.onnx,
        openvino=options.openvino,
        fp16=options.fp16,
        int8=conditions.images if options.int8 else None,
        options=conditions,
        progress=progress,
    )
    return ExportResult(
        files=tuple(map(str, done.files)),
        parity=done.parity,
        int8=done.int8,
        written=done.files,
    )


COMMAND = Command(ExportOptions, run, "compress export model.pt --onnx --openvino -o exported")
