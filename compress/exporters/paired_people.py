"""Differences between the people that two networks find in the same images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from compress.pose.decoders.base import Pose

#: Two keypoints of one joint that are farther apart than this share of the image's diagonal are not the same one.
FAR = 0.05


class PeopleErrors:
    """Differences of decoded people, gathered over all images."""

    def __init__(self) -> None:
        self.moved: list[float] = []
        self.lost = 0
        self.counts = (0, 0)

    def add(self, wanted: Sequence[Pose], found: Sequence[Pose], *, far: float) -> None:
        """Add the people of one image; parameters as of `compare_people`."""
        moved, lost = compare_people(wanted, found, far=far)
        self.moved += moved
        self.lost += lost
        self.counts = (self.counts[0] + len(wanted), self.counts[1] + len(found))


def compare_people(wanted: Sequence[Pose], found: Sequence[Pose], *, far: float) -> tuple[list[float], int]:
    """Pair people so that their joints lie closest, then compare joint by joint.

    Parameters
    ----------
    wanted, found : sequence of Pose
        People of one image.
    far : float
        Distance in pixels from which two points are not the same joint of the same person.

    Returns
    -------
    (list of float, int)
        Distance in pixels of each joint that both have, and the number of joints that one side alone has.
    """
    first, second = (_stack(people) for people in (wanted, found))  # [P, K, 3], [Q, K, 3]
    distance = np.linalg.norm(first[:, None, :, :2] - second[None, :, :, :2], axis=-1)  # [P, Q, K]
    there = (first[:, None, :, 2] > 0, second[None, :, :, 2] > 0)  # [P, 1, K], [1, Q, K]
    same = there[0] & there[1] & (distance < far)  # [P, Q, K]
    # Each joint that is the same gains at least a little, so the pairing prefers many joints, then close ones.
    gain = np.where(same, 1 - 0.5 * distance / far, 0.0).sum(axis=-1)  # [P, Q]
    rows, columns = linear_sum_assignment(gain, maximize=True)
    kept = same[rows, columns]  # [min(P, Q), K]
    moved = distance[rows, columns][kept]
    lost = int(there[0].sum() + there[1].sum()) - 2 * len(moved)
    return [float(d) for d in moved], lost


def _stack(people: Sequence[Pose]) -> NDArray[np.float64]:
    if not people:
        return np.zeros((0, 1, 3))
    return np.stack([pose.keypoints for pose in people]).astype(np.float64)
