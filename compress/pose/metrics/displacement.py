"""How far the people that a changed network finds are from those of the original: no annotations needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from compress.errors import DataError
from compress.pose.decoders.base import Pose
from compress.pose.skeleton import COCO17, MIDDLES, Skeleton

Array = NDArray[np.float64]

#: Least similarity at which people of two networks are the same person: below it, joints agree by chance.
MIN_SIMILARITY = 0.1

#: A person seen from the side is narrow but not smaller: the shorter side of the box around the joints counts as at
#: least this share of the longer one.
MIN_ASPECT = 0.25

#: Joints that COCO lacks, and the COCO joint whose sigma they take; those of `MIDDLES` take that of their pair.
_SIMILAR_JOINTS = {"spine": "hip", "head_top": "ear"}


@dataclass(frozen=True)
class Moved:
    """Displacement of the joints of some people.

    Attributes
    ----------
    pixels : array, shape (N, K)
        Distance of each joint of the original's people to that of the same person in the changed network, in pixels
        of the image; NaN where either has no such joint.
    loss : array, shape (N, K)
        ``1 - exp(-d^2 / (2 s^2 k^2))`` as in OKS, 1 for a joint that the changed network lost;
        NaN where the original has none.
    lost : int
        People of the original that the changed network does not find.
    new : int
        People that only the changed network finds.
    """

    pixels: Array
    loss: Array
    lost: int
    new: int


@dataclass(frozen=True)
class Displacement:
    """Summary of `Moved` over images.

    Attributes
    ----------
    people, lost_people, new_people : int
        People of the original, those of them that are lost, and those that only the changed network finds.
    joints, lost_joints : int
        Joints of the original's people, and those of them that are lost, with their person or alone.
    pixels : float
        Mean distance over all joints that both networks found; NaN if there are none.
    loss : float
        Mean loss over all joints of the original.
    joint_pixels, joint_loss : tuple of float
        The same for each joint of the skeleton; NaN for one without any.
    """

    people: int
    lost_people: int
    new_people: int
    joints: int
    lost_joints: int
    pixels: float
    loss: float
    joint_pixels: tuple[float, ...]
    joint_loss: tuple[float, ...]


def joint_sigmas(skeleton: Skeleton) -> Array:
    """OKS sigma of each joint, (K,): COCO's by name, and that of a similar joint for a joint that COCO lacks.

    Neck and thorax take that of the shoulders, pelvis and spine that of the hips, the top of the head that of the
    ears. A skeleton with other joints needs sigmas of its own.

    Raises
    ------
    DataError
        If a joint is unknown and the skeleton has no sigmas.
    """
    known = dict(zip(COCO17.joints, COCO17.sigmas, strict=True))
    like = MIDDLES | _SIMILAR_JOINTS
    unknown = [joint for joint in skeleton.joints if joint not in known and joint not in like]
    if unknown and not skeleton.sigmas:
        raise DataError(
            "these joints have no OKS sigma", found=", ".join(unknown), hint="Give the skeleton sigmas of its own"
        )
    if unknown:
        return np.array(skeleton.sigmas)
    return np.array([known[joint] if joint in known else known[f"left_{like[joint]}"] for joint in skeleton.joints])


def areas_of(keypoints: Array, there: NDArray[np.bool_]) -> Array:
    """Square of the scale of each person, (N,): the area of the box around the joints that are found.

    Parameters
    ----------
    keypoints : array, shape (N, K, 2 or more)
        x and y in pixels.
    there : array, shape (N, K)
        Which joints are found.
    """
    boxes = [np.ptp(p[row, :2], axis=0) if row.any() else np.zeros(2) for p, row in zip(keypoints, there, strict=True)]
    extent = np.sort(np.reshape(boxes, (-1, 2)), axis=1)  # [N, 2], the shorter side first
    longer = np.maximum(extent[:, 1], 1.0)
    return np.asarray(longer * np.maximum(extent[:, 0], MIN_ASPECT * longer))


def compare_people(wanted: Sequence[Pose], given: Sequence[Pose], skeleton: Skeleton, *, seen: float = 0.0) -> Moved:
    """Displacement of the people of one image.

    Each person of the original is paired with at most one of the changed network, so that the sum of similarities
    (1 - mean loss over the original's joints) is largest; pairs below `MIN_SIMILARITY` do not count.

    Parameters
    ----------
    wanted : sequence of Pose
        People that the original network finds.
    given : sequence of Pose
        People that the changed network finds.
    skeleton : Skeleton
        Of both.
    seen : float, optional
        Joints of the original count if their score is above this; those of the changed network if it is above 0.
    """
    joints = len(skeleton.joints)
    ours, theirs = _stack(wanted, joints), _stack(given, joints)
    there = ours[..., 2] > seen  # [N, K]
    ours, there = ours[there.any(axis=1)], there[there.any(axis=1)]
    both = there[:, None] & (theirs[..., 2] > 0)[None]  # [N, M, K]
    square = ((ours[:, None, :, :2] - theirs[None, :, :, :2]) ** 2).sum(axis=-1)  # [N, M, K]
    spread = 2 * areas_of(ours, there)[:, None, None] * (2 * joint_sigmas(skeleton)) ** 2
    loss = np.where(both, -np.expm1(-square / spread), 1.0)
    count = np.maximum(there.sum(axis=1), 1)[:, None]
    similarity = 1 - (loss * there[:, None]).sum(axis=-1) / count  # [N, M]
    pairs = [
        (a, b) for a, b in zip(*linear_sum_assignment(-similarity), strict=True) if similarity[a, b] >= MIN_SIMILARITY
    ]
    pixels = np.full(there.shape, np.nan)
    losses = np.where(there, 1.0, np.nan)
    for person, same in pairs:
        pixels[person] = np.where(both[person, same], np.sqrt(square[person, same]), np.nan)
        losses[person] = np.where(there[person], loss[person, same], np.nan)
    return Moved(pixels, losses, len(ours) - len(pairs), len(theirs) - len(pairs))


def summarise(images: Sequence[Moved], skeleton: Skeleton) -> Displacement:
    """The displacement of the people of all images together; every joint has the same weight."""
    joints = len(skeleton.joints)
    pixels = np.concatenate([np.empty((0, joints)), *(image.pixels for image in images)])
    loss = np.concatenate([np.empty((0, joints)), *(image.loss for image in images)])
    return Displacement(
        people=len(loss),
        lost_people=sum(image.lost for image in images),
        new_people=sum(image.new for image in images),
        joints=int(np.isfinite(loss).sum()),
        lost_joints=int((np.isfinite(loss) & ~np.isfinite(pixels)).sum()),
        pixels=_mean(pixels),
        loss=_mean(loss),
        joint_pixels=tuple(_mean(column) for column in pixels.T),
        joint_loss=tuple(_mean(column) for column in loss.T),
    )


def _stack(poses: Sequence[Pose], joints: int) -> Array:
    return np.array([pose.keypoints for pose in poses], dtype=np.float64).reshape(-1, joints, 3)


def _mean(values: Array) -> float:
    there = values[np.isfinite(values)]
    return float(there.mean()) if there.size else float("nan")
