"""Time models on runtimes, interleaved."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.checkpoint.load import load
from compress.commands.base import Size, StageOptions, StageResult, option
from compress.commands.registry import Stage
from compress.errors import RuntimeAbsent, UsageError
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import export_openvino
from compress.files import refuse_existing, write_text
from compress.measure.bootstrap import ratio
from compress.measure.ceilings import Ceilings
from compress.measure.isolation import measure_isolated
from compress.measure.latency import Timing, measure_interleaved
from compress.measure.machine import describe
from compress.measure.roofline import Work, bound, file_work, module_work
from compress.progress import Progress
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchOptions

#: Runtime labels: runtime, device, and the precision where it is not fp32.
RUNTIMES = (
    "torch-cpu", "torch-cpu-bf16", "onnxruntime-cpu", "openvino-cpu", "openvino-cpu-bf16", "torch-cuda",
    "torch-cuda-fp16", "torch-cuda-bf16", "onnxruntime-cuda",
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
    compile: bool = option(False, "Run checkpoints through torch.compile; the first run takes tens of seconds")
    graphs: bool = option(False, "Record checkpoints as CUDA graphs and replay them (torch-cuda runtimes)")
    channels_last: bool = option(True, "On torch, keep a pixel's channels side by side in memory")
    isolate: bool = option(False, "Also open each model in a process of its own: memory peak, first inference")
    roofline: bool = option(
        True, "Also measure what arithmetic and memory of this machine allow, and the share reached"
    )
    output: Path | None = option(None, "Write the measurements as JSON", flag="-o", output=True)
    force: bool = option(False, "Replace an existing output")


@dataclass(frozen=True)
class Times:
    """Timings of models on runtimes.

    Attributes
    ----------
    rows : tuple of dict
        One for each model and runtime: the fields of `Timing`, ``label`` of the runtime, ``size_bytes`` of what is run,
        ``speedup`` against the first model on that runtime as (median, low, high) or None, its ``verdict``, and where
        asked for ``isolated`` (the fields of `compress.measure.isolation.Isolated`).
    absent : tuple of str
        Runtimes that this machine does not have.
    """

    rows: tuple[dict[str, Any], ...]
    absent: tuple[str, ...]


@dataclass(frozen=True)
class _Place:
    """What is timed: a labelled model on a runtime, and how it is opened."""

    model: str
    runtime: str
    file: Path
    settings: dict[str, Any]

    @property
    def label(self) -> str:
        return f"{self.model} / {self.runtime}"

    @property
    def size_bytes(self) -> int:
        weights = self.file.with_suffix(".bin") if self.file.suffix == ".xml" else None
        return sum(path.stat().st_size for path in (self.file, weights) if path is not None)


def time_models(
    models: Sequence[tuple[str, Path]],
    options: TimingOptions,
    size: tuple[int, int],
    progress: Progress,
    *,
    batch: int = 1,
    network: str | None = None,
    torch_options: TorchOptions | None = None,
    isolate: bool = False,
) -> Times:
    """Time labelled models on all runtimes that are there, in one interleaved run.

    A checkpoint runs on every runtime (it is exported to a temporary file where it must be), an exported file on its
    own.
    """
    unknown = [label for label in options.runtime if label not in RUNTIMES]
    if unknown:
        raise UsageError("unknown runtime", found=unknown[0], hint=f"Known: {', '.join(RUNTIMES)}")
    absent: list[str] = []
    candidates: dict[str, Runner] = {}
    places: dict[str, _Place] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for runtime in options.runtime:
            for name, path in models:
                if path.suffix not in CHECKPOINTS and not runtime.startswith(_own_runtime(path)):
                    continue
                try:
                    place = _place(name, path, runtime, Path(folder), options.threads, network, torch_options)
                    runner = open_runner(place.file, **place.settings)
                except RuntimeAbsent as error:
                    absent.append(f"{runtime} ({error.cause})")
                    break
                stack.callback(runner.close)
                candidates[place.label], places[place.label] = runner, place
        if not candidates:
            raise RuntimeAbsent(
                "none of the asked runtimes can run these models",
                found=absent or list(options.runtime),
                hint="See --runtime",
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
        rows = _rows(timings, places)
        if isolate:
            # After the timing, in which nothing else shall run.
            with progress.bar("each alone", len(rows)) as advance:
                for row, place in zip(rows, places.values(), strict=True):
                    alone = measure_isolated(place.file, (batch, 3, *size), **place.settings)
                    row["isolated"] = alone.to_dict()
                    advance(1)
    return Times(tuple(rows), tuple(absent))


def _rows(timings: Sequence[Timing], places: dict[str, _Place]) -> list[dict[str, Any]]:
    first: dict[str, Timing] = {}
    rows = []
    for timing in timings:
        place = places[timing.model]
        runtime = place.runtime
        row = timing.to_dict() | {
            "model": place.model, "label": runtime, "size_bytes": place.size_bytes, "speedup": None, "verdict": None,
        }  # fmt: skip
        if runtime in first:
            speed = ratio(first[runtime].samples_ms, timing.samples_ms)
            row |= {"speedup": [speed.median, speed.low, speed.high], "verdict": speed.verdict}
        first.setdefault(runtime, timing)
        rows.append(row)
    return rows


def _own_runtime(path: Path) -> str:
    return "openvino" if path.suffix == ".xml" else "onnxruntime"


def _place(
    name: str,
    path: Path,
    label: str,
    folder: Path,
    threads: int | None,
    network: str | None,
    torch_options: TorchOptions | None,
) -> _Place:
    """A model on a runtime, through a temporary export where it is a checkpoint and the runtime is not torch."""
    runtime, device, *rest = label.split("-")
    settings = {
        "device": device, "precision": rest[0] if rest else "fp32", "threads": threads, "network": network,
        "torch_options": torch_options,
    }  # fmt: skip
    if runtime != "torch" and path.suffix in CHECKPOINTS:
        path = _exported(path, folder, network)
        if runtime == "openvino":
            onnx_path, path = path, path.with_suffix(".xml")
            if not path.exists():
                export_openvino(onnx_path, path)
    return _Place(name, label, path, settings)


def _exported(path: Path, folder: Path, network: str | None) -> Path:
    """The checkpoint as ONNX, written once."""
    place = folder / hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12] / f"{path.stem}.onnx"
    if not place.exists():
        checkpoint = load(path, network)
        place.parent.mkdir()
        export_onnx(checkpoint.module, checkpoint.pose, place)
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
    torch_options = TorchOptions(options.compile, options.graphs, options.channels_last)
    times = time_models(
        models,
        options,
        size,
        progress,
        batch=options.batch,
        network=options.network,
        torch_options=torch_options,
        isolate=options.isolate,
    )
    record: dict[str, Any] = {
        "machine": describe().to_dict(), "torch": str(torch_options), "rows": list(times.rows),
        "absent": list(times.absent),
    }  # fmt: skip
    if options.roofline:
        progress.say("measuring the machine's ceilings")
        record["ceilings"] = _add_roofline(times.rows, dict(models), size, options.network)
    if options.output is None:
        return StageResult(record)
    write_text(options.output, json.dumps(record, indent=2) + "\n", force=options.force)
    return StageResult(record, (options.output,))


def _add_roofline(
    rows: Sequence[dict[str, Any]], models: dict[str, Path], size: tuple[int, int], network: str | None
) -> list[dict[str, Any]]:
    """Give each row its ``roofline``, None where it can't be told; returns the measured ceilings."""
    work = {name: _work(path, size, network) for name, path in models.items()}
    ceilings = {device: Ceilings(device) for device in {row["device"] for row in rows} & {"cpu", "cuda"}}
    listed: dict[tuple[str, str, int], dict[str, Any]] = {}
    for row in rows:
        row["roofline"] = None
        device, precision, threads, layers = row["device"], row["precision"], row["threads"], work[row["model"]]
        if device not in ceilings or layers is None:
            continue
        found = bound(layers, ceilings[device], precision, threads, batch=row["batch"])
        if found is None:
            continue
        row["roofline"] = asdict(found) | {"share": found.least_ms / (row["device_ms"] or row["latency_ms"])}
        for kind in precision.split("+"):
            listed.setdefault(
                (device, kind, threads),
                {
                    "device": device, "precision": kind, "threads": threads,
                    "macs_per_s": ceilings[device].macs_per_s(kind, threads),
                    "bytes_per_s": [list(pair) for pair in ceilings[device].copies(threads)],
                },
            )  # fmt: skip
    return list(listed.values())


def _work(path: Path, size: tuple[int, int], network: str | None) -> tuple[Work, ...] | None:
    """Layers of a model; None for a file that nothing here can read."""
    if path.suffix in CHECKPOINTS:
        return module_work(load(path, network).module, size)
    try:
        return file_work(path, size)
    except RuntimeAbsent:
        return None


STAGE = Stage(BenchmarkOptions, run, "compress benchmark model.pt small.pt --runtime openvino-cpu --runtime torch-cpu")
