"""Coordinates that a network returns as they are: one person's joints, such as MoveNet's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.decoders.base import Array, Arrays, CropDecoder, Targets, annotated_joints
from compress.pose.spec import PoseSpec

Order = Literal["xy", "yx"]
JointScore = Literal["raw", "sigmoid", "none"]


@dataclass(frozen=True)
class PointsDecoder(CropDecoder):
    """Coordinates, with or without a score: outputs (N, K, 2 or 3), further axes of size 1 allowed.

    Attributes
    ----------
    order : str
        Order of the coordinates, ``"xy"`` or ``"yx"``; a score is the last value.
    normalized : bool
        Whether coordinates are shares of the input's width and height, or pixels of the input. A share s stands for
        pixel ``s * side`` on a corner grid and for ``s * side - 0.5`` otherwise; pixels are counted from the centre of
        the first one.
    score : str
        ``"raw"`` takes the third value as a joint's score, ``"sigmoid"`` its logistic function; with ``"none"`` each
        joint has the score 1, and a third value is not read.

    Raises
    ------
    UsageError
        If a value is not valid.
    """

    order: Order = "xy"
    normalized: bool = True
    score: JointScore = "raw"

    roles: ClassVar[tuple[str, ...]] = ("points",)

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError("invalid order of the points decoder", found=self.order, hint="Known: xy, yx")
        if not isinstance(self.normalized, bool):
            raise UsageError("invalid normalized of the points decoder", found=self.normalized, hint="Give true, false")
        if self.score not in get_args(JointScore):
            raise UsageError("invalid score of the points decoder", found=self.score, hint="Known: raw, sigmoid, none")

    def keypoints(self, outputs: Arrays, size: tuple[int, int], pose: PoseSpec) -> NDArray[np.floating]:
        """The points in pixels of the crop, (N, K, 3)."""
        points = self._points(outputs, pose)
        return np.concatenate([self._pixels(points[..., :2], size, pose), self._scores(points)[..., None]], axis=-1)

    def _points(self, outputs: Arrays, pose: PoseSpec) -> Array:
        """The output as (N, K, 2 or 3)."""
        (values,) = self.read(outputs, pose)
        joints, least = len(pose.joints.joints), 2 if self.score == "none" else 3
        columns = values.shape[-1] if values.ndim >= 3 else values[0].size // joints if values.ndim == 2 else 0
        if columns not in range(least, 4) or values[0].size != joints * columns:
            raise DataError(
                "the network's points have the wrong shape",
                found=values.shape,
                hint=f"The skeleton and the decoder's options require (N, {joints}, {'2 or 3' if least == 2 else 3})",
            )
        return values.reshape(len(values), joints, columns)

    def _scores(self, points: Array) -> NDArray[np.floating]:
        if self.score == "none":
            return np.ones(points.shape[:2])
        return points[..., 2] if self.score == "raw" else 1 / (1 + np.exp(-np.clip(points[..., 2], -80, 80)))

    def _pixels(self, values: NDArray[np.floating], size: tuple[int, ...], pose: PoseSpec) -> NDArray[np.float64]:
        """Coordinates (..., 2) of the output as x and y in pixels of an input of that height and width."""
        places = np.asarray(values if self.order == "xy" else values[..., ::-1], dtype=np.float64)
        return places * (size[1], size[0]) - _offset(pose) if self.normalized else places

    def _values(self, places: NDArray[np.floating], size: tuple[int, ...], pose: PoseSpec) -> NDArray[np.float64]:
        """The inverse of `_pixels`."""
        values = np.asarray(places, dtype=np.float64)
        values = (values + _offset(pose)) / (size[1], size[0]) if self.normalized else values
        return values if self.order == "xy" else values[..., ::-1]

    def merge_mirrored(
        self, outputs: Arrays, mirrored: Arrays, pose: PoseSpec, size: tuple[int, int]
    ) -> dict[str, Array]:
        """The mean of the points and those of the mirrored inputs."""
        points, back = self._points(outputs, pose).copy(), self._points(mirrored, pose)
        back = back[:, list(pose.joints.flip_order)]
        places = self._pixels(back[..., :2], size, pose)
        places[..., 0] = size[1] - 1 - places[..., 0]
        points[..., :2] = (points[..., :2] + self._values(places, size, pose)) / 2
        points[..., 2:] = (points[..., 2:] + back[..., 2:]) / 2
        return {self.names(pose)["points"]: points}

    def targets(
        self,
        people: Sequence[Array],
        size: tuple[int, int],
        pose: PoseSpec,
        *,
        sigma: float | None = None,
        trusted: NDArray[np.bool_] | None = None,
    ) -> Targets:
        """The person's coordinates (K, 2), and weights (K, 1): 1 for annotated joints, 0 for others.

        Scores have no target.

        Raises
        ------
        UsageError
            If the network returns scores, for which there are no targets.
        """
        if self.score != "none":
            raise UsageError(
                "the scores of a points network have no training targets",
                found=f"score={self.score}",
                hint="Train it by distillation from a teacher (--teacher)",
            )
        joints = len(pose.joints.joints)
        keypoints = people[0] if people else np.zeros((joints, 3), dtype=np.float32)
        annotated = annotated_joints([keypoints], joints)
        values = self._values(keypoints[:, :2], size, pose) * annotated[:, None]
        return Targets({self.names(pose)["points"]: values.astype(np.float32)}, annotated.astype(np.float32)[:, None])

    def describe(self) -> str:
        """The decoder's name."""
        return "decoder points"


def _offset(pose: PoseSpec) -> float:
    return 0.0 if pose.corner_grid else 0.5
