"""Latency of several models on several runtimes, timed side by side.

Machines drift: clocks, temperature and neighbours change over seconds. Timing one model after the other turns that
drift into a difference between the models. Here every round times each candidate once, in a new random order, so
drift hits all alike, and speed-ups are taken within rounds (`compress.measure.bootstrap.ratio`).

A runtime's worker threads keep spinning for a while after a run and steal cores from whatever comes next. Each timed
run therefore follows an untimed one of the same candidate: without it, switching between torch and onnxruntime on
two cores cost torch 20 to 30 %; with it, interleaved medians agree with those of a candidate that runs alone.

Times are those of ``runner.run`` with arrays in main memory: on a GPU they hold the copies in both directions. What
the network alone took there, by events on the GPU itself, stands beside them where the runner tells it.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import UsageError
from compress.measure.bootstrap import bootstrap_interval

if TYPE_CHECKING:
    from compress.runtime.runner import Runner


@dataclass(frozen=True)
class Timing:
    """Latency of one candidate, with its conditions.

    Attributes
    ----------
    model : str
        Label of the candidate.
    runtime, device, precision : str
        Those of its runner.
    height, width, batch : int
        Shape of the input: (batch, 3, height, width).
    latency_ms : float
        Median time of one run of the whole batch.
    p90_ms, p99_ms : float
        90th and 99th percentiles; with fewer than a hundred rounds the latter is close to the slowest.
    interval_ms : (float, float)
        95 % bootstrap interval of the median.
    fps : float
        Images per second at the median.
    rounds : int
        Timed runs behind these numbers.
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
    height: int
    width: int
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

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON, without the samples."""
        record = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "samples_ms"}
        return record | {"interval_ms": list(self.interval_ms)}


def measure_interleaved(
    candidates: Mapping[str, Runner],
    shape: tuple[int, int, int, int],
    *,
    rounds: int = 200,
    min_rounds: int = 10,
    warmup: int = 3,
    half_width: float = 0.02,
    budget_s: float = 60.0,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int, int], None] | None = None,
) -> list[Timing]:
    """Time candidates in rounds until every median is known well enough.

    Parameters
    ----------
    candidates : mapping of str to Runner
        What to time, by a label that is unique.
    shape : (N, 3, H, W)
        Shape of the input; its values are uniform in [-0.5, 0.5], the range of prepared images.
    rounds : int
        Most rounds.
    min_rounds : int
        Fewest rounds, time budget or not.
    warmup : int
        Untimed runs of each candidate before the first round.
    half_width : float
        Stop when the 95 % interval of each median is no wider than this share of the median to either side;
        0 runs all rounds.
    budget_s : float
        Start no round after this many seconds.
    seed : int
        Of the input and of the order within rounds.
    clock : callable
        Seconds that never go back.
    progress : callable, optional
        Called as ``progress(rounds done, most rounds)`` after each round.

    Returns
    -------
    list of Timing
        One for each candidate, in their order. Element i of all ``samples_ms`` comes from round i.

    Raises
    ------
    UsageError
        If there is no candidate, the shape is not (N, 3, H, W), or a count or share makes no sense.
    """
    _check(candidates, shape, rounds, min_rounds, warmup, half_width, budget_s)
    random = np.random.default_rng(seed)
    images = (random.random(shape, dtype=np.float32) - np.float32(0.5)).astype(np.float32, copy=False)
    labels = list(candidates)
    samples: dict[str, list[float]] = {label: [] for label in labels}
    on_device: dict[str, list[float]] = {label: [] for label in labels}
    for label in labels:
        for _ in range(warmup):
            candidates[label].run(images)
    start = clock()
    with _no_garbage_collection():
        for done in range(1, rounds + 1):
            for index in random.permutation(len(labels)):
                label = labels[index]
                candidates[label].run(images)
                samples[label].append(_timed_ms(candidates[label], images, clock))
                if (device_ms := getattr(candidates[label], "device_ms", None)) is not None:
                    on_device[label].append(device_ms)
            if progress is not None:
                progress(done, rounds)
            if done >= min_rounds and (
                clock() - start > budget_s or (done % min_rounds == 0 and _settled(samples, half_width))
            ):
                break
    return [_timing(label, candidates[label], shape, samples[label], on_device[label]) for label in labels]


def _check(
    candidates: Mapping[str, Runner],
    shape: tuple[int, ...],
    rounds: int,
    min_rounds: int,
    warmup: int,
    half_width: float,
    budget_s: float,
) -> None:
    if not candidates:
        raise UsageError("there is nothing to time", hint="Name at least one model")
    if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
        raise UsageError("the input's shape must be (batch, 3, height, width)", found=tuple(shape))
    if not 1 <= min_rounds <= rounds:
        raise UsageError("rounds must be at least min_rounds, and that at least 1", found=(rounds, min_rounds))
    if warmup < 0 or half_width < 0 or budget_s < 0:
        raise UsageError("warm-up, interval and budget can't be negative", found=(warmup, half_width, budget_s))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector, which no candidate is to blame for, out of the timed runs."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _timed_ms(runner: Runner, images: NDArray[np.float32], clock: Callable[[], float]) -> float:
    start = clock()
    runner.run(images)
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
    label: str, runner: Runner, shape: tuple[int, int, int, int], times: list[float], on_device: list[float]
) -> Timing:
    median = float(np.median(times))
    return Timing(
        model=label,
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        height=shape[2],
        width=shape[3],
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
