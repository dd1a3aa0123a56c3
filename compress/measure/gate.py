"""The latency gate of a compressed network: timed side by side with the original, it must not be slower."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from compress.measure.bootstrap import paired_speedup
from compress.measure.latency import RoundOptions, measure_interleaved
from compress.network.inputs import InputSpec
from compress.runtime.runner import Runner


@dataclass(frozen=True)
class Gate:
    """Latency of a result compared with its original.

    Attributes
    ----------
    ratio : float
        Median over rounds of the result's time by the original's: below 1 the result is faster.
    interval : (float, float)
        95 % bootstrap interval of that median.
    original_ms, result_ms : float
        Median times.
    rounds : int
        Timed rounds.
    verdict : str
        As of `compress.measure.bootstrap.Speedup.verdict`.
    """

    ratio: float
    interval: tuple[float, float]
    original_ms: float
    result_ms: float
    rounds: int
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return asdict(self) | {"interval": list(self.interval)}


def never_slower(
    original: Runner,
    result: Runner,
    inputs: Sequence[InputSpec],
    *,
    rounds: int = 60,
    budget_s: float = 30.0,
    clock: Callable[[], float] = time.perf_counter,
) -> Gate:
    """Time a result against its original, in rounds that contain both.

    Parameters
    ----------
    original, result : Runner
        Both on the same runtime, device and precision.
    inputs : sequence of InputSpec
        What each run is given.
    rounds : int
        Maximum number of rounds, at least `compress.measure.bootstrap.MIN_ROUNDS`.
    budget_s : float
        Start no round after this many seconds.
    clock : callable
        A monotonic clock in seconds.
    """
    first, second = measure_interleaved(
        {"original": original, "result": result},
        inputs,
        RoundOptions(rounds, half_width=0.005, budget_s=budget_s),
        clock=clock,
    )
    speedup = paired_speedup(first.samples_ms, second.samples_ms)
    return Gate(
        ratio=1 / speedup.median,
        interval=(1 / speedup.high, 1 / speedup.low),
        original_ms=first.latency_ms,
        result_ms=second.latency_ms,
        rounds=first.rounds,
        verdict=speedup.verdict,
    )
