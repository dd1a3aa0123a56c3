"""`compress benchmark`: time models on runtimes, interleaved."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.commands.base import Command, Result
from compress.commands.fields import Size, option
from compress.commands.options import NetworkOptions, TimingOptions
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.measure.benchmark import Benchmark, TimingRow

_MIB = 2**20


class BenchmarkOptions(NetworkOptions, TimingOptions):
    """Options of `compress benchmark`."""

    models: tuple[Path, ...] = option(
        ..., "Models: checkpoints, .onnx, .xml; the first is the original", positional=True
    )
    input: Size | None = option(None, "Input size HEIGHTxWIDTH (default: the network's own)")
    batch: int = option(1, "Images per run")
    compile: bool = option(False, "Run checkpoints through torch.compile; the first run takes tens of seconds")
    graphs: bool = option(False, "Record checkpoints as CUDA graphs and replay them (torch-cuda runtimes)")
    channels_last: bool = option(True, "Use the channels-last memory format on torch")
    isolate: bool = option(False, "Also open each model in a process of its own: peak memory, first inference")
    roofline: bool = option(
        True, "Also measure the arithmetic and memory ceilings of this machine, and the share of the roofline reached"
    )
    output: Path | None = option(None, "Write the measurements as JSON", flag="-o", output=True)
    force: bool = option(False, "Replace an existing output")


@dataclass(frozen=True)
class BenchmarkResult(Result):
    """Timings of all models on all runtimes."""

    benchmark: Benchmark

    @property
    def record(self) -> dict[str, Any]:
        """The measurements."""
        return self.benchmark.to_dict()

    @property
    def summary(self) -> str:
        """Number of measurements."""
        return f"{len(self.benchmark.rows)} measurements"

    def show(self) -> None:
        """Print latencies with the speed-up over the first model on the same runtime, other costs, and notes."""
        from compress.commands.terminal import print_lines, print_table

        done = self.benchmark
        title = f"{done.machine.cpu}, {done.machine.cores} cores, GPU: {done.machine.gpu}"
        if str(done.torch) != "plain":
            title += f"; torch: {done.torch}"
        print_table(title, *_columns([_latency(row) for row in done.rows]), left=4)
        print_table("Cost, and the ceilings of this machine", *_columns([_cost(row) for row in done.rows]), left=2)
        print_lines(*_notes(done))


def _columns(rows: list[dict[str, str | None]]) -> tuple[list[str], list[list[str]]]:
    """Names and cells of the columns that any row has a value for."""
    names = [name for name in rows[0] if any(row[name] is not None for row in rows)]
    return names, [["-" if row[name] is None else str(row[name]) for name in names] for row in rows]


def _latency(row: TimingRow) -> dict[str, str | None]:
    timing, speedup = row.timing, row.speedup
    return {
        "model": row.model,
        "runtime": timing.runtime,
        "device": timing.device,
        "precision": timing.precision,
        "size": timing.size,
        "batch": str(timing.batch),
        "threads": str(timing.threads),
        "median ms": f"{timing.latency_ms:.2f}",
        "on GPU ms": None if timing.device_ms is None else f"{timing.device_ms:.2f}",
        "95 % interval": "{:.2f} to {:.2f}".format(*timing.interval_ms),
        "p90 ms": f"{timing.p90_ms:.2f}",
        "p99 ms": f"{timing.p99_ms:.2f}",
        "fps": f"{timing.fps:.1f}",
        "speed-up": "-" if speedup is None else f"{speedup.median:.2f} ({speedup.low:.2f} to {speedup.high:.2f})",
        "verdict": row.verdict or "-",
    }


def _cost(row: TimingRow) -> dict[str, str | None]:
    cells: dict[str, str | None] = {
        "model": row.model,
        "runtime": row.label,
        "precision": row.timing.precision,
        "file MB": f"{row.size_bytes / _MIB:.2f}",
    }
    alone, bound = row.isolated, row.roofline
    cells |= dict.fromkeys(("peak memory MB", "model memory MB", "open ms", "first ms"))
    if alone is not None:
        numbers = (alone.peak_mb, alone.model_mb, alone.open_ms, alone.first_ms)
        cells |= zip(list(cells)[4:], (f"{number:.1f}" for number in numbers), strict=True)
    cells |= dict.fromkeys(("GMAC", "moved MB", "roofline ms", "memory-bound", "% of roofline"))
    if bound is not None and row.roofline_share is not None:
        cells |= {
            "GMAC": f"{bound.macs / 1e9:.3f}",
            "moved MB": f"{bound.bytes_moved / _MIB:.1f}",
            "roofline ms": f"{bound.least_ms:.2f}",
            "memory-bound": f"{bound.memory_share:.0%}",
            "% of roofline": f"{row.roofline_share:.0%}",
        }
    return cells


def _notes(done: Benchmark) -> list[str]:
    """Measured ceilings, and runtimes that are not present."""
    lines = []
    for ceiling in done.ceilings or ():
        small, large = ceiling.bytes_per_s[0], ceiling.bytes_per_s[-1]
        arithmetic = "" if ceiling.macs_per_s is None else f"{ceiling.macs_per_s / 1e9:.4g} GMAC/s, "
        lines.append(
            f"ceilings, {ceiling.device} {ceiling.precision}, {ceiling.threads} thread(s): {arithmetic}copies "
            f"{small[1] / 1e9:.3g} GB/s in blocks of {small[0] / _MIB:g} MB, {large[1] / 1e9:.3g} GB/s in blocks of "
            f"{large[0] / _MIB:g} MB"
        )
    if any((row.roofline_share or 0) > 1 for row in done.rows):
        lines.append("more than 100 % of the roofline: other programs were running while the ceilings were measured")
    return lines + [f"not present: {absent}" for absent in done.absent]


def run(options: BenchmarkOptions, progress: Progress) -> BenchmarkResult:
    """Time models on runtimes and compare them with the first."""
    from compress.files import refuse_existing, write_text
    from compress.measure.benchmark import BenchmarkOptions as Conditions
    from compress.measure.benchmark import benchmark
    from compress.runtime.torch_runner import TorchOptions

    if options.output is not None:
        refuse_existing(options.output, options.force)
    conditions = Conditions(
        size=options.input,
        batch=options.batch,
        threads=options.threads,
        rounds=options.rounds,
        max_seconds=options.max_seconds,
        network=options.network,
        torch=TorchOptions(options.compile, options.graphs, options.channels_last),
        isolate=options.isolate,
        roofline=options.roofline,
    )
    done = benchmark(options.models, options.runtime, options=conditions, progress=progress)
    if options.output is None:
        return BenchmarkResult(done)
    write_text(options.output, json.dumps(done.to_dict(), indent=2) + "\n", force=options.force)
    return BenchmarkResult(done, written=(options.output,))


COMMAND = Command(
    BenchmarkOptions, run, "compress benchmark model.pt small.pt --runtime openvino-cpu --runtime torch-cpu"
)
