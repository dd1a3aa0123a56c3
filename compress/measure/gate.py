"""The gate that a compressed network passes: measured against the original, side by side, it must not be slower."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from compress.measure.bootstrap import ratio
from compress.measure.latency import measure_interleaved
from compress.runtime.runner import Runner


@dataclass(frozen=True)
class Gate:
    """How a result compares with its original.

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
        ``"faster"`` or ``"slower"`` if the interval excludes 1, else ``"no difference"``.
    """

    ratio: float
    interval: tuple[float, float]
    original_ms: float
    result_ms: float
    rounds: int
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return asdict(self) | {"interval": list(self.interval)}


def never_slower(
    original: Runner,
    result: Runner,
    shape: tuple[int, int, int, int],
    *,
    rounds: int = 60,
    budget_s: float = 30.0,
) -> Gate:
    """Time a result against its original, in rounds that hold both.

    Parameters
    ----------
    original, result : Runner
        Both on the same runtime, device and precision.
    shape : (N, 3, H, W)
        Shape of the input.
    rounds : int
        Most rounds.
    budget_s : float
        Start no round after this many seconds.
    """
    first, second = measure_interleaved(
        {"original": original, "result": result}, shape, rounds=rounds, half_width=0.005, budget_s=budget_s
    )
    speedup = ratio(first.samples_ms, second.samples_ms)
    return Gate(
        ratio=1 / speedup.median,
        interval=(1 / speedup.high, 1 / speedup.low),
        original_ms=first.latency_ms,
        result_ms=second.latency_ms,
        rounds=first.rounds,
        verdict=speedup.verdict,
    )
