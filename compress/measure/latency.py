"""Latency of several models on several runtimes, timed side by side.

Machines drift: clocks, temperature and competing processes change over seconds. Timing one model after the other
turns that drift into a difference between the models. Here every round times each candidate once, in a new random
order, so drift affects all alike, and speed-ups are taken within rounds (`compress.measure.bootstrap.paired_speedup`).

A runtime's worker threads keep spinning for a while after a run and take cores from whatever runs next. Each timed
run therefore follows an untimed one of the same candidate: without it, switching between torch and onnxruntime on
two cores cost torch 20 to 30 %; with it, interleaved medians agree with those of a candidate that runs alone.

Times are those of ``runner.run`` with arrays in main memory: on a GPU they include the copies in both directions. The
time of the network alone, by events on the GPU itself, is recorded beside them where the runner reports it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from compress.errors import UsageError
from compress.measure.bootstrap import MIN_ROUNDS, bootstrap_interval
from compress.measure.garbage import garbage_collection_paused
from compress.network.inputs import InputSpec

if TYPE_CHECKING:
    from compress.runtime.runner import ArrayInputs, Runner


@dataclass(frozen=True)
class Timing:
    """Latency of one candidate, with its conditions.

    Attributes
    ----------
    model : str
        Label of the candidate.
    runtime, device, precision : str
        Those of its runner.
    height, width : int or None
        Of the first input if it is an image (batch, channels, height, width), else None.
    batch : int
        Size of the first axis of the first input.
    latency_ms : float
        Median time of one run of the whole batch.
    p90_ms, p99_ms : float
        90th and 99th percentiles; with fewer than a hundred rounds the latter is close to the slowest.
    interval_ms : (float, float)
        95 % bootstrap interval of the median.
    fps : float
        Images per second at the median.
    rounds : int
        Number of timed runs.
    threads : int
        CPU threads of the runner.
    device_ms : float or None
        Median time between events around the network on a GPU, without copies; None elsewhere.
    samples_ms : tuple of float
        Time of each round, in order; not part of `to_dict`.
    """

    model: str
    runtime: str
    device: str
    precision: str
    height: int | None
    width: int | None
    batch: int
    latency_ms: float
    p90_ms: float
    p99_ms: float
    interval_ms: tuple[float, float]
    fps: float
    rounds: int
    threads: int
    device_ms: float | None = None
    samples_ms: tuple[float, ...] = field(default=(), repr=False)

    @property
    def size(self) -> str:
        """Height and width as tables show them, ``"256x192"``, or a dash."""
        return "-" if self.height is None else f"{self.height}x{self.width}"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON, without the samples."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples_ms"}
        return record | {"interval_ms": list(self.interval_ms)}


@dataclass(frozen=True)
class RoundOptions:
    """How long candidates are timed.

    Attributes
    ----------
    rounds : int
        Maximum number of rounds.
    min_rounds : int
        Minimum number of rounds, whatever the time budget.
    warmup : int
        Untimed runs of each candidate before the first round.
    half_width : float
        Stop when the 95 % interval of each median is no wider than this share of the median to either side;
        0 runs all rounds.
    budget_s : float
        Start no round after this many seconds.
    seed : int
        Of the inputs and of the order within rounds.

    Raises
    ------
    UsageError
        If a count or share is out of range.
    """

    rounds: int = 200
    min_rounds: int = MIN_ROUNDS
    warmup: int = 3
    half_width: float = 0.02
    budget_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_rounds <= self.rounds:
            raise UsageError("min_rounds must be at least 1 and at most rounds", found=(self.min_rounds, self.rounds))
        if min(self.warmup, self.half_width, self.budget_s) < 0:
            raise UsageError(
                "warm-up, interval and budget can't be negative", found=(self.warmup, self.half_width, self.budget_s)
            )


def measure_interleaved(
    candidates: Mapping[str, Runner],
    inputs: Sequence[InputSpec],
    options: RoundOptions | None = None,
    *,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time candidates in rounds until every median is known precisely enough.

    Parameters
    ----------
    candidates : mapping of str to Runner
        What to time, by unique labels.
    inputs : sequence of InputSpec
        What each run is given; see `random_inputs`.
    options : RoundOptions, optional
        How many rounds.
    clock : callable
        A monotonic clock in seconds.
    progress : callable, optional
        Called as ``progress(rounds done, maximum rounds)`` after each round.

    Returns
    -------
    list of Timing
        One for each candidate, in their order. Element i of all ``samples_ms`` comes from round i.

    Raises
    ------
    UsageError
        If there is no candidate or no input.
    """
    if not candidates:
        raise UsageError("there is nothing to time", hint="Name at least one model")
    if not inputs:
        raise UsageError("a network to time needs at least one input")
    options = options or RoundOptions()
    rounds, min_rounds = options.rounds, options.min_rounds
    random = np.random.default_rng(options.seed)
    given = random_inputs(inputs, random)
    labels = list(candidates)
    samples: dict[str, list[float]] = {label: [] for label in labels}
    on_device: dict[str, list[float]] = {label: [] for label in labels}
    for label in labels:
        for _ in range(options.warmup):
            candidates[label].run(given)
    start = clock()
    with garbage_collection_paused():
        for done in range(1, rounds + 1):
            for index in random.permutation(len(labels)):
                label = labels[index]
                candidates[label].run(given)
                samples[label].append(_timed_ms(candidates[label], given, clock))
                if (device_ms := getattr(candidates[label], "device_ms", None)) is not None:
                    on_device[label].append(device_ms)
            if progress is not None:
                progress(done, rounds)
            if done >= min_rounds and (
                clock() - start > options.budget_s or (done % min_rounds == 0 and _settled(samples, options.half_width))
            ):
                break
    return [_timing(label, candidates[label], inputs, samples[label], on_device[label]) for label in labels]


def random_inputs(inputs: Sequence[InputSpec], random: np.random.Generator) -> ArrayInputs:
    """Arrays as a runner takes them: floating values uniform in [-0.5, 0.5], as of prepared images; others zero."""
    arrays = tuple(
        (random.random(spec.shape, dtype=np.float32) - np.float32(0.5)).astype(np.float32, copy=False)
        if spec.torch_dtype.is_floating_point
        else np.zeros(spec.shape, spec.dtype)
        for spec in inputs
    )
    return arrays[0] if len(arrays) == 1 else arrays


def _timed_ms(runner: Runner, given: ArrayInputs, clock: Callable[[], float]) -> float:
    start = clock()
    runner.run(given)
    return (clock() - start) * 1e3


def _settled(samples: Mapping[str, list[float]], half_width: float) -> bool:
    """Whether every interval is narrow enough."""
    if half_width == 0:
        return False
    for times in samples.values():
        median = float(np.median(times))
        low, high = bootstrap_interval(times)
        if max(high - median, median - low) > half_width * median:
            return False
    return True


def _timing(
    label: str, runner: Runner, inputs: Sequence[InputSpec], times: list[float], on_device: list[float]
) -> Timing:
    median = float(np.median(times))
    shape = inputs[0].shape
    height, width = shape[2:] if len(shape) == 4 else (None, None)
    return Timing(
        model=label,
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        height=height,
        width=width,
        batch=shape[0],
        latency_ms=median,
        p90_ms=float(np.percentile(times, 90)),
        p99_ms=float(np.percentile(times, 99)),
        interval_ms=bootstrap_interval(times),
        fps=shape[0] * 1e3 / median,
        rounds=len(times),
        threads=runner.threads,
        device_ms=float(np.median(on_device)) if on_device else None,
        samples_ms=tuple(times),
    )
