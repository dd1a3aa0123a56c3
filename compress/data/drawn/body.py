"""The three-dimensional body of a drawn person: proportions, joint limits, poses and forward kinematics.

Body axes are x to the person's left, y up, z forward (right-handed); the pelvis is the origin. Lengths are in statures
(body heights), angles in degrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import cos, radians, sin

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

#: Range of each joint angle, for limbs on both sides. Positive is forward, outward or bent.
LIMITS: dict[str, tuple[float, float]] = {
    "spine_bend": (-20, 60),
    "spine_lean": (-25, 25),
    "spine_turn": (-35, 35),
    "head_nod": (-35, 45),
    "head_tilt": (-28, 28),
    "head_turn": (-65, 65),
    "shoulder_swing": (-50, 175),
    "shoulder_raise": (-5, 170),
    "shoulder_turn": (-85, 90),
    "elbow": (0, 145),
    "wrist": (-40, 40),
    "hip_swing": (-30, 120),
    "hip_spread": (-15, 60),
    "hip_turn": (-30, 45),
    "knee": (0, 145),
    "ankle": (-40, 25),
}
_TRUNK = ("spine_bend", "spine_lean", "spine_turn", "head_nod", "head_tilt", "head_turn")
_SIDEWAYS = ("spine_lean", "spine_turn", "head_tilt", "head_turn")
_LIMBS = tuple(name for name in LIMITS if name not in _TRUNK)

#: Pose families and their probabilities.
POSES = {
    "stand": 0.24, "walk": 0.17, "run": 0.09, "sit": 0.12, "raise": 0.08, "wave": 0.08, "crouch": 0.05, "akimbo": 0.05,
    "hold": 0.06, "lie": 0.02, "free": 0.04,
}  # fmt: skip


@dataclass(frozen=True)
class Proportions:
    """Bone lengths and girths of one person, in statures.

    Attributes
    ----------
    thigh, shin, upper_arm, forearm, hand, foot, belly, chest, neck : float
        Bone lengths; belly and chest are the lower and the upper half of the spine.
    hips, shoulders : float
        Half the distance between the two joints.
    skull : float
        Half the height of the head.
    girth : float
        Thickness of trunk and limbs; 1 is average.
    """

    thigh: float = 0.245
    shin: float = 0.240
    upper_arm: float = 0.168
    forearm: float = 0.145
    hand: float = 0.085
    foot: float = 0.115
    belly: float = 0.130
    chest: float = 0.155
    neck: float = 0.045
    hips: float = 0.052
    shoulders: float = 0.103
    skull: float = 0.070
    girth: float = 1.0


@dataclass(frozen=True)
class Body:
    """A posed body.

    Attributes
    ----------
    points : dict of str to array (3,)
        Joints and other landmarks in statures, by name.
    frames : dict of str to array (3, 3)
        Orientation of each bone; the columns are its left, up and forward directions.
    """

    points: dict[str, Vector]
    frames: dict[str, NDArray[np.float64]]


def rotation(axis: str, degrees: float) -> NDArray[np.float64]:
    """Right-handed rotation about the axis ``x``, ``y`` or ``z``."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    if axis == "x":
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    if axis == "y":
        return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def draw_proportions(rng: np.random.Generator) -> Proportions:
    """Proportions of a random adult, or sometimes of a child with a larger head and shorter limbs."""
    child = rng.random() < 0.15
    limb = rng.normal(0.93 if child else 1.0, 0.03)
    vary = rng.normal(1.0, 0.035, size=8)
    average = Proportions()
    return Proportions(
        thigh=average.thigh * limb * vary[0],
        shin=average.shin * limb * vary[1],
        upper_arm=average.upper_arm * limb * vary[2],
        forearm=average.forearm * limb * vary[3],
        hand=average.hand * limb,
        foot=average.foot * limb,
        belly=average.belly * vary[4],
        chest=average.chest * vary[5],
        neck=average.neck * vary[6],
        hips=average.hips * rng.uniform(0.92, 1.15),
        shoulders=average.shoulders * rng.uniform(0.86, 1.1),
        skull=average.skull * (rng.uniform(1.15, 1.4) if child else vary[7]),
        girth=float(np.clip(rng.normal(1.03, 0.13), 0.8, 1.5)),
    )


def clip_angles(angles: Mapping[str, float]) -> dict[str, float]:
    """All angles of a pose, clipped to the limits of their joints; 0 where not given."""
    names = list(_TRUNK) + [f"{side}_{name}" for side in ("left", "right") for name in _LIMBS]
    result = {}
    for name in names:
        low, high = LIMITS[name.removeprefix("left_").removeprefix("right_")]
        result[name] = float(min(max(angles.get(name, 0.0), low), high))
    return result


def mirror_angles(angles: Mapping[str, float]) -> dict[str, float]:
    """The mirror image of a pose."""
    swap = {"left": "right", "right": "left"}
    result = {}
    for name, value in angles.items():
        side, _, rest = name.partition("_")
        if side in swap:
            result[f"{swap[side]}_{rest}"] = value
        else:
            result[name] = -value if name in _SIDEWAYS else value
    return result


def draw_pose(rng: np.random.Generator, kind: str) -> dict[str, float]:
    """Angles of a random pose of one family, within the limits.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random generator.
    kind : str
        A key of `POSES`.

    Returns
    -------
    dict of str to float
        Degrees by angle name.
    """
    mean: dict[str, float] = {"spine_bend": 3, "left_elbow": 14, "right_elbow": 14, "left_knee": 4, "right_knee": 4}
    for side in ("left", "right"):
        mean |= {f"{side}_shoulder_raise": 10, f"{side}_hip_spread": 5, f"{side}_hip_turn": 8}
    spread = 6.0
    stride = float(rng.uniform(0.6, 1.2))
    if kind == "stand" and rng.random() < 0.5:  # the weight on one leg
        mean |= {"left_hip_swing": 10, "left_knee": 16, "left_hip_spread": 10, "spine_lean": 4}
    elif kind in ("walk", "run"):
        fast = kind == "run"
        mean |= {
            "spine_bend": 14 if fast else 4,
            "left_hip_swing": (50 if fast else 26) * stride,
            "left_knee": (65 if fast else 12) * stride,
            "right_hip_swing": -20 * stride,
            "right_knee": (45 if fast else 22) * stride,
            "left_shoulder_swing": (-40 if fast else -24) * stride,
            "right_shoulder_swing": (40 if fast else 24) * stride,
            "left_elbow": 85 if fast else 20,
            "right_elbow": 85 if fast else 25,
            "right_ankle": -20,
        }
    elif kind == "sit":
        for side in ("left", "right"):
            mean |= {f"{side}_hip_swing": 84, f"{side}_knee": 86, f"{side}_hip_spread": 10}
            mean |= {f"{side}_shoulder_swing": 28, f"{side}_elbow": 55, f"{side}_shoulder_turn": -15}
        mean["spine_bend"] = float(rng.uniform(-4, 22))
    elif kind == "raise":
        up = float(rng.uniform(75, 165))
        for side in ("left", "right"):
            mean |= {f"{side}_shoulder_raise": up, f"{side}_shoulder_turn": 60, f"{side}_elbow": rng.uniform(0, 70)}
    elif kind == "wave":
        mean |= {"left_shoulder_raise": 80, "left_shoulder_turn": 85, "left_elbow": rng.uniform(40, 120)}
    elif kind == "crouch":
        deep = float(rng.uniform(0.55, 1.0))
        mean["spine_bend"] = 35 * deep
        for side in ("left", "right"):
            mean |= {f"{side}_hip_swing": 108 * deep, f"{side}_knee": 130 * deep, f"{side}_hip_spread": 16}
            mean |= {f"{side}_ankle": 22 * deep, f"{side}_shoulder_swing": 50, f"{side}_elbow": 40}
    elif kind == "akimbo":
        for side in ("left", "right"):
            mean |= {f"{side}_shoulder_raise": 45, f"{side}_shoulder_swing": -14}
            mean |= {f"{side}_shoulder_turn": -80, f"{side}_elbow": 100}
    elif kind == "hold":
        mean |= {"left_shoulder_swing": 30, "left_shoulder_turn": -30, "left_elbow": 105, "head_nod": 18}
        if rng.random() < 0.5:
            mean |= {"right_shoulder_swing": 30, "right_shoulder_turn": -35, "right_elbow": 100}
    elif kind in ("lie", "free"):
        spread = 20.0
        for side in ("left", "right"):
            mean |= {f"{side}_shoulder_raise": rng.uniform(0, 120), f"{side}_shoulder_turn": rng.uniform(-60, 80)}
            mean |= {f"{side}_hip_swing": rng.uniform(-15, 60), f"{side}_knee": rng.uniform(0, 80)}
    noise = rng.normal(0.0, spread, size=2 * len(LIMITS))
    angles = {name: mean.get(name, 0.0) + noise[i] for i, name in enumerate(clip_angles({}))}
    for name in ("left_elbow", "right_elbow", "left_knee", "right_knee"):
        angles[name] = abs(angles[name])
    angles["head_turn"] += rng.normal(0.0, 18)
    if rng.random() < 0.5:
        angles = mirror_angles(angles)
    return clip_angles(angles)


def pose_body(shape: Proportions, angles: Mapping[str, float]) -> Body:
    """Forward kinematics.

    Parameters
    ----------
    shape : Proportions
        Bone lengths.
    angles : mapping of str to float
        Degrees by name; missing angles are 0, others are clipped to the joint's limits.

    Returns
    -------
    Body
        Landmarks ``pelvis, waist, neck, skull``, ``nose`` and for each side ``shoulder, elbow, wrist, fingers, hip,
        knee, ankle, heel, toe, eye, ear``; frames ``pelvis, chest, head`` and for each side ``upper_arm, forearm,
        hand, thigh, shin, foot``.
    """
    a = clip_angles(angles)
    pelvis = np.eye(3)
    chest = rotation("y", a["spine_turn"]) @ rotation("z", -a["spine_lean"]) @ rotation("x", a["spine_bend"])
    head = chest @ (rotation("y", a["head_turn"]) @ rotation("z", -a["head_tilt"]) @ rotation("x", a["head_nod"]))
    points = {"pelvis": np.zeros(3)}
    # The lower half of the spine shares the bend.
    points["waist"] = shape.belly * _unit(pelvis[:, 1] + 0.6 * chest[:, 1])
    points["neck"] = points["waist"] + shape.chest * chest[:, 1]
    points["skull"] = (
        points["neck"] + shape.neck * _unit(chest[:, 1] + head[:, 1]) + head @ np.array([0, 0.86 * shape.skull, 0.010])
    )
    frames = {"pelvis": pelvis, "chest": chest, "head": head}
    half = shape.skull
    points["nose"] = points["skull"] + head @ np.array([0, -0.20 * half, 0.98 * half])
    for side, sign in (("left", 1.0), ("right", -1.0)):
        points[f"{side}_eye"] = points["skull"] + head @ np.array([sign * 0.29 * half, 0.06 * half, 0.76 * half])
        points[f"{side}_ear"] = points["skull"] + head @ np.array([sign * 0.70 * half, -0.06 * half, -0.08 * half])

        drop = 0.018
        points[f"{side}_shoulder"] = points["neck"] + chest @ np.array([sign * shape.shoulders, -drop, 0.0])
        frame = chest @ (
            rotation("z", sign * a[f"{side}_shoulder_raise"])
            @ rotation("x", -a[f"{side}_shoulder_swing"])
            @ rotation("y", sign * a[f"{side}_shoulder_turn"])
        )
        frames[f"{side}_upper_arm"] = frame
        points[f"{side}_elbow"] = points[f"{side}_shoulder"] - shape.upper_arm * frame[:, 1]
        frame = frame @ rotation("x", -a[f"{side}_elbow"])
        frames[f"{side}_forearm"] = frame
        points[f"{side}_wrist"] = points[f"{side}_elbow"] - shape.forearm * frame[:, 1]
        frame = frame @ rotation("z", sign * a[f"{side}_wrist"])
        frames[f"{side}_hand"] = frame
        points[f"{side}_fingers"] = points[f"{side}_wrist"] - shape.hand * frame[:, 1]

        points[f"{side}_hip"] = np.array([sign * shape.hips, -0.015, 0.0])
        frame = (
            rotation("z", sign * a[f"{side}_hip_spread"])
            @ rotation("x", -a[f"{side}_hip_swing"])
            @ rotation("y", sign * a[f"{side}_hip_turn"])
        )
        frames[f"{side}_thigh"] = frame
        points[f"{side}_knee"] = points[f"{side}_hip"] - shape.thigh * frame[:, 1]
        frame = frame @ rotation("x", a[f"{side}_knee"])
        frames[f"{side}_shin"] = frame
        points[f"{side}_ankle"] = points[f"{side}_knee"] - shape.shin * frame[:, 1]
        frame = frame @ rotation("x", -a[f"{side}_ankle"])
        frames[f"{side}_foot"] = frame
        points[f"{side}_heel"] = points[f"{side}_ankle"] + frame @ np.array([0, -0.026, -0.018])
        points[f"{side}_toe"] = points[f"{side}_heel"] + shape.foot * frame[:, 2]
    return Body(points, frames)


def _unit(vector: Vector) -> Vector:
    return vector / np.sqrt(vector @ vector)
