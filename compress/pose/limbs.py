"""How well pairs of peaks agree with the part-affinity fields, read from the network's maps as they are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from compress.pose.grouping import Limbs, candidate_pairs
from compress.pose.peaks import Peaks
from compress.pose.skeleton import Skeleton


def score_limbs(
    pafs: NDArray[np.float32], peaks: Peaks, skeleton: Skeleton, *, samples: int, threshold: float, share: float
) -> Limbs:
    """The line integrals of OpenPose (Cao et al., 2017, eq. 11) over all pairs of peaks that could be limbs.

    The field is interpolated linearly at points spread evenly from end to end. A point counts if the field's part
    along the limb is above the threshold; the pair is a candidate if more than the share of its points count, and its
    score is their mean.

    Parameters
    ----------
    pafs : array, shape (2 * limbs, h, w), float32
        The fields.
    peaks : Peaks
        Joints, in cells of the fields.
    skeleton : Skeleton
        Limbs and their channels.
    samples : int
        Points per limb, the ends among them.
    threshold : float
        What a point has to exceed.
    share : float
        What the share of points that count has to exceed.
    """
    limb, first, second = candidate_pairs(peaks, skeleton)
    field = _as_complex(pafs, skeleton)
    points = peaks.points.astype(np.float32).view(np.complex64)[:, 0]
    start = points[first]
    whole = points[second] - start
    length = np.abs(whole)
    unit = whole / np.where(length > 0, length, 1)  # two peaks at one place agree with nothing
    position = np.arange(samples, dtype=np.float32) / np.float32(samples - 1)
    needed = next(n for n in range(samples + 2) if n / samples > share)
    # A few points in the middle settle most pairs: those with as many failures there as a limb must not have at all.
    allowed = samples - needed
    ...
