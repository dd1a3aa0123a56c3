"""Latency of models on runtimes, measured in one interleaved run and compared with the first model."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.checkpoint.own_code import Network
from compress.checkpoint.save import save
from compress.errors import RuntimeAbsent
from compress.exporters.to_onnx import export_onnx
from compress.measure.bootstrap import MIN_ROUNDS, Speedup, paired_speedup
from compress.measure.ceilings import Ceilings, MeasuredCeiling
from compress.measure.file_inputs import file_inputs
from compress.measure.isolation import Isolated, measure_isolated
from compress.measure.labelled import LabelledModel, ModelLike, label_models
from compress.measure.latency import RoundOptions, Timing, measure_interleaved
from compress.measure.machine import Machine, describe
from compress.measure.on_target import file_for_target
from compress.measure.roofline import LayerLoad, RooflineBound, file_loads, module_loads, roofline_bound
from compress.network.inputs import InputSpec, image_input, with_size
from compress.progress import Progress, Silent
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchOptions
from compress.target import DEFAULT_RUNTIMES, Target


@dataclass(frozen=True)
class BenchmarkOptions:
    """What is measured, and for how long.

    Attributes
    ----------
    size : (int, int) or None
        H and W of the image; the first model's own by default.
    batch : int
        Images in a run.
    threads : int or None
        CPU threads; each runtime's default otherwise.
    rounds : int
        Maximum number of rounds; each times every model on every runtime once.
    max_seconds : float
        Start no round after this many seconds.
    network : str or callable or None
        The network of checkpoints and files that don't name it; see `compress.load`.
    torch : TorchOptions
        How torch runs models.
    isolate : bool
        Also open each model in a process of its own, for its memory peak and its first inference.
    roofline : bool
        Also measure the machine's ceilings, and compare each latency with the least that they allow.
    """

    size: tuple[int, int] | None = None
    batch: int = 1
    threads: int | None = None
    rounds: int = 200
    max_seconds: float = 60.0
    network: Network | None = None
    torch: TorchOptions = field(default_factory=TorchOptions)
    isolate: bool = False
    roofline: bool = True


@dataclass(frozen=True)
class TimingRow:
    """A model on a runtime.

    Attributes
    ----------
    model : str
        Label of the model.
    target : Target
        What it was timed on.
    timing : Timing
        Latency and its conditions.
    size_bytes : int
        Bytes of the files that are run; of the weights for a model that is in memory.
    speedup : Speedup or None
        Against the first model on the same runtime; None for that model.
    isolated : Isolated or None
        Memory and first inference in a process of its own, where asked for.
    roofline : RooflineBound or None
        The least time that the machine allows, where asked for and known.
    """

    model: str
    target: Target
    timing: Timing
    size_bytes: int
    speedup: Speedup | None = None
    isolated: Isolated | None = None
    roofline: RooflineBound | None = None

    @property
    def label(self) -> str:
        """The target as text."""
        return str(self.target)

    @property
    def latency_ms(self) -> float:
        """Median time of one run."""
        return self.timing.latency_ms

    @property
    def verdict(self) -> str | None:
        """As of `Speedup.verdict`; None for the first model."""
        return None if self.speedup is None else self.speedup.verdict

    @property
    def roofline_share(self) -> float | None:
        """Least time by measured time: 1 at the roofline. On a GPU the measured time is without copies."""
        if self.roofline is None:
            return None
        return self.roofline.least_ms / (self.timing.device_ms or self.timing.latency_ms)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON: the fields of the timing, and beside them what belongs to the row."""
        speedup = None if self.speedup is None else [self.speedup.median, self.speedup.low, self.speedup.high]
        record = self.timing.to_dict() | {
            "model": self.model, "label": self.label, "size_bytes": self.size_bytes, "speedup": speedup,
            "verdict": self.verdict,
        }  # fmt: skip
        return record if self.isolated is None else record | {"isolated": self.isolated.to_dict()}


@dataclass(frozen=True)
class Benchmark:
    """Timings of models on runtimes.

    Attributes
    ----------
    rows : tuple of TimingRow
        Runtime by runtime, models in their order.
    absent : tuple of str
        Runtimes that this machine does not have, with the reason.
    machine : Machine
        What it was measured on.
    torch : TorchOptions
        How torch ran models.
    ceilings : tuple of MeasuredCeiling or None
        What arithmetic and memory of this machine allow; None if not asked for.
    """

    rows: tuple[TimingRow, ...]
    absent: tuple[str, ...]
    machine: Machine
    torch: TorchOptions
    ceilings: tuple[MeasuredCeiling, ...] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        rows = [row.to_dict() for row in self.rows]
        record: dict[str, Any] = {
            "machine": self.machine.to_dict(), "torch": str(self.torch), "rows": rows, "absent": list(self.absent),
        }  # fmt: skip
        if self.ceilings is None:
            return record
        for row, written in zip(self.rows, rows, strict=True):
            bound = row.roofline
            written["roofline"] = None if bound is None else asdict(bound) | {"share": row.roofline_share}
        return record | {"ceilings": [ceiling.to_dict() for ceiling in self.ceilings]}

    def __str__(self) -> str:
        """One line for each row: model, runtime, median and speed-up."""
        lines = []
        for row in self.rows:
            line = f"{row.model:<24} {row.label:<20} {row.latency_ms:10.2f} ms"
            if row.speedup is not None:
                line += f"  x{row.speedup.median:.2f} ({row.speedup.low:.2f} to {row.speedup.high:.2f}) {row.verdict}"
            lines.append(line)
        return "\n".join([*lines, *(f"not present: {absent}" for absent in self.absent)])


@dataclass(frozen=True)
class _Candidate:
    """A model on a target, open and ready to be timed."""

    entry: LabelledModel
    target: Target
    runner: Runner
    file: Path | None

    @property
    def size_bytes(self) -> int:
        if self.file is None:
            assert self.entry.model is not None
            return self.entry.model.cost.size_bytes
        weights = [self.file.with_suffix(".bin")] if self.file.suffix == ".xml" else []
        return sum(path.stat().st_size for path in (self.file, *weights))


class _Opener:
    """Opens models on targets, through temporary exports where the runtime is not torch."""

    def __init__(self, folder: Path, size: tuple[int, int], options: BenchmarkOptions) -> None:
        self._folder, self._size, self._options = folder, size, options
        self._exported: dict[str, Path] = {}

    def open(self, entry: LabelledModel, target: Target) -> _Candidate:
        options = self._options
        if entry.model is not None and target.runtime == "torch":
            runner = open_runner(entry.model, target, threads=options.threads, torch_options=options.torch)
            return _Candidate(entry, target, runner, entry.path)
        file = entry.path if entry.model is None else file_for_target(self._onnx(entry), target, self._size)
        assert file is not None
        network = options.network if entry.model is None else None
        return _Candidate(entry, target, open_runner(file, target, threads=options.threads, network=network), file)

    def _onnx(self, entry: LabelledModel) -> Path:
        """The model as ONNX, written once."""
        if entry.label not in self._exported:
            assert entry.model is not None
            place = self._folder / str(len(self._exported))
            place.mkdir()
            name = "model" if entry.path is None else entry.path.stem
            self._exported[entry.label] = export_onnx(entry.model, place / f"{name}.onnx")
        return self._exported[entry.label]

    def isolated(self, candidate: _Candidate, inputs: Sequence[InputSpec]) -> Isolated:
        """Memory and first inference of a candidate in a process of its own."""
        model, file, network = candidate.entry.model, candidate.file, self._options.network
        if model is not None and (file is None or candidate.target.runtime == "torch"):
            network = model.source.name if model.source.is_custom else network
            if file is None:
                file = self._folder / f"{len(list(self._folder.iterdir()))}.pt"
                save(model, file)
        assert file is not None
        return measure_isolated(
            file,
            inputs,
            candidate.target,
            threads=self._options.threads,
            network=network if isinstance(network, str) else None,
            torch_options=self._options.torch,
        )


def benchmark(
    models: Sequence[ModelLike],
    runtimes: Sequence[str | Target] | None = None,
    *,
    options: BenchmarkOptions | None = None,
    progress: Progress | None = None,
) -> Benchmark:
    """Time models on all runtimes that are present, in one interleaved run, and compare them with the first.

    A model or checkpoint runs on every runtime, through a temporary export where the runtime is not torch; an
    exported file runs on its own. On an INT8 target, models are quantised without calibration: times are right,
    outputs are not.

    Parameters
    ----------
    models : sequence of Model, path, or (label, Model or path)
        The first is the original. Paths name checkpoints, ``.onnx`` or ``.xml`` files.
    runtimes : sequence of str or Target, optional
        Such as ``"openvino-cpu"`` or ``"torch-cuda-fp16"``; `DEFAULT_RUNTIMES` otherwise.
    options : BenchmarkOptions, optional
        Input size, rounds, and what else is measured.
    progress : Progress, optional
        Receives messages and progress bars.

    Returns
    -------
    Benchmark
        Timings, and what this machine lacks.

    Raises
    ------
    UsageError
        If there is no model, or a runtime is unknown.
    RuntimeAbsent
        If none of the runtimes can run any of the models.
    CompressError
        If a model can't be read, exported or run.
    """
    options, progress = options or BenchmarkOptions(), progress or Silent()
    targets = [_target(text) for text in (DEFAULT_RUNTIMES if runtimes is None else runtimes)]
    entries = label_models(models, options.network, suffixes=True)
    inputs = benchmark_inputs(entries[0], options)
    shape = inputs[0].shape
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        opener = _Opener(Path(folder), (shape[-2], shape[-1]), options)
        candidates, absent = _open_all(opener, entries, targets, stack)
        with progress.bar("benchmark", options.rounds) as advance:
            timings = measure_interleaved(
                {f"{c.entry.label} / {c.target}": c.runner for c in candidates},
                inputs,
                RoundOptions(options.rounds, min_rounds=min(MIN_ROUNDS, options.rounds), budget_s=options.max_seconds),
                progress=lambda done, most: advance(1),
            )
        rows = _rows(candidates, timings)
        if options.isolate:  # after the timing, during which nothing else may run
            with progress.bar("in separate processes", len(rows)) as advance:
                for index, candidate in enumerate(candidates):
                    rows[index] = replace(rows[index], isolated=opener.isolated(candidate, inputs))
                    advance(1)
    ceilings = None
    if options.roofline:
        progress.say("measuring the machine's ceilings")
        rows, ceilings = _with_roofline(rows, entries, inputs)
    return Benchmark(tuple(rows), tuple(absent), describe(), options.torch, ceilings)


def _target(text: str | Target) -> Target:
    return text if isinstance(text, Target) else Target.parse(text)


def benchmark_inputs(first: LabelledModel, options: BenchmarkOptions) -> tuple[InputSpec, ...]:
    """What every candidate is run on: the inputs of the first model, at the batch and size of the options."""
    if first.model is not None:
        inputs, pose = first.model.inputs, first.model.pose
    else:
        assert first.path is not None
        with closing(open_runner(first.path, network=options.network)) as runner:
            pose = runner.pose
        inputs = file_inputs(first.path, options.size) if pose is None else image_input(pose.size, pose.channels)
    size = options.size or (None if pose is None else pose.size)
    if size is not None:
        inputs = with_size(inputs, size)
    return tuple(replace(spec, shape=(options.batch, *spec.shape[1:])) for spec in inputs)


def _open_all(
    opener: _Opener, entries: Sequence[LabelledModel], targets: Sequence[Target], stack: ExitStack
) -> tuple[list[_Candidate], list[str]]:
    """Runners for all models on all targets that are present, and the absent targets."""
    candidates: list[_Candidate] = []
    absent: list[str] = []
    for target in dict.fromkeys(targets):
        for entry in entries:
            if entry.runtime not in (None, target.runtime):
                continue
            try:
                candidate = opener.open(entry, target)
            except RuntimeAbsent as error:
                absent.append(f"{target} ({error.cause})")
                break
            stack.callback(candidate.runner.close)
            candidates.append(candidate)
    if not candidates:
        raise RuntimeAbsent(
            "none of the requested runtimes can run these models",
            found=absent or [str(target) for target in targets],
            hint="Choose other runtimes",
        )
    return candidates, absent


def _rows(candidates: Sequence[_Candidate], timings: Sequence[Timing]) -> list[TimingRow]:
    first: dict[Target, Timing] = {}
    rows = []
    for candidate, timing in zip(candidates, timings, strict=True):
        label, target = candidate.entry.label, candidate.target
        original = first.setdefault(target, timing)
        speedup = None if original is timing else paired_speedup(original.samples_ms, timing.samples_ms)
        rows.append(TimingRow(label, target, replace(timing, model=label), candidate.size_bytes, speedup))
    return rows


def _with_roofline(
    rows: Sequence[TimingRow], entries: Sequence[LabelledModel], inputs: Sequence[InputSpec]
) -> tuple[list[TimingRow], tuple[MeasuredCeiling, ...]]:
    """The rows with the least time that the machine allows, where that is known, and the measured ceilings."""
    loads = {entry.label: _loads(entry, inputs) for entry in entries}
    ceilings = {device: Ceilings(device) for device in {row.target.device for row in rows} & {"cpu", "cuda"}}
    measured: dict[tuple[str, str, int], MeasuredCeiling] = {}
    bounded = []
    for row in rows:
        device, precision, threads = row.target.device, row.timing.precision, row.timing.threads
        layers, bound = loads[row.model], None
        if device in ceilings and layers is not None:
            bound = roofline_bound(layers, ceilings[device], precision, threads, batch=row.timing.batch)
        bounded.append(replace(row, roofline=bound))
        for kind in precision.split("+") if bound is not None else ():
            if (device, kind, threads) not in measured:
                measured[device, kind, threads] = ceilings[device].measured(kind, threads)
    return bounded, tuple(measured.values())


def _loads(entry: LabelledModel, inputs: Sequence[InputSpec]) -> tuple[LayerLoad, ...] | None:
    """Loads of the layers at batch size 1; None for a file that nothing here can read."""
    single = tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in inputs)
    if entry.model is not None:
        return module_loads(replace(entry.model, inputs=single).layers)
    assert entry.path is not None
    try:
        return file_loads(entry.path, single)
    except (RuntimeAbsent, RuntimeError):  # without OpenVINO, or where it can't set these shapes
        return None
