"""How well pairs of peaks agree with the part-affinity fields, read at the resolution of the network's maps."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.pose.decoders.grouping import Limbs, Pairs, candidate_pairs
from compress.pose.decoders.peaks import Peaks
from compress.pose.skeleton import Skeleton

Floats = NDArray[np.float32]


def score_limbs(
    pafs: Floats, peaks: Peaks, skeleton: Skeleton, *, samples: int, threshold: float, share: float
) -> Limbs:
    """The line integrals of OpenPose (Cao et al., 2017, eq. 11) over all pairs of peaks that could be limbs.

    The field is interpolated linearly at points spread evenly from end to end. A point counts if the field's
    component along the limb is above the threshold there; the pair is a candidate if more than the share of its
    points count and their mean is positive, and that mean is its score.

    Parameters
    ----------
    pafs : array, shape (2 * limbs, h, w), float32
        The fields.
    peaks : Peaks
        Joints, in cells of the fields.
    skeleton : Skeleton
        Limbs and their channels.
    samples : int
        Points per limb, both ends among them.
    threshold : float
        What the component at a point must exceed; 0 or more.
    share : float
        What the share of points that count must exceed.
    """
    channels = np.array(skeleton.paf_channels)
    # The last row and column are repeated, so that every point has four cells around it.
    field = np.pad(np.stack([pafs[channels], pafs[channels + 1]]), ((0, 0), (0, 0), (0, 1), (0, 1)), mode="edge")
    position = np.linspace(0, 1, samples, dtype=np.float32)
    needed = min_count(samples, share)
    # A limb has at most `samples - needed` points that fail. Most pairs fail at one more, in the middle, and most of
    # those cross empty fields, which can be seen without interpolation.
    spare = samples - needed + 1
    middle = position[(samples - spare) // 2 :][:spare]
    pairs = candidate_pairs(peaks, skeleton)
    cell, _, _ = _locate(field, peaks, pairs, middle)
    pairs = pairs.keep(np.any(_may_exceed(field, threshold).ravel()[cell], axis=0))
    pairs = pairs.keep(np.any(_components(field, peaks, pairs, middle) > threshold, axis=0))
    component = _components(field, peaks, pairs, position)  # (samples, N)
    counts = component > threshold
    number = counts.sum(axis=0)
    score = np.sum(component, axis=0, where=counts) / np.maximum(number, 1)
    good = (number >= needed) & (score > 0)
    return Limbs(pairs.keep(good), score[good].astype(np.float32))


def min_count(samples: int, share: float) -> int:
    """The smallest number of samples that is more than the share of them."""
    return next(count for count in range(samples + 1) if count / samples > share)


def _may_exceed(field: Floats, threshold: float) -> NDArray[np.bool_]:
    """Whether the field between a cell and its right, lower and lower right neighbours can exceed the threshold.

    No interpolated vector is longer than the longest of the four.
    """
    long = field[0] ** 2 + field[1] ** 2 > threshold**2
    long[:, :-1] |= long[:, 1:]
    long[..., :-1] |= long[..., 1:]
    return np.asarray(long, dtype=np.bool_)


def _locate(field: Floats, peaks: Peaks, pairs: Pairs, position: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """The upper left cell of each point of N pairs at S positions from 0 to 1, and the offsets from its centre: (S, N).

    Peaks beyond the centres of the outermost cells are moved there. Cells are numbered through all limbs' fields.
    """
    _, _, height, width = field.shape
    x, y = (np.clip(values, 0, side - 2) for values, side in zip(peaks.points.T, (width, height), strict=True))
    x, y = (v[pairs.first] + position[:, None] * (v[pairs.second] - v[pairs.first]) for v in (x, y))
    column, row = x.astype(np.int64), y.astype(np.int64)
    return (pairs.limb * height + row) * width + column, x - column, y - row


def _components(field: Floats, peaks: Peaks, pairs: Pairs, position: Floats) -> Floats:
    """The fields' components along N pairs at S positions from 0 to 1: (S, N)."""
    width = field.shape[3]
    cell, right, down = _locate(field, peaks, pairs, position)
    along = peaks.points[pairs.second] - peaks.points[pairs.first]
    length = np.sqrt(np.sum(along**2, axis=1))
    unit = along / np.where(length > 0, length, 1)[:, None]  # coincident ends have no direction and no component
    total = np.zeros(cell.shape, dtype=np.float32)
    for values, direction in zip(field.reshape(2, -1), unit.T, strict=True):
        above = values[cell] * (1 - right) + values[cell + 1] * right
        below = values[cell + width] * (1 - right) + values[cell + width + 1] * right
        total += (above * (1 - down) + below * down) * direction
    return total
