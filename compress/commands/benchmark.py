"""Time models on runtimes, interleaved."""

from __future__ import annotations

import json
from pathlib import Path

from compress.commands.base import Size, StageOptions, StageResult, option
from compress.commands.registry import Stage
from compress.files import refuse_existing, write_text
from compress.measure.benchmark import DEFAULT_RUNTIMES, benchmark
from compress.measure.benchmark import BenchmarkOptions as Settings
from compress.progress import Progress
from compress.runtime.torch_runner import TorchOptions
from compress.target import targets


class TimingOptions(StageOptions):
    """What is timed and how long."""

    runtime: tuple[str, ...] = option(
        DEFAULT_RUNTIMES,
        f"Runtime, device and precision; repeat for more. Known: {', '.join(targets())}, each with -bf16 or -fp16",
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


def run(options: BenchmarkOptions, progress: Progress) -> StageResult:
    """Time models on runtimes and compare them with the first."""
    if options.output is not None:
        refuse_existing(options.output, options.force)
    settings = Settings(
        size=options.input,
        batch=options.batch,
        threads=options.threads,
        rounds=options.rounds,
        max_seconds=options.budget,
        network=options.network,
        torch=TorchOptions(options.compile, options.graphs, options.channels_last),
        isolate=options.isolate,
        roofline=options.roofline,
    )
    record = benchmark(options.models, options.runtime, options=settings, progress=progress).to_dict()
    if options.output is None:
        return StageResult(record)
    write_text(options.output, json.dumps(record, indent=2) + "\n", force=options.force)
    return StageResult(record, (options.output,))


STAGE = Stage(BenchmarkOptions, run, "compress benchmark model.pt small.pt --runtime openvino-cpu --runtime torch-cpu")
