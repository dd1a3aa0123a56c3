"""A model as files for other runtimes, each checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.source import images as open_images
from compress.data.spec import DataSpec
from compress.data.tolerant import spread
from compress.errors import UsageError
from compress.evaluation.inputs import calibration_inputs
from compress.exporters.checked import CheckOptions, ExportFile, FileParity, export_checked
from compress.exporters.gate import arrays_of
from compress.exporters.int8 import Int8Options, Int8Record, quantise_checked
from compress.exporters.peaks_graph import PeakOptions
from compress.exporters.to_openvino import atomic_pair
from compress.model import Model
from compress.progress import Progress, Silent
from compress.runtime.runner import ArrayInputs

#: Rendered people on which the files of a pose network are compared where no images are named.
DEFAULT_IMAGES = "synthetic:900:8"


@dataclass(frozen=True)
class ExportOptions:
    """How files are named, compared and quantised.

    Attributes
    ----------
    name : str or None
        Stem of all files; the model's label by default.
    images : str, Dataset, Tensors or iterable, optional
        What `compress.images` takes: files are compared on some of them. By default those of ``int8``, else rendered
        people, or noise for a network without a pose specification.
    check_images : int
        Number of images on which each file is compared.
    height : int or None
        Height in pixels that images are scaled to; the network's own by default.
    threads : int or None
        CPU threads.
    peaks : PeakOptions or None
        Find the peaks of heatmaps inside the graph, as one more output.
    max_drop : float or None
        Most that INT8 may lose of its score; see `compress.exporters.int8.Int8Options`.
    calibrate : int
        Most images that INT8 is calibrated with.
    validation : str, Dataset, Tensors or iterable, optional
        Images on which INT8 is judged; those of ``int8`` by default.
    force : bool
        Replace existing files.
    """

    name: str | None = None
    images: Any = None
    check_images: int = 4
    height: int | None = None
    threads: int | None = None
    peaks: PeakOptions | None = None
    max_drop: float | None = None
    calibrate: int = 100
    validation: Any = None
    force: bool = False


@dataclass(frozen=True)
class Exports:
    """What was written.

    Attributes
    ----------
    files : tuple of Path
        All files.
    parity : tuple of FileParity
        How closely each file agrees with the network in torch; INT8 is judged by ``int8`` instead.
    int8 : Int8Record or None
        How the network was quantised and what it lost.
    """

    files: tuple[Path, ...]
    parity: tuple[FileParity, ...]
    int8: Int8Record | None = None


def export(
    model: Model,
    folder: str | Path,
    *,
    onnx: bool = False,
    openvino: bool = False,
    fp16: bool = False,
    int8: Any = None,
    options: ExportOptions | None = None,
    progress: Progress | None = None,
) -> Exports:
    """Write a model as ONNX and OpenVINO IR; no file gets its name before it agrees with torch.

    Parameters
    ----------
    model : Model
        The network.
    folder : str or Path
        Where to write; the files are ``NAME.onnx``, ``NAME.xml`` with ``NAME.bin``, ``NAME-fp16.xml`` and
        ``NAME-int8.xml``.
    onnx, openvino : bool
        Write these formats, in FP32.
    fp16 : bool
        Write OpenVINO IR with weights stored in FP16.
    int8 : str, Dataset, Tensors or iterable, optional
        What `compress.images` takes: write OpenVINO IR in INT8, calibrated with these images, and only if it loses no
        more than allowed (`compress.exporters.int8.quantise_checked`).
    options : ExportOptions, optional
        Names, images to compare on, limits.
    progress : Progress, optional
        Told of every step.

    Returns
    -------
    Exports
        Files, parity and the record of INT8.

    Raises
    ------
    ParityError
        If a file does not reproduce the network.
    FileError
        If a file exists and ``force`` is false.
    NetworkError
        If the network can't be exported.
    CompressError
        If INT8 loses more than allowed whatever stays in FP32.
    UsageError
        If no format is named, or a number is out of range.
    """
    options, progress = options or ExportOptions(), progress or Silent()
    folder = Path(folder).expanduser()
    stem = options.name or _file_name(model)
    targets = [ExportFile(folder / f"{stem}.onnx")] * onnx + [ExportFile(folder / f"{stem}.xml")] * openvino
    targets += [ExportFile(folder / f"{stem}-fp16.xml", "fp16")] * fp16
    _check(options, bool(targets) or int8 is not None)
    calibration = None if int8 is None else open_images(int8)
    files = [file for target in targets for file in target.files]
    record: list[Int8Record] = []
    with ExitStack() as stack:
        checked, then = targets, None
        if calibration is not None:
            path = folder / f"{stem}-int8.xml"
            temporary = stack.enter_context(atomic_pair(path, force=options.force))
            files += [path, path.with_suffix(".bin")]
            # What is quantised is compared with torch in any case.
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="compress-export-")))
            checked = targets or [ExportFile(scratch / "fp32.xml")]

            def then(onnx_path: Path) -> None:
                done = _quantise(model, onnx_path, temporary, calibration, options, progress)
                record.append(replace(done, file=str(path)))

        # Quantisation has progress bars of its own.
        with nullcontext() if calibration is not None else progress.bar("export", None):
            done = export_checked(
                model,
                checked,
                _compared_on(model, options, calibration),
                CheckOptions(options.height, options.threads, options.peaks),
                then=then,
                force=options.force,
                progress=progress,
            )
    parity = tuple(each for each in done if each.target in targets)
    return Exports(tuple(files), parity, record[0] if record else None)


def _file_name(model: Model) -> str:
    """The label as a file name."""
    name = "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in model.label)
    return name.strip(".-") or "model"


def _check(options: ExportOptions, anything: bool) -> None:
    if not anything:
        raise UsageError("there is nothing to export to", hint="Name a format: onnx, openvino, fp16 or int8")
    if options.check_images < 1:
        raise UsageError("the number of images to compare on must be at least 1", found=options.check_images)
    if options.calibrate < 2:
        raise UsageError("at least 2 images are needed to calibrate", found=options.calibrate)
    if options.max_drop is not None and not 0 <= options.max_drop < 1:
        raise UsageError("the loss that is allowed must be from 0 to below 1", found=options.max_drop)


def _compared_on(model: Model, options: ExportOptions, calibration: Dataset | Tensors | None) -> Sequence[Any]:
    """Images for a pose network, inputs for any other."""
    named = calibration if options.images is None else open_images(options.images)
    if model.pose is None:
        if named is None:
            return _noise(model, options.check_images)
        return arrays_of(calibration_inputs(named, model, options.check_images, options.height))
    if named is None or isinstance(named, Tensors):
        return [sample.image for sample in spread(DataSpec.parse(DEFAULT_IMAGES).open(), options.check_images)]
    return [sample.image for sample in spread(named, options.check_images)]


def _noise(model: Model, count: int) -> list[ArrayInputs]:
    """Inputs of noise, each in the shapes of the network's example."""
    random = np.random.default_rng(0)
    inputs: list[ArrayInputs] = []
    for _ in range(count):
        parts = tuple(
            random.standard_normal(spec.shape, dtype=np.float32)
            if spec.torch_dtype.is_floating_point
            else np.zeros(spec.shape, dtype=spec.dtype)
            for spec in model.inputs
        )
        inputs.append(parts if len(parts) > 1 else parts[0])
    return inputs


def _quantise(
    model: Model,
    onnx_path: Path,
    path: Path,
    calibration: Dataset | Tensors,
    options: ExportOptions,
    progress: Progress,
) -> Int8Record:
    return quantise_checked(
        model,
        onnx_path,
        path,
        calibration=calibration,
        validation=None if options.validation is None else open_images(options.validation),
        options=Int8Options(options.calibrate, options.height, options.max_drop, options.threads),
        progress=progress,
    )
