"""Sub-pixel maxima of heatmaps by distribution-aware decoding, DARK (Zhang et al., "Distribution-Aware Coordinate
Representation for Human Pose Estimation", 2020, arXiv:1910.06278, section 3.2)."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.pose.decoders.base import Array

#: Lowest value of a map before its logarithm is taken.
_LOWEST = 1e-10

#: Largest step from the highest cell, in cells along each axis. The maximum of a peak lies within half a cell of its
#: highest cell, so a longer step means that the map is no single peak.
_LONGEST = 1.0


def filter_size(sigma: float) -> int:
    """Size in cells of the Gaussian filter of a standard deviation: 11 for 2 and 17 for 3, as in public code."""
    return 2 * max(1, math.floor(2.5 * sigma + 0.5)) + 1


def modulate(maps: Array, sigma: float, size: int | None = None) -> Array:
    """Maps under a Gaussian filter with the standard deviation of the training targets, each with its old maximum.

    ``h' = K * h``, then ``h' <- (h' - min h') / (max h' - min h') * max h``. Beyond its border a map counts as 0. A
    map without a positive value, and one that the filter makes constant, is returned as it is.

    Parameters
    ----------
    maps : array, shape (N, K, h, w), float32
        Heatmaps.
    sigma : float
        Standard deviation of the filter in cells.
    size : int, optional
        Size of the filter in cells, odd; `filter_size` by default.
    """
    size = filter_size(sigma) if size is None else size
    margin = size // 2
    result = np.empty_like(maps)
    for index in np.ndindex(maps.shape[:2]):
        smooth = cv2.GaussianBlur(np.pad(maps[index], margin), (size, size), sigma)[margin:-margin, margin:-margin]
        lowest, spread, highest = float(smooth.min()), float(np.ptp(smooth)), float(maps[index].max())
        constant = spread <= 0 or highest <= 0
        result[index] = maps[index] if constant else (smooth - lowest) * (highest / spread)
    return result


def taylor_steps(maps: Array, x: NDArray[np.int64], y: NDArray[np.int64]) -> NDArray[np.float64]:
    """From the highest cell of each map to the maximum of the Gaussian that it samples.

    The logarithm ``P`` of a Gaussian is a quadratic function, so from its gradient ``P'`` and Hessian ``P''`` at the
    highest cell ``m``, both by central differences, the maximum lies at ``m - P''(m)^-1 P'(m)``.

    Parameters
    ----------
    maps : array, shape (N, K, h, w), float32
        Heatmaps with one peak each, smoothed by `modulate` if they are a network's.
    x, y : array, shape (N, K), int
        Column and row of the highest cells.

    Returns
    -------
    array, shape (N, K, 2)
        Steps along x and y in cells, at most 1 along each axis. (0, 0) for cells nearer than two cells to the border,
        and where the map has no maximum: where the Hessian is not negative definite.
    """
    height, width = maps.shape[-2:]
    steps = np.zeros((*x.shape, 2))
    inner = (x > 1) & (x < width - 2) & (y > 1) & (y < height - 2)
    person, joint = np.nonzero(inner)
    row, column = y[inner], x[inner]
    logarithm = np.log(np.maximum(maps, _LOWEST).astype(np.float64))

    def at(down: int, right: int) -> NDArray[np.float64]:
        return np.asarray(logarithm[person, joint, row + down, column + right])

    dx, dy = (at(0, 1) - at(0, -1)) / 2, (at(1, 0) - at(-1, 0)) / 2
    dxx = (at(0, 2) - 2 * at(0, 0) + at(0, -2)) / 4
    dyy = (at(2, 0) - 2 * at(0, 0) + at(-2, 0)) / 4
    dxy = (at(1, 1) - at(-1, 1) - at(1, -1) + at(-1, -1)) / 4
    determinant = dxx * dyy - dxy**2
    peak = (dxx < 0) & (determinant > 0)
    safe = np.where(peak, determinant, 1.0)
    step = np.stack([(dxy * dy - dyy * dx) / safe, (dxy * dx - dxx * dy) / safe], axis=-1)
    steps[inner] = np.where(peak[:, None], np.clip(step, -_LONGEST, _LONGEST), 0)
    return steps
