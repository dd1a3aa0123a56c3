"""Peaks and limbs exactly as the public decoder of lightweight OpenPose finds them, at the size of the image.

Slower than the `fast` decoder by the cubic interpolation of all maps to the size of the image.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.pose.decoders.grouping import Limbs, candidate_pairs
from compress.pose.decoders.limbs import min_count
from compress.pose.decoders.peaks import Peaks
from compress.pose.prepare import Prepared
from compress.pose.skeleton import Skeleton

#: Pairs of peaks that are scored at once: noisy maps have millions.
_CHUNK = 65536


def enlarge(maps: NDArray[np.float32], prepared: Prepared, stride: int) -> NDArray[np.float32]:
    """Maps (C, h, w) at the size of the image, (H, W, C): cubic by the stride, padding cut off, cubic again."""
    (left, top), (rows, columns) = prepared.pad, prepared.scaled_size
    large = cv2.resize(
        np.ascontiguousarray(maps.transpose(1, 2, 0)), (0, 0), fx=stride, fy=stride, interpolation=cv2.INTER_CUBIC
    )
    inner = large[top : top + rows, left : left + columns]
    return np.asarray(cv2.resize(inner, prepared.size[::-1], interpolation=cv2.INTER_CUBIC))


def find_public_peaks(maps: NDArray[np.float32], *, threshold: float, radius: float) -> Peaks:
    """Strict maxima among four neighbours, thinned out from left to right.

    Of peaks closer to each other than the radius the leftmost is kept, then the uppermost, whatever their heights.
    Adjacent pixels of equal height are no peak.

    Parameters
    ----------
    maps : array, shape (H, W, K), float32
        Heatmaps at the size of the image.
    threshold : float
        Least height of a peak.
    radius : float
        In pixels of the image.

    Returns
    -------
    Peaks
        In pixels of the image, whole numbers; those of a joint from left to right.
    """
    points, scores, starts = [], [], [0]
    for joint in range(maps.shape[2]):
        heat = np.pad(maps[..., joint], 1)
        y, x = np.nonzero(heat >= np.float32(threshold))
        centre = heat[y, x]
        peak = centre > np.maximum.reduce([heat[y, x - 1], heat[y, x + 1], heat[y - 1, x], heat[y + 1, x]])
        order = np.lexsort((y[peak], x[peak]))
        found = np.stack([x[peak], y[peak]], axis=-1)[order] - 1
        kept = _leftmost(found, radius)
        points.append(found[kept])
        scores.append(centre[peak][order][kept])
        starts.append(starts[-1] + len(kept))
    return Peaks(np.concatenate(points).astype(np.float32), np.concatenate(scores), np.array(starts))


def _leftmost(points: NDArray[np.int64], radius: float) -> list[int]:
    """Indices of the points that are kept if each one drops later points within the radius."""
    kept, dropped = [], np.zeros(len(points), dtype=np.bool_)
    for index in range(len(points)):
        if not dropped[index]:
            kept.append(index)
            dropped |= np.sum((points - points[index]) ** 2, axis=1) < radius**2
    return kept


def score_public_limbs(
    pafs: NDArray[np.float32], peaks: Peaks, skeleton: Skeleton, *, samples: int, threshold: float, share: float
) -> Limbs:
    """Like `score_limbs`, with fields (H, W, 2 * limbs) read at rounded points in the image."""
    pairs = candidate_pairs(peaks, skeleton)
    needed = min_count(samples, share)
    scores = np.zeros(len(pairs.limb))
    for begin in range(0, len(scores), _CHUNK):
        chunk = pairs.keep(slice(begin, begin + _CHUNK))
        start, stop = peaks.points[chunk.first, None], peaks.points[chunk.second, None]  # (N, 1, 2)
        along = stop - start
        step = np.float32(1 / (samples - 1)) * along
        place = np.round(start + step * np.arange(samples, dtype=np.float32)[:, None]).astype(np.int64)
        x, y = place[..., 0], place[..., 1]  # (N, samples)
        channel = np.array(skeleton.paf_channels)[chunk.limb, None]
        length = np.linalg.norm(along, axis=-1)
        unit = along[:, 0] / np.where(length > 0, length, 1)
        component = unit[:, :1] * pafs[y, x, channel] + unit[:, 1:] * pafs[y, x, channel + 1]
        counts = component > np.float32(threshold)
        number = counts.sum(axis=1)
        mean = np.sum(component * counts, axis=1) / np.maximum(number, 1)
        scores[begin : begin + _CHUNK] = np.where(number >= needed, mean, 0)
    good = scores > 0
    return Limbs(pairs.keep(good), scores[good])
