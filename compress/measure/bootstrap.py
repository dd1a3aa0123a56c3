"""Bootstrap intervals of a median time and of a paired ratio of times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import UsageError

#: Resamples of a bootstrap: the ends of a 95 % interval then vary by about 1 % of its width with the seed.
DRAWS = 4000

#: Share of intervals that hold the true value.
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """How many times faster one candidate is than another.

    Attributes
    ----------
    median : float
        Median over rounds of the first candidate's time divided by the second's: above 1 the second is faster.
    low, high : float
        Ends of the bootstrap interval of that median.
    """

    median: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """``"faster"`` or ``"slower"`` (the second candidate) if the interval excludes 1, else ``"no difference"``."""
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "no difference"


def bootstrap_interval(
    samples: ArrayLike, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the median (Efron and Tibshirani 1993, chapter 13).

    Parameters
    ----------
    samples : array, shape (n,)
        Independent measurements. With one measurement the interval has no width.
    level : float
        Share of such intervals that hold the true median, in (0, 1).
    draws : int
        Number of resamples.
    seed : int
        The same seed gives the same interval.

    Returns
    -------
    (float, float)
        Lower and upper end.

    Raises
    ------
    UsageError
        If there is no sample, or one is not a finite number.
    """
    values = _finite(samples)
    chosen = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))  # [draws, n]
    medians = np.median(values[chosen], axis=1)  # [draws]
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def ratio(first: ArrayLike, second: ArrayLike, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Ratio:
    """Speed-up of the second candidate over the first from rounds in which both were timed.

    Dividing within a round cancels what slowed the whole machine during that round, so the interval is narrower
    than one from two separate medians.

    Parameters
    ----------
    first, second : array, shape (n,)
        Times of the two candidates in the same unit; element i of both comes from round i.
    level, draws, seed
        As in `bootstrap_interval`.

    Raises
    ------
    UsageError
        If the numbers of rounds differ, or a time is not positive and finite.
    """
    a, b = _finite(first), _finite(second)
    if len(a) != len(b):
        raise UsageError("a paired ratio needs the same rounds of both candidates", found=(len(a), len(b)))
    if (a <= 0).any() or (b <= 0).any():
        raise UsageError("times must be positive", found=float(min(a.min(), b.min())))
    quotients = a / b  # [n]
    low, high = bootstrap_interval(quotients, level=level, draws=draws, seed=seed)
    return Ratio(float(np.median(quotients)), low, high)


def _finite(samples: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(samples, dtype=np.float64).ravel()
    if not len(values):
        raise UsageError("statistics need at least one sample")
    if not np.isfinite(values).all():
        raise UsageError("a sample is not a finite number", found=float(values[~np.isfinite(values)][0]))
    return values
