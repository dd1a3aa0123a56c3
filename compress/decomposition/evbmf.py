"""Empirical variational Bayesian matrix factorization (EVBMF): the number of singular values above the noise.

Global analytic solution with unknown noise variance: Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic
solution of fully-observed variational Bayesian matrix factorization" (JMLR 14, 2013); Nakajima, Tomioka, Sugiyama and
Babacan, "Condition for perfect dimensionality recovery by variational Bayesian PCA" (JMLR 16, 2015). Letters as there:
an L x M matrix with L <= M, alpha = L / M, singular values s_h and x_h = s_h^2 / (M sigma^2).

Only the noise variance sigma^2 has to be searched for, along one axis, but the free energy has several local minima
there. This search finds the global one: it splits the axis at the knots where a component appears or vanishes, writes
the free energy between two knots as a convex plus a concave function of log sigma^2, bounds it from below on each
interval, and splits the intervals that could still hold the minimum until none is left.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from torch import Tensor

from compress.decomposition.gram import normalised, rounding, spectrum
from compress.decomposition.tucker import unfold
from compress.errors import RankError

Array = NDArray[np.float64]

#: The search ends when no interval can hold a free energy below the best by more than this, for each row.
TOLERANCE = 1e-11
#: Intervals of log sigma^2 are not split below this width.
NARROWEST = 1e-9
#: Evenly spaced points to start from, beside the knots.
CUTS = 128


@dataclass(frozen=True)
class Evbmf:
    """The result of EVBMF.

    Attributes
    ----------
    rank : int
        Number of singular values above the threshold; 0 where all of them look like noise.
    noise_variance : float
        Variance of the noise in one entry.
    threshold : float
        Singular values above it are signal: ``sqrt(M sigma^2 x_bar)``.
    free_energy : float
        Its global minimum, times 2 / M and up to a constant that no choice of sigma^2 changes. Minus infinity where
        the matrix is exactly of low rank, so that noise of variance 0 explains it perfectly.
    """

    rank: int
    noise_variance: float
    threshold: float
    free_energy: float


def evbmf(singular_values: Tensor, shape: tuple[int, int]) -> Evbmf:
    """Rank and noise of a matrix from its singular values.

    Parameters
    ----------
    singular_values : Tensor, shape (min(shape),)
        All of them, zeros included, in any order. Those below float64's rounding of the largest count as zero.
    shape : (int, int)
        Rows and columns of the matrix, in any order. Rows or columns of zeros should not be counted: they carry no
        noise and would lower its estimate.

    Returns
    -------
    Evbmf
        Rank 0 for a matrix of zeros or of pure noise.

    Raises
    ------
    RankError
        If the shape is not two positive numbers, or the number of singular values is not its smaller side, or one is
        not finite or below 0.
    """
    if len(shape) != 2 or any(not isinstance(n, int) or n < 1 for n in shape):
        raise RankError("the shape of a matrix is two whole numbers from 1 on", found=shape)
    rows, cols = min(shape), max(shape)
    if singular_values.shape != (rows,) or singular_values.dtype.is_complex:
        raise RankError(
            f"EVBMF of a {shape[0]} x {shape[1]} matrix needs its {rows} singular values, all of them and real",
            found=(singular_values.dtype, tuple(singular_values.shape)),
        )
    values = np.sort(singular_values.detach().to("cpu", torch.float64).numpy())[::-1]
    if not np.isfinite(values).all() or values[-1] < 0:
        raise RankError("singular values are finite and at least 0", found=(float(values[-1]), float(values[0])))

    largest = float(values[0])
    if largest == 0:
        return Evbmf(rank=0, noise_variance=0.0, threshold=0.0, free_energy=-math.inf)
    relative = values[values > rounding(cols) * largest] / largest
    if len(relative) * (rows + cols) < rows * cols:
        # Fewer than L / (1 + alpha) values: the free energy falls without end as sigma^2 goes to 0.
        return Evbmf(rank=len(relative), noise_variance=0.0, threshold=0.0, free_energy=-math.inf)
    search = _Search(relative**2, rows, cols)
    log_noise, free_energy = search.minimum()
    threshold = math.sqrt(search.x_bar * math.exp(log_noise))
    return Evbmf(
        rank=int((relative > threshold).sum()),
        noise_variance=(largest * math.sqrt(math.exp(log_noise) / cols)) ** 2,
        threshold=largest * threshold,
        free_energy=free_energy,
    )


def evbmf_kernel(kernel: Tensor) -> tuple[Evbmf, Evbmf]:
    """EVBMF of both unfoldings of a kernel, without their rows and columns of zeros.

    Parameters
    ----------
    kernel : Tensor, shape (T, S, *k)
        Convolution or linear weights.

    Returns
    -------
    Evbmf
        Of mode 3, the input channels.
    Evbmf
        Of mode 4, the output channels.

    Raises
    ------
    RankError
        If the kernel is empty, not finite or not of real floating-point numbers.
    """
    exact, scale = normalised(kernel, "a kernel")
    return _evbmf_matrix(unfold(exact, 3), scale), _evbmf_matrix(unfold(exact, 4), scale)


def _evbmf_matrix(matrix: Tensor, scale: float) -> Evbmf:
    by_row, by_column = matrix.norm(dim=1), matrix.norm(dim=0)
    # At the precision of the Gram matrix: what it can't resolve must not remain as a singular value of zero.
    null = by_row.norm() * math.sqrt(rounding(min(matrix.shape)))
    rows, columns = by_row > null, by_column > null
    if not (rows.all() and columns.all()):
        matrix = matrix[rows][:, columns]
    if matrix.numel() == 0:
        return Evbmf(rank=0, noise_variance=0.0, threshold=0.0, free_energy=-math.inf)
    return evbmf(spectrum(matrix) * scale, (matrix.shape[0], matrix.shape[1]))


@lru_cache(maxsize=1024)
def _tau_bar(alpha: float) -> float:
    """The tau above which a component lowers the free energy: the positive root of Phi(tau) + Phi(tau / alpha) = 0.

    Phi(z) = log(z + 1) / z - 1/2, 2.5129 sqrt(alpha) at alpha = 1 and more below: 13 % more at 0.01.
    """

    def gain(tau: float) -> float:
        return math.log1p(tau) + alpha * math.log1p(tau / alpha) - tau

    # The gain is 0 at tau = 0, largest at sqrt(alpha) and below 0 at 10 for every alpha up to 1.
    return float(brentq(gain, math.sqrt(alpha), 10.0, xtol=1e-16))


class _Search:
    """The search for the noise variance of one spectrum.

    The axis is y = log(M sigma^2 / s_1^2), so x_h = energies[h] exp(-y).

    Parameters
    ----------
    energies : array, shape (H,)
        Squared singular values that are not zero over the largest of them, descending.
    rows, cols : int
        L and M, L <= M.
    """

    def __init__(self, energies: Array, rows: int, cols: int) -> None:
        self.energies = energies
        self.rows = rows
        self.cols = cols
        self.alpha = rows / cols
        tau = _tau_bar(self.alpha)
        self.x_bar = (1 + tau) * (1 + self.alpha / tau)
        # A component h is part of the signal up to its knot, where x_h = x_bar.
        self.knots = np.log(energies / self.x_bar)
        # Sums over the components from k on, k from 0 to H: those that are noise while k are signal.
        self.noise_sum = np.append(np.cumsum(energies[::-1])[::-1], 0.0)
        self.noise_log = np.append(np.cumsum(np.log(energies)[::-1])[::-1], 0.0)

    def bounds(self) -> tuple[float, float]:
        """Lowest and highest y that the minimum can have.

        With k components in the signal the slope of the free energy in y is ``L - k - sum of x over the noise - alpha
        sum of 1 + 1 / tau over the signal``. It is below 0 where k (1 + alpha) >= L or the noise's x sum to L - k, and
        above 0 where all x sum to less than L, because alpha (1 + 1 / tau) < x - 1.
        """
        most = min(-(-self.rows * self.cols // (self.rows + self.cols)) - 1, len(self.energies))  # most signal there is
        lowest = max(self.energies[most] / self.x_bar, self.noise_sum[most] / (self.rows - most))
        highest = self.noise_sum[0] / self.rows
        return math.log(min(lowest, highest)), math.log(highest)

    def _signals(self, y: Array) -> NDArray[np.intp]:
        """Number of signal components at each y: of knots that are not below it."""
        return len(self.knots) - np.searchsorted(self.knots[::-1], y)

    def free_energy(self, y: Array) -> Array:
        """Free energy at each y, shape (N,)."""
        signals = self._signals(y)
        result = self._noise_part(y, signals)
        step = max(1, 2**20 // len(self.energies))  # bounds the memory that large linear layers take
        for i in range(0, len(y), step):
            result[i : i + step] += self._signal_part(y[i : i + step], signals[i : i + step])
        return result

    def _noise_part(self, y: Array, signals: NDArray[np.intp]) -> Array:
        """Sum of x - log(x) over the noise: convex in y as long as the number of signal components stays."""
        return self.noise_sum[signals] * np.exp(-y) + (self.rows - signals) * y - self.noise_log[signals]

    def _signal_part(self, y: Array, signals: NDArray[np.intp]) -> Array:
        """Sum of psi(x) over the signal: concave in y, its slope in log(x) being alpha (1 + 1 / tau)."""
        point, component = np.nonzero(np.arange(len(self.energies)) < signals[:, None])
        excess = self.energies[component] * np.exp(-y[point]) - (1 + self.alpha)
        tau = (excess + np.sqrt(excess**2 - 4 * self.alpha)) / 2
        # psi(x) = x - log(x) + log(tau + 1) + alpha log(tau / alpha + 1) - tau; x = (1 + tau) (1 + alpha / tau) is put
        # in, so that no large x - tau is left to cancel.
        share = self.alpha / tau
        psi = 1 + self.alpha + share - np.log1p(share) + self.alpha * np.log1p(1 / share)
        sums: Array = np.bincount(point, psi, len(y)).astype(np.float64, copy=False)
        return sums

    def minimum(self) -> tuple[float, float]:
        """The y of the global minimum and the free energy there."""
        lowest, highest = self.bounds()
        knots = self.knots[(self.knots > lowest) & (self.knots < highest)]
        ends = np.unique(np.concatenate([knots, np.linspace(lowest, highest, CUTS)]))
        values = self.free_energy(ends)
        y, best = ends[values.argmin()], values.min()
        left, right, at_left, at_right = ends[:-1], ends[1:], values[:-1], values[1:]
        while True:
            bound, cut = self._lower_bound(left, right, at_left, at_right)
            wanted = (bound < best - TOLERANCE * self.rows) & (right - left > NARROWEST)
            if not wanted.any():
                return float(y), float(best)
            left, right, at_left, at_right, cut = (x[wanted] for x in (left, right, at_left, at_right, cut))
            values = self.free_energy(cut)
            if values.min() < best:
                y, best = cut[values.argmin()], values.min()
            left, right = np.concatenate([left, cut]), np.concatenate([cut, right])
            at_left, at_right = np.concatenate([at_left, values]), np.concatenate([values, at_right])

    def _lower_bound(self, left: Array, right: Array, at_left: Array, at_right: Array) -> tuple[Array, Array]:
        """What the free energy can't fall below on each interval without a knot inside, and where to cut it.

        The concave part lies above its chord, so the bound is the minimum of noise part plus chord: where
        ``slope + L - k = noise_sum exp(-y)``, and the cut is there too unless it is almost an end.
        """
        signals = self._signals(right)
        start = at_left - self._noise_part(left, signals)
        width = right - left
        slope = (at_right - self._noise_part(right, signals) - start) / width
        rise = slope + self.rows - signals
        with np.errstate(divide="ignore"):
            y = np.where(rise > 0, np.log(self.noise_sum[signals] / np.where(rise > 0, rise, 1.0)), right)
        y = np.clip(y, left, right)
        bound = self._noise_part(y, signals) + start + slope * (y - left)
        return bound, np.clip(y, left + width / 8, right - width / 8)
