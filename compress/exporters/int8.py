"""INT8 with an accuracy gate: quantise, score, and keep sensitive layers in FP32 until the gate is passed."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.errors import CompressError
from compress.evaluation.inputs import calibration_inputs
from compress.exporters.gate import Gate, Measured, arrays_of, open_gate, people_inputs
from compress.exporters.ir_layers import first_layers, has_gates, head_layers, is_quantised, layer_labels, layers_of
from compress.exporters.quantise import layer_errors, quantise
from compress.exporters.to_openvino import write_ir
from compress.model import Model
from compress.progress import Progress
from compress.runtime.file_interface import SECTION
from compress.runtime.opening import open_runner
from compress.runtime.openvino_runner import shared_core
from compress.runtime.runner import ArrayInputs

#: Shares of the layers that stay in FP32 after heads and first convolution, tried in turn.
SENSITIVE_SHARES = (0.05, 0.1, 0.2, 0.4)

#: Number of images on which the errors of single layers are measured.
RANKING_IMAGES = 2


@dataclass(frozen=True)
class Int8Options:
    """How a network is calibrated and judged.

    Attributes
    ----------
    calibrate : int
        Most images to calibrate with.
    height : int or None
        Height that images or crops are scaled to; the network's own by default.
    max_drop : float or None
        Most that may be lost; by default `compress.exporters.gate.MAX_DROP`, `MAX_OWN_DROP` or `MAX_OUTPUT_ERROR`.
    threads : int or None
        Of the runtime.
    """

    calibrate: int = 100
    height: int | None = None
    max_drop: float | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Trial:
    """One choice of layers that stay in FP32.

    Attributes
    ----------
    kept : str
        The choice in words.
    layers : int
        Number of those layers.
    score, drop : float
        Of the network with all others in INT8, and how much lower that is than in FP32.
    """

    kept: str
    layers: int
    score: float
    drop: float


@dataclass(frozen=True)
class Int8Record:
    """How a network was quantised, and what it lost.

    Attributes
    ----------
    metric : str
        Name of the score.
    against : str
        What the score is measured against.
    own : bool
        Whether that is the FP32 network itself.
    images, calibration_images : int
        Images that the score is measured on, and inputs that quantisation was calibrated with.
    height : int or None
        Height in pixels that images were scaled to; None for ready network inputs.
    before, after, drop : float
        Score in FP32 and in INT8, and the difference.
    interval : (float, float) or None
        95 % bootstrap interval of the drop over images, of AP alone.
    max_drop : float
        Most that could be lost.
    symmetric : bool
        Whether activations are quantised symmetrically.
    layers : int
        Number of all layers.
    kept : tuple of str
        Layers that stay in FP32.
    trials : tuple of Trial
        All choices that were tried; the last one passed.
    fp32_bytes, size_bytes : int
        Size of the files in FP32 and in INT8; ``size_bytes`` is 0 in the file's own metadata.
    file : str
        The ``.xml`` file; empty in its own metadata.
    """

    metric: str
    against: str
    own: bool
    images: int
    height: int | None
    calibration_images: int
    before: float
    after: float
    drop: float
    interval: tuple[float, float] | None
    max_drop: float
    symmetric: bool
    layers: int
    kept: tuple[str, ...]
    trials: tuple[Trial, ...]
    fp32_bytes: int
    size_bytes: int = 0
    file: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        record: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return record


@dataclass(frozen=True)
class Choice:
    """Layers to keep in FP32.

    Attributes
    ----------
    kept : str
        The choice in words.
    operations : tuple of str
        Names of their operations.
    symmetric : bool
        Whether activations are quantised symmetrically.
    """

    kept: str
    operations: tuple[str, ...]
    symmetric: bool = False


def choices(model: Any, images: Sequence[ArrayInputs], outputs: Sequence[str], progress: Progress) -> Iterator[Choice]:
    """What to keep in FP32, more each time; layers are ranked by their error only when it comes to that.

    Parameters
    ----------
    model : openvino.Model
        In FP32.
    images : sequence of arrays
        Calibration inputs, of which the first `RANKING_IMAGES` are used.
    outputs : sequence of str
        Names of the outputs that count; all if empty.
    progress : Progress
        Told of every layer.
    """
    if has_gates(model):
        yield Choice("nothing, symmetric", (), symmetric=True)
    yield Choice("nothing", ())
    heads = head_layers(model, outputs)
    yield Choice("heads", heads)
    ends = tuple(dict.fromkeys((*heads, *first_layers(model, outputs))))
    yield Choice("heads and first convolution", ends)
    names = [op.get_friendly_name() for op in layers_of(model, outputs)]
    with progress.bar("errors of single layers", len(names)) as advance:
        errors = layer_errors(model, images[:RANKING_IMAGES], outputs=outputs, progress=advance)
    ranked = sorted((name for name in names if name not in ends), key=lambda name: -errors[name])
    for count in sorted({math.ceil(share * len(ranked)) for share in SENSITIVE_SHARES} - {0}):
        yield Choice(f"heads, first convolution and the {count} most sensitive layer(s)", (*ends, *ranked[:count]))


def quantise_checked(
    model: Model,
    onnx_path: Path,
    path: Path,
    *,
    calibration: Dataset | Tensors,
    validation: Dataset | Tensors | None = None,
    options: Int8Options,
    progress: Progress,
) -> Int8Record:
    """Write an exported network as OpenVINO IR in INT8 that keeps its score, or nothing.

    Parameters
    ----------
    model : Model
        The network.
    onnx_path : Path
        What `compress.exporters.to_onnx.export_onnx` wrote of it.
    path : Path
        The ``.xml`` file; an existing one is replaced.
    calibration, validation : Dataset or Tensors
        Images to calibrate with, and those on which the result is judged; by default the same. The people of a network
        with keypoints are compared, unless these are ready network inputs; else its outputs are.
    options : Int8Options
        How it is calibrated and judged.
    progress : Progress
        Told of every step.

    Returns
    -------
    Int8Record
        Layers in FP32, scores before and after, every trial.

    Raises
    ------
    CompressError
        If every trial loses more than allowed.
    """
    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder:
        whole, attempt = Path(folder) / "fp32.xml", Path(folder) / "int8.xml"
        write_ir(onnx_path, whole)
        with closing(open_runner(whole, threads=options.threads)) as original:
            if model.pose is None or isinstance(calibration, Tensors):
                images = arrays_of(calibration_inputs(calibration, model, options.calibrate, options.height, progress))
            else:
                images = people_inputs(calibration, original, options.height, options.calibrate, progress)
            gate = open_gate(
                calibration if validation is None else validation,
                model,
                original,
                options.height,
                options.calibrate,
                progress,
            )
        fp32 = shared_core().read_model(whole)
        outputs = () if model.pose is None else model.pose.outputs
        trials, quantised, measured = _first_that_passes(
            gate, fp32, images, outputs, attempt, options=options, progress=progress
        )
        labels = layer_labels(fp32)
        layers = layers_of(quantised, outputs)
        record = Int8Record(
            metric=gate.metric,
            against=gate.against,
            own=gate.own,
            images=gate.images,
            height=options.height or (None if model.pose is None else model.pose.height),
            calibration_images=len(images),
            before=gate.before.score,
            after=measured.score,
            drop=gate.drop(measured),
            interval=gate.interval(measured),
            max_drop=_limit(gate, options),
            symmetric=trials[-1].kept.endswith("symmetric"),
            layers=len(layers),
            kept=tuple(labels[op.get_friendly_name()] for op in layers if not is_quantised(op)),
            trials=tuple(trials),
            fp32_bytes=_bytes(whole),
        )
        _write(quantised, record, path)
    return replace(record, size_bytes=_bytes(path))


def _first_that_passes(
    gate: Gate,
    fp32: Any,
    images: Sequence[ArrayInputs],
    outputs: Sequence[str],
    attempt: Path,
    *,
    options: Int8Options,
    progress: Progress,
) -> tuple[list[Trial], Any, Measured]:
    """All trials up to the one that passes, and its model and score."""
    import openvino

    trials: list[Trial] = []
    last: Choice | None = None
    for choice in choices(fp32, images, outputs, progress):
        if last is not None and (choice.operations, choice.symmetric) == (last.operations, last.symmetric):
            continue
        last = choice
        progress.say(f"INT8, layers kept in FP32: {choice.kept}")
        quantised = quantise(fp32, images, keep=choice.operations, outputs=outputs, symmetric=choice.symmetric)
        openvino.save_model(quantised, attempt, compress_to_fp16=False)
        with closing(open_runner(attempt, threads=options.threads)) as runner:
            measured = gate.measure(runner, "score in INT8")
        trials.append(Trial(choice.kept, len(choice.operations), measured.score, gate.drop(measured)))
        if gate.drop(measured) <= _limit(gate, options):
            return trials, quantised, measured
    raise _refusal(gate, trials, _limit(gate, options), len(images))


def _limit(gate: Gate, options: Int8Options) -> float:
    return gate.usual_drop if options.max_drop is None else options.max_drop


def _write(quantised: Any, record: Int8Record, path: Path) -> None:
    """Write a model with its record in the metadata."""
    import openvino

    plain = {key: value for key, value in record.to_dict().items() if key not in ("size_bytes", "file")}
    quantised.set_rt_info(json.dumps(plain), [SECTION, "int8"])
    openvino.save_model(quantised, path, compress_to_fp16=False)


def _refusal(gate: Gate, trials: Sequence[Trial], limit: float, images: int) -> CompressError:
    tried = "; ".join(f"{trial.kept} {trial.drop:.3f}" for trial in trials)
    more = "calibrate on more images with people, " if images < 100 else ""
    return CompressError(
        f"INT8 loses at least {min(trial.drop for trial in trials):.3f} of {gate.metric} {gate.before.score:.3f} "
        f"against {gate.against}, more than --max-drop {limit:g}; loss with these layers kept in FP32: {tried}",
        hint=f"Allow more by --max-drop, {more}or export --openvino and run it with --precision bf16",
    )


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
