"""Which joints exist, which limbs connect them, and how one skeleton maps onto another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, similar


@dataclass(frozen=True)
class Skeleton:
    """Joints and limbs of one annotation convention.

    Attributes
    ----------
    name : str
        The name it is registered under, or any name for a skeleton of your own.
    joints : tuple of str
        Joint names; a joint of one side begins with ``left_`` or ``right_`` and has a counterpart on the other.
    limbs : tuple of (int, int)
        Joint index pairs. For a skeleton with part-affinity fields the order is that of grouping.
    paf_channels : tuple of int
        First PAF channel (x; y follows) of each limb; empty where the skeleton has no PAFs.
    sigmas : tuple of float
        OKS sigma of each joint, empty where OKS is not defined for it.
    between : tuple of str
        Joints that lie midway between a left and a right one by definition (`MIDDLES`). A joint of the same name that
        is annotated for itself, such as the upper neck of MPII, LIP and LSP, is another point of the body.

    Raises
    ------
    DataError
        If a joint has no name, a name occurs twice, a side has no counterpart, or limbs, PAF channels or sigmas do not
        fit the joints.
    """

    name: str
    joints: tuple[str, ...]
    limbs: tuple[tuple[int, int], ...]
    paf_channels: tuple[int, ...] = ()
    sigmas: tuple[float, ...] = ()
    between: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        joints = self.joints
        limb_ends = [index for limb in self.limbs for index in limb]
        checks = (
            ("needs a name for each joint", bool(joints) and all(isinstance(j, str) and j for j in joints)),
            ("names a joint twice", len(set(joints)) == len(joints)),
            ("has a joint whose counterpart of the other side is missing", all(_mirrored(j) in joints for j in joints)),
            ("needs two joint indices for each limb", all(len(limb) == 2 for limb in self.limbs)),
            ("has limbs between joints that do not exist", all(0 <= index < len(joints) for index in limb_ends)),
            ("needs no PAF channels, or one pair for each limb", len(self.paf_channels) in (0, len(self.limbs))),
            ("needs no sigmas, or one for each joint", len(self.sigmas) in (0, len(joints))),
        )
        for cause, valid in checks:
            if not valid:
                raise DataError(f"the skeleton {self.name} {cause}", found=joints)

    def __str__(self) -> str:
        """Its name."""
        return self.name

    @property
    def flip_order(self) -> tuple[int, ...]:
        """Index of each joint's mirror image: ``flipped[:, k] = keypoints[:, flip_order[k]]``."""
        return tuple(self.joints.index(_mirrored(joint)) for joint in self.joints)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return {
            name: [list(x) if isinstance(x, tuple) else x for x in value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Skeleton:
        """Read what `to_dict` wrote.

        Raises
        ------
        DataError
            If a key is unknown or missing, or a value is of another kind.
        """
        unknown = set(record) - {field.name for field in fields(cls)}
        if unknown:
            raise DataError("unknown key in a skeleton", found=sorted(unknown))
        try:
            values: dict[str, Any] = {
                name: tuple(tuple(x) if isinstance(x, list) else x for x in value) if isinstance(value, list) else value
                for name, value in record.items()
            }
            return cls(**values)
        except TypeError as error:
            raise DataError(f"a skeleton can't be read: {error}") from error


def _mirrored(joint: str) -> str:
    """The name of a joint's counterpart; of a joint in the middle, its own."""
    for side, other in (("left_", "right_"), ("right_", "left_")):
        if joint.startswith(side):
            return other + joint.removeprefix(side)
    return joint


_COCO17_JOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip

#: The 17 joints of COCO with the sigmas of its OKS.
COCO17 = Skeleton(
    name="coco17",
    joints=_COCO17_JOINTS,
    limbs=((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
           (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
    sigmas=(.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089),
)  # fmt: skip

#: The 18 joints of OpenPose's COCO model (COCO plus a neck), limbs in grouping order.
OPENPOSE18 = Skeleton(
    name="openpose18",
    joints=("nose", "neck", "right_shoulder", "right_elbow", "right_wrist", "left_shoulder", "left_elbow", "left_wrist",
            "right_hip", "right_knee", "right_ankle", "left_hip", "left_knee", "left_ankle", "right_eye", "left_eye",
            "right_ear", "left_ear"),
    limbs=((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
           (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17)),
    paf_channels=(12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26),
    between=("neck",),
)  # fmt: skip

#: The 16 joints of MPII in the order of its annotations.
MPII16 = Skeleton(
    name="mpii16",
    joints=("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "neck",
            "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    limbs=((0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7), (7, 13),
           (13, 14), (14, 15)),
    between=("pelvis", "thorax"),
)  # fmt: skip

#: The 16 joints of Look Into Person.
LIP16 = Skeleton(
    name="lip16",
    joints=("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "spine", "neck",
            "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist"),
    limbs=((0, 1), (1, 2), (2, 6), (3, 6), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 8), (8, 13),
           (13, 14), (14, 15)),
    between=("pelvis",),
)  # fmt: skip

#: The 14 joints of Leeds Sports Pose.
LSP14 = Skeleton(
    name="lsp14",
    joints=("right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
            "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top"),
    limbs=((0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13),
           (2, 8), (3, 9)),
)  # fmt: skip

#: The 14 joints of CrowdPose with the sigmas of its OKS.
CROWDPOSE14 = Skeleton(
    name="crowdpose14",
    joints=("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
            "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle", "head_top", "neck"),
    limbs=((10, 8), (8, 6), (11, 9), (9, 7), (6, 7), (0, 6), (1, 7), (0, 2), (1, 3), (2, 4), (3, 5), (0, 13), (1, 13),
           (13, 12)),
    sigmas=(.079, .079, .072, .072, .062, .062, .107, .107, .087, .087, .089, .089, .079, .079),
)  # fmt: skip

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO17, OPENPOSE18, MPII16, LIP16, LSP14, CROWDPOSE14)}


#: Joints that a skeleton may define as the middle of two others, and which pair that is.
MIDDLES = {"neck": "shoulder", "thorax": "shoulder", "pelvis": "hip"}


def get_skeleton(skeleton: str | Skeleton) -> Skeleton:
    """The registered skeleton of a name; a `Skeleton` is returned as it is.

    Raises
    ------
    DataError
        If no skeleton has that name; the message lists the known ones.
    """
    if isinstance(skeleton, Skeleton):
        return skeleton
    try:
        return SKELETONS[skeleton]
    except (KeyError, TypeError):
        raise DataError(
            f"unknown skeleton{similar(str(skeleton), SKELETONS)}",
            found=skeleton,
            hint=f"Known: {', '.join(SKELETONS)}",
        ) from None


def convert_keypoints(keypoints: NDArray[np.float32], source: Skeleton, target: Skeleton) -> NDArray[np.float32]:
    """Keypoints of one skeleton in the order of another, by joint name.

    Parameters
    ----------
    keypoints : array, shape (..., K_source, 3)
        x, y and visibility (or score); a joint with a third value of 0 is not there.
    source, target : Skeleton
        Conventions of the input and of the result.

    Returns
    -------
    array, shape (..., K_target, 3)
        Joints that the source lacks are zero, except those that the target defines as midway between two others
        (`Skeleton.between`): they lie there if both are there, and take the lower of their third values.
    """
    result = np.zeros((*keypoints.shape[:-2], len(target.joints), 3), dtype=keypoints.dtype)
    for index, joint in enumerate(target.joints):
        if joint in source.joints and (joint in source.between) == (joint in target.between):
            result[..., index, :] = keypoints[..., source.joints.index(joint), :]
        elif joint in target.between and f"left_{MIDDLES[joint]}" in source.joints:
            left, right = (keypoints[..., source.joints.index(f"{x}_{MIDDLES[joint]}"), :] for x in ("left", "right"))
            both = ((left[..., 2] > 0) & (right[..., 2] > 0))[..., None]
            middle = np.concatenate(
                [(left[..., :2] + right[..., :2]) / 2, np.minimum(left[..., 2:], right[..., 2:])], axis=-1
            )
            result[..., index, :] = np.where(both, middle, 0)
    return result
