"""Joints as peaks of heatmaps: between the cells of a map, without upsampling the whole map."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

#: Peaks lower than a neighbour by this much still count: the same point, computed from two cells, differs by rounding.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class Peaks:
    """Candidate positions of joints, joint by joint.

    Attributes
    ----------
    points : array, shape (P, 2), float32
        x and y; the unit is the finder's.
    scores : array, shape (P,), float32
        Heights of the peaks.
    starts : array, shape (K + 1,), int
        The peaks of joint k are ``starts[k]`` to ``starts[k + 1]``.
    """

    points: Floats
    scores: Floats
    starts: NDArray[np.int64]


def find_peaks(heatmaps: Floats, *, upsample: int, threshold: float, radius: float, limit: int) -> Peaks:
    """Local maxima of heatmaps upsampled with cubic interpolation, refined by a parabola through each.

    Only cells of at least half the threshold are interpolated: lower ones contain no peak except in extreme noise.

    Parameters
    ----------
    heatmaps : array, shape (K, h, w), float32
        One map a joint.
    upsample : int
        Interpolated points per cell along each axis; peaks are the highest of 3x3 such points.
    threshold : float
        Least height of a peak.
    radius : float
        Of peaks of one joint closer to each other than this, in cells, the highest is kept.
    limit : int
        Most peaks of one joint, the highest ones.

    Returns
    -------
    Peaks
        In cells, the centre of the first one at (0, 0); the highest of each joint first.
    """
    joint, row, column = np.nonzero(heatmaps >= threshold / 2)
    fine = _interpolate(heatmaps, joint, row, column, upsample)  # (u + 2, u + 2, N)
    inner = fine[1:-1, 1:-1]
    highest = np.maximum(np.maximum(fine[:-2], fine[1:-1]), fine[2:])
    highest = np.maximum(np.maximum(highest[:, :-2], highest[:, 1:-1]), highest[:, 2:])
    found = np.where((inner >= highest - _ROUNDING) & (inner >= threshold), inner, -np.inf).reshape(upsample**2, -1)
    best = found.argmax(axis=0)  # at most one peak in a cell
    cells = np.flatnonzero(found[best, np.arange(found.shape[1])] >= threshold)
    y, x = np.divmod(best[cells], upsample)
    joint, row, column = joint[cells], row[cells], column[cells]
    centre = fine[y + 1, x + 1, cells]
    step_x, rise_x = _parabola(fine[y + 1, x, cells], centre, fine[y + 1, x + 2, cells])
    step_y, rise_y = _parabola(fine[y, x + 1, cells], centre, fine[y + 2, x + 1, cells])
    points = np.stack(
        [column + (x + 0.5 + step_x) / upsample - 0.5, row + (y + 0.5 + step_y) / upsample - 0.5], axis=-1
    )
    return _thin_out(joint, points, centre + rise_x + rise_y, len(heatmaps), radius, limit)


def _interpolate(
    heatmaps: Floats, joint: NDArray[np.int64], row: NDArray[np.int64], column: NDArray[np.int64], upsample: int
) -> Floats:
    """The interpolated points in N cells and one more on each side: (u + 2, u + 2, N); N is last for speed."""
    padded = np.pad(heatmaps, ((0, 0), (2, 2), (2, 2)), mode="edge")
    _, height, width = padded.shape
    window = (np.arange(5)[:, None] * width + np.arange(5)).reshape(25, 1)
    taps = padded.ravel()[(joint * height + row) * width + column + window]  # (25, N)
    weights = cubic_weights(upsample)
    # Not a matrix product: BLAS threads would spin for about 25 ms on cores that the next image's network needs.
    return np.einsum("bj,ajn->abn", weights, np.einsum("ai,ijn->ajn", weights, taps.reshape(5, 5, -1)))


def cubic_weights(upsample: int) -> Floats:
    """Weights (u + 2, 5) of a cell and two more on each side in the points of the cell and one more on each side.

    Keys' cubic convolution (1981) with a = -0.75, as in OpenCV.
    """
    position = (np.arange(-1, upsample + 1) + 0.5) / upsample - 0.5
    distance = np.abs(position[:, None] - np.arange(-2, 3))
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0)).astype(np.float32)


def _parabola(before: Floats, centre: Floats, after: Floats) -> tuple[Floats, Floats]:
    """The vertex of a parabola through three points: its offset from the second in steps, and its height above it."""
    curvature = before - 2 * centre + after
    step = np.where(curvature < 0, (before - after) / np.minimum(curvature, -1e-12) / 2, 0)
    step = np.clip(step, -0.5, 0.5)
    return step, step * (after - before + step * curvature) / 2


def _thin_out(
    joint: NDArray[np.int64], points: NDArray[np.floating], scores: Floats, joints: int, radius: float, limit: int
) -> Peaks:
    """Peaks sorted by joint and height, without those close to higher ones."""
    order = np.lexsort((-scores, joint))
    rank = np.arange(len(order)) - np.searchsorted(joint[order], joint[order])
    order = order[rank < limit]
    joint, points, scores = joint[order], points[order].astype(np.float32), scores[order]
    kept = np.ones(len(joint), dtype=np.bool_)
    for start, stop in pairwise(np.searchsorted(joint, np.arange(joints + 1))):
        x, y = points[start:stop].T
        near = np.subtract.outer(x, x) ** 2 + np.subtract.outer(y, y) ** 2 < radius**2
        for first, second in np.argwhere(np.triu(near, 1)):
            if kept[start + first]:
                kept[start + second] = False
    joint = joint[kept]
    return Peaks(points[kept], scores[kept], np.searchsorted(joint, np.arange(joints + 1)))
