"""Global analytic variational Bayesian matrix factorization with empirical noise (EVBMF): how many components of a
matrix stand out of its noise.

Follows Nakajima, Sugiyama, Babacan and Tomioka, "Global analytic solution of fully-observed variational Bayesian matrix
factorization", JMLR 14, 2013 (theorems 2 and 3, and the estimation of the noise variance), and Nakajima et al.,
"Perfect dimensionality recovery by variational Bayesian PCA", NIPS 2012. Used to rank convolution kernels by Kim et
al., arXiv:1511.06530.

The free energy has several local minima in the noise variance, so a bounded search can end in the wrong one, and one
with an absolute tolerance depends on the scale of the weights. Here it is minimised over the logarithm of the variance
of scaled singular values, on a grid that holds every knot, and every minimum on the grid is refined.
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

from compress.decomposition.gram import normalised, rounding, singular_values
from compress.decomposition.tucker import unfold
from compress.errors import RankError

Array = NDArray[np.float64]

#: Points of the grid of log variances, besides the knots.
_GRID = 512
#: Golden-section steps of the refinement; each narrows the bracket to 0.62 of its width.
_REFINE = 60
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Evbmf:
    """What EVBMF says of a matrix.

    Attributes
    ----------
    rank : int
        Components that stand out of the noise; 0 where nothing does.
    noise_variance : float
        Estimated variance of the noise in each entry.
    threshold : float
        Singular values above it are signal: ``sqrt(M * noise_variance * xbar)``.
    free_energy : float
        The minimised objective, up to a constant that does not depend on the noise variance.
    """

    rank: int
    noise_variance: float
    threshold: float
    free_energy: float


def evbmf(singular_values: Tensor, shape: tuple[int, int]) -> Evbmf:
    """Rank of a matrix from its singular values.

    Parameters
    ----------
    singular_values : Tensor, shape (n,)
        In any order; those that are left out of the ``min(shape)`` count as zero.
    shape : (int, int)
        Rows and columns of the matrix; which is which does not matter.

    Returns
    -------
    Evbmf
        At the global minimum of the free energy.

    Raises
    ------
    RankError
        If a value is negative or not finite, or there are more values than the matrix can have.
    """
    values = np.sort(np.asarray(singular_values.detach().to("cpu", torch.float64), dtype=np.float64).ravel())[::-1]
    rows, columns = min(shape), max(shape)
    if rows < 1 or len(values) > rows:
        raise RankError(f"a matrix of shape {tuple(shape)} can't have {len(values)} singular values", found=len(values))
    if not np.isfinite(values).all() or (values < 0).any():
        raise RankError("singular values must be finite and not negative", found=float(values[~(values >= 0)][:1].sum()))
    largest = float(values[0]) if len(values) else 0.0
    values = values[values > math.sqrt(rounding(rows)) * largest] if largest else values[:0]
    if not len(values):
        return Evbmf(0, 0.0, 0.0, 0.0)
    return _minimise(values / largest, rows, columns, largest)


def evbmf_kernel(kernel: Tensor) -> tuple[Evbmf, Evbmf]:
    """EVBMF of both unfoldings of a convolution kernel: mode 3 (input channels) and mode 4 (output channels).

    Dead filters, unused inputs and taps that are zero everywhere carry no noise, so they are left out first.

    Parameters
    ----------
    kernel : Tensor, shape (T, S, *k)
        Convolution or linear weights.

    Raises
    ------
    RankError
        If the kernel is empty, not finite or not of real floating-point numbers.
    """
    exact, scale = normalised(kernel, "a kernel")
    by_input, by_output = (_of_matrix(unfold(exact, mode), scale) for mode in (3, 4))
    return by_input, by_output


def _of_matrix(matrix: Tensor, scale: float) -> Evbmf:
    alive = matrix != 0
    matrix = matrix[alive.any(1)][:, alive.any(0)]
    if not matrix.numel():
        return Evbmf(0, 0.0, 0.0, 0.0)
    return evbmf(singular_values(matrix) * scale, (matrix.shape[0], matrix.shape[1]))


@lru_cache(maxsize=4096)
def _tau_bar(alpha: float) -> float:
    """The unique root of ``phi(t) + phi(t / alpha)``, ``phi(z) = log(z + 1) / z - 1/2``: about 2.5129 sqrt(alpha)."""

    def balance(tau: float) -> float:
        return math.log1p(tau) / tau + alpha * math.log1p(tau / alpha) / tau - 1

    return float(brentq(balance, 1e-12 * alpha, 10.0, xtol=1e-15))


def _tau(x: Array, alpha: float) -> Array:
    """Larger root of ``x tau = (1 + tau)(alpha + tau)``, for x from ``(1 + sqrt(alpha))^2`` on."""
    shifted = x - (1 + alpha)
    return np.asarray((shifted + np.sqrt(np.maximum(shifted * shifted - 4 * alpha, 0.0))) / 2)


def _free_energy(log_variance: Array, values: Array, rows: int, columns: int, x_bar: float) -> Array:
    """The objective at each log variance, shape (g,), of the scaled singular values, shape (n,)."""
    alpha = rows / columns
    x = values**2 / (columns * np.exp(log_variance)[:, None])  # [g, n]
    signal = x > x_bar
    tau = _tau(np.where(signal, x, x_bar), alpha)
    gain = np.where(signal, np.log1p(tau) + alpha * np.log1p(tau / alpha) - tau, 0.0)
    return np.asarray((x - np.log(x) + gain).sum(1) + (rows - len(values)) * log_variance)


def _minimise(values: Array, rows: int, columns: int, scale: float) -> Evbmf:
    alpha = rows / columns
    tau_bar = _tau_bar(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    squares = values**2
    most = min(math.ceil(rows / (1 + alpha)) - 1, len(values))
    upper = squares.sum() / (rows * columns)
    rest = squares[most:]
    # Below the lower bound more components would stand out than the noise lets be identified.
    lower = max(rest[0] / (columns * x_bar), rest.sum() / ((rows - most) * columns)) if len(rest) else 0.0
    lower = min(max(lower, squares[-1] / columns * 1e-6), upper)
    knots = squares / (columns * x_bar)
    grid = np.concatenate([np.linspace(math.log(lower), math.log(upper), _GRID), np.log(knots)])
    grid = np.unique(np.clip(grid, math.log(lower), math.log(upper)))
    energy = _free_energy(grid, values, rows, columns, x_bar)
    # Every point no higher than its neighbours brackets a local minimum: refine them all at once.
    padded = np.concatenate([[np.inf], energy, [np.inf]])
    lowest = np.flatnonzero((energy <= padded[:-2]) & (energy <= padded[2:]))
    left, right = grid[np.maximum(lowest - 1, 0)], grid[np.minimum(lowest + 1, len(grid) - 1)]
    for _ in range(_REFINE):
        a, b = right - _GOLDEN * (right - left), left + _GOLDEN * (right - left)
        keep_left = _free_energy(a, values, rows, columns, x_bar) < _free_energy(b, values, rows, columns, x_bar)
        left, right = np.where(keep_left, left, a), np.where(keep_left, b, right)
    candidates = np.concatenate([grid[lowest], (left + right) / 2])
    energies = _free_energy(candidates, values, rows, columns, x_bar)
    best = int(energies.argmin())
    variance = math.exp(candidates[best])
    threshold = math.sqrt(columns * variance * x_bar)
    return Evbmf(int((values > threshold).sum()), variance * scale**2, threshold * scale, float(energies[best]))
