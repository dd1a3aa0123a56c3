"""Time models on runtimes, interleaved."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint import load_checkpoint
from compress.errors import RuntimeAbsent, UsageError
from compress.export.to_onnx import export_onnx
from compress.export.to_openvino import export_openvino
from compress.files import refuse_existing, write_text
from compress.measure.bootstrap import ratio
from compress.measure.latency import Timing, measure_interleaved
from compress.measure.machine import describe
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.stages.base import Progress, Size, StageOptions, StageResult, option
from compress.stages.registry import Stage

#: Runtime labels: runtime, device, and the precision where it is not fp32.
RUNTIMES = (
    "torch-cpu", "torch-cpu-bf16", "onnxruntime-cpu", "openvino-cpu", "openvino-cpu-bf16", "torch-cuda",
    "torch-cuda-fp16", "onnxruntime-cuda",
)  # fmt: skip

#: Suffixes of checkpoints; all other models belong to one runtime already.
CHECKPOINTS = (".pt", ".pth", ".safetensors")


class TimingOptions(StageOptions):
    """What is timed and how long."""

    runtime: tuple[str, ...] = option(
        ("torch-cpu", "onnxruntime-cpu", "openvino-cpu", "torch-cuda"),
        f"Runtime and device; repeat for more. Known: {', '.join(RUNTIMES)}",
    )
    threads: int | None = option(None, "CPU threads (default: all cores)")
    rounds: int = option(200, "Most rounds; each times every model on every runtime once")
    budget: float = option(60.0, "Start no round after this many seconds")


class BenchmarkOptions(TimingOptions):
    """Options of `compress benchmark`."""

    models: tuple[Path, ...] = option(
        ..., "Models: checkpoints, .onnx, .xml; the first is the original", positional=True
    )
    network: str | None = option(None, "Name of the network in foreign checkpoints", flag="-n")
    input: Size | None = option(None, "Input size HEIGHTxWIDTH (default: the network's own)")
    batch: int = option(1, "Images a run")
    output: Path | None = option(None, "Write the measurements as JSON", flag="-o", output=True)
    force: bool = option(False, "Replace an existing output")


@dataclass(frozen=True)
class Times:
    """Timings of models on runtimes.

    Attributes
    ----------
    rows : tuple of dict
        One for each model and runtime: the fields of `Timing`, ``label`` of the runtime, ``speedup`` against the first
        model on that runtime as (median, low, high) or None, and its ``verdict``.
    absent : tuple of str
        Runtimes that this machine does not have.
    """

    rows: tuple[dict[str, Any], ...]
    absent: tuple[str, ...]


def time_models(
    models: Sequence[tuple[str, Path]],
    options: TimingOptions,
    size: tuple[int, int],
    progress: Progress,
    *,
    batch: int = 1,
    network: str | None = None,
) -> Times:
    """Time labelled models on all runtimes that are there, in one interleaved run.

    A checkpoint runs on every runtime (it is exported to a temporary file where it must be), an exported file on its
    own.
    """
    unknown = [label for label in options.runtime if label not in RUNTIMES]
    if unknown:
        raise UsageError("unknown runtime", found=unknown[0], way_out=f"Known: {', '.join(RUNTIMES)}")
    absent: list[str] = []
    candidates: dict[str, Runner] = {}
    places: dict[str, tuple[str, str]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for runtime in options.runtime:
            for name, path in models:
                if path.suffix not in CHECKPOINTS and not runtime.startswith(_own_runtime(path)):
                    continue
                try:
                    runner = _open(path, runtime, Path(folder), options.threads, network)
                except RuntimeAbsent as error:
                    absent.append(f"{runtime} ({error.what})")
                    break
                stack.callback(runner.close)
                label = f"{name} / {runtime}"
                candidates[label], places[label] = runner, (name, runtime)
        if not candidates:
            raise RuntimeAbsent(
                "none of the asked runtimes can run these models", found=list(options.runtime), way_out="See --runtime"
            )
        with progress.bar("benchmark", options.rounds) as advance:
            timings = measure_interleaved(
                candidates,
                (batch, 3, *size),
                rounds=options.rounds,
                min_rounds=min(10, options.rounds),
                budget_s=options.budget,
                progress=lambda done, most: advance(1),
            )
    return Times(_rows(timings, places), tuple(absent))


def _rows(timings: Sequence[Timing], places: dict[str, tuple[str, str]]) -> tuple[dict[str, Any], ...]:
    first: dict[str, Timing] = {}
    rows = []
    for timing in timings:
        name, runtime = places[timing.model]
        row = timing.to_dict() | {"model": name, "label": runtime, "speedup": None, "verdict": None}
        if runtime in first:
            speed = ratio(first[runtime].samples_ms, timing.samples_ms)
            row |= {"speedup": [speed.median, speed.low, speed.high], "verdict": speed.verdict}
        first.setdefault(runtime, timing)
        rows.append(row)
    return tuple(rows)


def _own_runtime(path: Path) -> str:
    return "openvino" if path.suffix == ".xml" else "onnxruntime"


def _open(path: Path, label: str, folder: Path, threads: int | None, network: str | None) -> Runner:
    """A model on a runtime, through a temporary export where it is a checkpoint and the runtime is not torch."""
    runtime, device, *rest = label.split("-")
    precision = rest[0] if rest else "fp32"
    if runtime != "torch" and path.suffix in CHECKPOINTS:
        path = _exported(path, folder, network)
        if runtime == "openvino":
            onnx_path, path = path, path.with_suffix(".xml")
            if not path.exists():
                export_openvino(onnx_path, path)
    return open_runner(path, runtime=runtime, device=device, precision=precision, threads=threads, network=network)


def _exported(path: Path, folder: Path, network: str | None) -> Path:
    """The checkpoint as ONNX, written once."""
    place = folder / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12] / f"{path.stem}.onnx"
    if not place.exists():
        checkpoint = load_checkpoint(path, network)
        place.parent.mkdir()
        export_onnx(checkpoint.build(), checkpoint.pose, place)
    return place


def run(options: BenchmarkOptions, progress: Progress) -> StageResult:
    """Time models on runtimes and compare them with the first."""
    if options.output is not None:
        refuse_existing(options.output, options.force)
    size = options.input
    if size is None:
        with_pose = open_runner(options.models[0], network=options.network)
        size = with_pose.pose.size
        with_pose.close()
    labels = [path.name for path in options.models]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in options.models]
    models = list(zip(labels, options.models, strict=True))
    times = time_models(models, options, size, progress, batch=options.batch, network=options.network)
    record = {"machine": describe().to_dict(), "rows": list(times.rows), "absent": list(times.absent)}
    if options.output is None:
        return StageResult(record)
    write_text(options.output, json.dumps(record, indent=2) + "\n", force=options.force)
    return StageResult(record, (options.output,))


STAGE = Stage(BenchmarkOptions, run, "compress benchmark model.pt small.pt --runtime openvino-cpu --runtime torch-cpu")
