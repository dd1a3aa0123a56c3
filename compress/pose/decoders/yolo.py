"""From boxes with keypoints, as YOLO pose networks return them, to people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.decoders.base import Array, Arrays, Decoder, NetworkInput, Pose
from compress.pose.spec import PoseSpec


@dataclass(frozen=True)
class YoloDecoder(Decoder):
    """Boxes with keypoints: an output (N, 4 + 1 + 3K, A) of A candidates in pixels of the letterboxed image.

    A candidate is x and y of the box's centre, its width and height, its score, and x, y and score of each joint. A
    person's score is that of its box.

    Attributes
    ----------
    min_score : float
        Least score of a person.
    max_overlap : float
        Of two boxes whose intersection over union exceeds this, only the one with the higher score is kept.
    max_people : int
        Most people in an image, those with the highest scores.

    Raises
    ------
    UsageError
        If a value is not valid.
    """

    min_score: float = 0.25
    max_overlap: float = 0.7
    max_people: int = 300

    roles: ClassVar[tuple[str, ...]] = ("people",)

    def __post_init__(self) -> None:
        checks = (
            ("min_score", 0 <= self.min_score < math.inf, "Give 0 or more"),
            ("max_overlap", 0 <= self.max_overlap <= 1, "Give a number from 0 to 1"),
            ("max_people", isinstance(self.max_people, int) and self.max_people >= 1, "Give a whole number from 1 on"),
        )
        for name, valid, hint in checks:
            if not valid:
                raise UsageError(f"invalid {name} of the YOLO decoder", found=getattr(self, name), hint=hint)

    def channels(self, pose: PoseSpec) -> tuple[int | None, ...]:
        """A box, its score, and three numbers for each joint."""
        return (5 + 3 * len(pose.joints.joints),)

    def decode(self, outputs: Arrays, inputs: Sequence[NetworkInput], pose: PoseSpec) -> list[list[Pose]]:
        """The people in each image, best first."""
        (candidates,) = self.read(outputs, pose)
        (channels,) = self.channels(pose)
        if candidates.ndim != 3 or candidates.shape[:2] != (len(inputs), channels):
            raise DataError(
                "the network's boxes with keypoints have the wrong shape",
                found=candidates.shape,
                hint=f"The skeleton requires ({len(inputs)}, {channels}, number of candidates)",
            )
        return [self._people(one.T, place) for one, place in zip(candidates, inputs, strict=True)]

    def _people(self, candidates: Array, network_input: NetworkInput) -> list[Pose]:
        candidates = candidates[(candidates[:, 4] >= self.min_score) & (candidates[:, 4] > 0)]
        kept = suppress(candidates[:, :4], candidates[:, 4], self.max_overlap, self.max_people)
        people = []
        for candidate in candidates[kept]:
            joints = candidate[5:].reshape(-1, 3)
            keypoints = np.column_stack([network_input.to_image(joints[:, :2]), joints[:, 2]]).astype(np.float32)
            keypoints[keypoints[:, 2] <= 0] = 0
            people.append(Pose(keypoints, float(candidate[4])))
        return people

    def describe(self) -> str:
        """The decoder's name and the overlap that it allows."""
        return f"decoder yolo, overlap {self.max_overlap:g}"


def suppress(boxes: NDArray[np.floating], scores: NDArray[np.floating], overlap: float, limit: int) -> list[int]:
    """Greedy non-maximum suppression: the best box stays, those that overlap it too much go, and so on.

    Parameters
    ----------
    boxes : array, shape (N, 4)
        x and y of the centre, width, height.
    scores : array, shape (N,)
        Of equal ones the earlier box counts as better.
    overlap : float
        Largest intersection over union of two boxes that stay.
    limit : int
        Most boxes that stay.

    Returns
    -------
    list of int
        Indices of the boxes that stay, best first.
    """
    centre, extent = boxes[:, :2].astype(np.float64), np.maximum(boxes[:, 2:].astype(np.float64), 0)
    low, high, area = centre - extent / 2, centre + extent / 2, extent.prod(axis=1)
    remaining = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(remaining) and len(kept) < limit:
        best, remaining = remaining[0], remaining[1:]
        kept.append(int(best))
        sides = np.minimum(high[remaining], high[best]) - np.maximum(low[remaining], low[best])
        shared = np.maximum(sides, 0).prod(axis=1)
        union = area[remaining] + area[best] - shared
        remaining = remaining[shared <= overlap * union]
    return kept
