"""Poses drawn on images."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.pose.skeleton import Skeleton

Image = NDArray[np.uint8]

#: BGR by part of the body and side, in the colour-blind safe palette of Okabe and Ito.
_COLOURS = {
    ("arm", "left"): (233, 180, 86),  # sky blue
    ("arm", "right"): (0, 159, 230),  # orange
    ("leg", "left"): (178, 114, 0),  # blue
    ("leg", "right"): (0, 94, 213),  # vermillion
    ("head", "left"): (66, 228, 240),  # yellow
    ("head", "right"): (66, 228, 240),
    ("body", "left"): (115, 158, 0),  # green
    ("body", "right"): (115, 158, 0),
}

_PARTS = {"elbow": "arm", "wrist": "arm", "knee": "leg", "ankle": "leg", "eye": "head", "ear": "head", "nose": "head",
          "head_top": "head"}  # fmt: skip

#: Fractional bits of coordinates: OpenCV draws at subpixel positions.
_SHIFT = 4


def draw_poses(
    image: Image,
    keypoints: Sequence[NDArray[np.float32]],
    skeleton: Skeleton,
    *,
    above: float = 0.0,
    labels: Sequence[str] = (),
) -> Image:
    """A copy of the image with people drawn on it, the width of limbs in proportion to their size.

    Parameters
    ----------
    image : array, shape (H, W, 3), uint8, BGR
        The image.
    keypoints : sequence of arrays, shape (K, 3)
        x, y and score or visibility of each person's joints.
    skeleton : Skeleton
        Joints and limbs of the keypoints.
    above : float
        Joints whose third value is not above this are left out.
    labels : sequence of str
        Text above the head of each person; none by default.
    """
    canvas = image.copy()
    # Large people are drawn first, so that they don't hide small ones.
    order = sorted(range(len(keypoints)), key=lambda index: -_extent(keypoints[index], above))
    for index in order:
        person = keypoints[index]
        width = _width(image, _extent(person, above))
        for a, b in skeleton.limbs:
            if person[a, 2] > above and person[b, 2] > above and not _serves_grouping_only(skeleton, a, b):
                _line(canvas, person[a], person[b], _colour(skeleton, a, b), width)
        for joint in person[person[:, 2] > above]:
            radius = round((width / 2 + 1) * 2**_SHIFT)
            cv2.circle(canvas, _fixed(joint), radius, (255, 255, 255), -1, cv2.LINE_AA, _SHIFT)
    for person, label in zip(keypoints, labels, strict=False):
        _write(canvas, person[person[:, 2] > above], label, _width(image, _extent(person, above)))
    return canvas


def _extent(person: NDArray[np.float32], above: float) -> float:
    """The longer side in pixels of the box around a person's joints."""
    joints = person[person[:, 2] > above, :2]
    return float(np.ptp(joints, axis=0).max()) if len(joints) else 0.0


def _width(image: Image, extent: float) -> int:
    """Width of limbs by the person's size, within limits that the size of the image sets."""
    side = min(image.shape[:2])
    return max(1, round(min(max(extent / 60, side / 300), side / 30)))


def _serves_grouping_only(skeleton: Skeleton, a: int, b: int) -> bool:
    """Whether a limb from shoulder to ear serves only the grouping, as the head is joined to the neck already."""
    kinds = {skeleton.joints[joint].split("_")[-1] for joint in (a, b)}
    return kinds == {"shoulder", "ear"} and "neck" in skeleton.joints


def _colour(skeleton: Skeleton, a: int, b: int) -> tuple[int, int, int]:
    names = (skeleton.joints[a], skeleton.joints[b])
    parts = [_PARTS.get(name.removeprefix("left_").removeprefix("right_"), "body") for name in names]
    part = next((part for part in parts if part != "body"), "body")
    return _COLOURS[part, "right" if any(name.startswith("right_") for name in names) else "left"]


def _line(
    canvas: Image, a: NDArray[np.float32], b: NDArray[np.float32], colour: tuple[int, int, int], width: int
) -> None:
    # A dark outline keeps a limb visible on a background of its own colour.
    if width > 1:
        cv2.line(canvas, _fixed(a), _fixed(b), (40, 40, 40), width + 2, cv2.LINE_AA, _SHIFT)
    cv2.line(canvas, _fixed(a), _fixed(b), colour, width, cv2.LINE_AA, _SHIFT)


def _fixed(joint: NDArray[np.float32]) -> tuple[int, int]:
    # Far outside the image, OpenCV's integers would overflow.
    x, y = np.rint(np.clip(joint[:2].astype(np.float64), -(2.0**15), 2.0**15) * 2**_SHIFT)
    return int(x), int(y)


def _write(canvas: Image, joints: NDArray[np.float32], label: str, width: int) -> None:
    """Text on a dark background above the highest joint, inside the image."""
    if not len(joints):
        return
    scale = min(max(0.4, width / 6), 2.0)
    (length, height), below = cv2.getTextSize(label, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    x = int(np.clip(joints[:, 0].mean() - length / 2, 2, max(2, canvas.shape[1] - length - 2)))
    y = int(np.clip(joints[:, 1].min() - 3 * width - 6, height + 2, max(height + 2, canvas.shape[0] - below)))
    cv2.rectangle(canvas, (x - 2, y - height - 2), (x + length + 2, y + below // 2), (40, 40, 40), -1)
    cv2.putText(canvas, label, (x, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (255, 255, 255), 1, cv2.LINE_AA)
