"""From two vectors for each joint, one along x and one along y, to one person's joints (SimCC, Li et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.decoders.base import Array, Arrays, CropDecoder, Targets, annotated_joints
from compress.pose.spec import PoseSpec

JointScore = Literal["min", "product"]

#: Standard deviation of the targets' Gaussians in bins, as RTMPose trains with (Jiang et al., 2023).
_SIGMA_BINS = 5.66


@dataclass(frozen=True)
class SimccDecoder(CropDecoder):
    """The maximum of each joint's vectors, with ``split_ratio`` bins for each input pixel, as RTMPose returns them.

    Outputs are ``simcc_x`` (N, K, W * split_ratio) and ``simcc_y`` (N, K, H * split_ratio). Bin b stands for input
    pixel ``b / split_ratio`` on a corner grid (as in mmpose), and for ``(b + 0.5) / split_ratio - 0.5`` otherwise.

    Attributes
    ----------
    split_ratio : float
        Bins per input pixel.
    score : str
        A joint's score: ``"min"``, the smaller of the two maxima, or ``"product"``.

    Raises
    ------
    UsageError
        If a value is not valid.
    """

    split_ratio: float = 2.0
    score: JointScore = "min"

    roles: ClassVar[tuple[str, ...]] = ("simcc_x", "simcc_y")

    def __post_init__(self) -> None:
        ratio = self.split_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
            raise UsageError("invalid split_ratio of the SimCC decoder", found=ratio, hint="Give a number above 0")
        if self.score not in get_args(JointScore):
            raise UsageError("invalid score of the SimCC decoder", found=self.score, hint="Known: min, product")

    def channels(self, pose: PoseSpec) -> tuple[int | None, ...]:
        """The joints."""
        joints = len(pose.joints.joints)
        return joints, joints

    def keypoints(self, outputs: Arrays, size: tuple[int, int], pose: PoseSpec) -> NDArray[np.floating]:
        """The maxima of the vectors, (N, K, 3)."""
        vectors = self.read(outputs, pose)
        for name, vector, side in zip(self.names(pose).values(), vectors, (size[1], size[0]), strict=True):
            expected = (len(vectors[0]), len(pose.joints.joints), self._bins(side))
            if vector.shape != expected:
                raise DataError(
                    f"the network's {name} has the wrong shape",
                    found=vector.shape,
                    hint=f"The skeleton, the input's size and a split_ratio of {self.split_ratio:g} require {expected}",
                )
        bins = np.stack([vector.argmax(axis=2) for vector in vectors], axis=-1)  # (N, K, 2)
        peaks = np.stack([vector.max(axis=2) for vector in vectors], axis=-1)
        least = peaks.min(axis=-1)
        scores = least if self.score == "min" else np.where(least > 0, peaks.prod(axis=-1), 0)
        return np.concatenate([self._pixels(bins, pose), scores[..., None]], axis=-1)

    def _bins(self, side: int) -> int:
        return round(side * self.split_ratio)

    def _pixels(self, bins: NDArray[np.int64], pose: PoseSpec) -> NDArray[np.float64]:
        pixels = bins / self.split_ratio if pose.corner_grid else (bins + 0.5) / self.split_ratio - 0.5
        return np.asarray(pixels, dtype=np.float64)

    def merge_mirrored(
        self, outputs: Arrays, mirrored: Arrays, pose: PoseSpec, size: tuple[int, int]
    ) -> dict[str, Array]:
        """The mean of the vectors and those of the mirrored inputs.

        With ``flip_shift`` the reversed x vectors move to the left by the offset of a corner grid,
        ``split_ratio - 1`` bins.
        """
        name_x, name_y = self.names(pose).values()
        order = list(pose.joints.flip_order)
        x, y = mirrored[name_x][:, order, ::-1], mirrored[name_y][:, order]
        shift = round(self.split_ratio - 1) if pose.flip_shift else 0
        if shift > 0:
            x = np.concatenate([x[..., shift:], np.repeat(x[..., -1:], shift, axis=-1)], axis=-1)
        pairs = ((name_x, x), (name_y, y))
        return {name: np.asarray((outputs[name] + back) / 2, dtype=np.float32) for name, back in pairs}

    def default_sigma(self, pose: PoseSpec) -> float:
        """5.66 bins, as in RTMPose."""
        return _SIGMA_BINS / self.split_ratio

    def targets(
        self,
        people: Sequence[Array],
        size: tuple[int, int],
        pose: PoseSpec,
        *,
        sigma: float | None = None,
        trusted: NDArray[np.bool_] | None = None,
    ) -> Targets:
        """Gaussians with a peak of 1 at the joints, and weights (K, 1): 1 for annotated ones, 0 for others."""
        joints = len(pose.joints.joints)
        sigma = self.default_sigma(pose) if sigma is None else sigma
        vectors = []
        for axis, side in ((0, size[1]), (1, size[0])):
            pixels = self._pixels(np.arange(self._bins(side)), pose)
            target = np.zeros((joints, len(pixels)))
            for keypoints in people:
                gaussian = np.exp(-((pixels - keypoints[:, axis, None]) ** 2) / (2 * sigma**2))
                target = np.maximum(target, gaussian * (keypoints[:, 2, None] > 0))
            vectors.append(target.astype(np.float32))
        outputs = dict(zip(self.names(pose).values(), vectors, strict=True))
        return Targets(outputs, annotated_joints(people, joints).astype(np.float32)[:, None])

    def describe(self) -> str:
        """The decoder's name."""
        return "decoder simcc"
