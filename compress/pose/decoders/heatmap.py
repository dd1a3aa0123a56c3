"""From the heatmaps of inputs that show one person each to that person's joints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.decoders.averaging import merge_mirrored, resample_outputs
from compress.pose.decoders.base import Array, Arrays, CropDecoder, Targets, annotated_joints
from compress.pose.decoders.dark import modulate, taylor_steps
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets

CellRefinement = Literal["quarter", "cubic", "none"]
Refinement = CellRefinement | Literal["dark"]

#: Known refinements of maxima.
REFINEMENTS = ("quarter", "cubic", "dark", "none")

#: Sizes of the Gaussian filter and the standard deviation in cells of each.
BLURS = {11: 2.0, 17: 3.0}


@dataclass(frozen=True)
class HeatmapDecoder(CropDecoder):
    """The maximum of each joint's heatmap.

    Attributes
    ----------
    blur : int or None
        Size in cells of a Gaussian filter over the maps before the maximum is searched, 11 or 17.
    refine : str
        ``"quarter"`` moves the highest cell a quarter towards its higher neighbours; ``"cubic"`` takes the maximum of
        the maps enlarged to the input's size; ``"dark"`` the maximum of the Gaussian through the highest cell (Zhang
        et al., 2020; `compress.pose.decoders.dark`), of maps under a filter of the targets' standard deviation or, with
        ``blur``, that filter; ``"none"`` takes the cell.

    Raises
    ------
    UsageError
        If a value is unknown.
    """

    blur: int | None = None
    refine: Refinement = "quarter"

    roles: ClassVar[tuple[str, ...]] = ("heatmaps",)

    def __post_init__(self) -> None:
        if self.blur is not None and self.blur not in BLURS:
            raise UsageError("unknown size of the heatmap filter", found=self.blur, hint="Give 11 or 17")
        if self.refine not in REFINEMENTS:
            raise UsageError(
                "unknown refinement of heatmap maxima",
                found=self.refine,
                hint=f"Known: {', '.join(REFINEMENTS)}",
            )

    def channels(self, pose: PoseSpec) -> tuple[int | None, ...]:
        """Joints and background."""
        return (len(pose.joints.joints) + pose.background,)

    def keypoints(self, outputs: Arrays, size: tuple[int, int], pose: PoseSpec) -> NDArray[np.floating]:
        """The maximum of each map, (N, K, 3); a background map is dropped.

        Raises
        ------
        DataError
            If the maps have another number of channels than the specification says, or non-finite values.
        """
        (maps,) = self.read(outputs, pose)
        (channels,) = self.channels(pose)
        if maps.ndim != 4 or maps.shape[1] != channels:
            raise DataError(f"heatmaps must have {channels} channels", found=maps.shape)
        maps = maps[:, : len(pose.joints.joints)]
        if self.refine == "dark":
            cells, heights = self._find_dark(maps, pose)
        else:
            maps = maps if self.blur is None else blur_maps(maps, self.blur)
            cells, heights = find_maxima(maps, self.refine, pose.stride)
        return np.concatenate([cells * pose.stride + pose.first_cell, heights[..., None]], axis=-1)

    def _find_dark(self, maps: Array, pose: PoseSpec) -> tuple[NDArray[np.float64], Array]:
        """The highest cells of the maps as they are, moved to the maxima of the smoothed ones."""
        cells, heights = find_maxima(maps, "none")
        sigma = self.default_sigma(pose) / pose.stride if self.blur is None else BLURS[self.blur]
        column, row = np.moveaxis(cells.astype(np.int64), -1, 0)
        return cells + taylor_steps(modulate(maps, sigma, self.blur), column, row), heights

    def merge_mirrored(
        self, outputs: Arrays, mirrored: Arrays, pose: PoseSpec, size: tuple[int, int]
    ) -> dict[str, Array]:
        """The mean of the maps and those of the mirrored inputs."""
        name = self.names(pose)["heatmaps"]
        return {name: merge_mirrored(outputs[name], mirrored[name], pose.joints, shift=pose.flip_shift)}

    def resample(self, outputs: Arrays, matrix: NDArray[np.float64], like: Arrays, pose: PoseSpec) -> dict[str, Array]:
        """The maps on the grid of others."""
        return resample_outputs({name: outputs[name] for name in self.names(pose).values()}, matrix, like, pose)

    def default_sigma(self, pose: PoseSpec) -> float:
        """7 pixels for networks with a background map, as Global Context CPM; else two cells, at least 5 pixels.

        Two cells as in SimpleBaseline and HRNet, 5 pixels as in RePose.
        """
        return 7.0 if pose.background else max(2.0 * pose.stride, 5.0)

    def targets(
        self,
        people: Sequence[Array],
        size: tuple[int, int],
        pose: PoseSpec,
        *,
        sigma: float | None = None,
        trusted: NDArray[np.bool_] | None = None,
    ) -> Targets:
        """Gaussians with a peak of 1, and weights (C, 1, 1) of the maps: 1 for annotated joints, 0 for others.

        The background map is one minus the largest of them, and known where any joint is.
        """
        maps = heatmap_targets(
            people,
            (size[0] // pose.stride, size[1] // pose.stride),
            pose.stride,
            sigma=self.default_sigma(pose) if sigma is None else sigma,
            skeleton=pose.joints,
            background=pose.background,
            first_cell=pose.first_cell,
        )
        annotated = annotated_joints(people, len(pose.joints.joints))
        known = np.append(annotated, annotated.any()) if pose.background else annotated
        return Targets({self.names(pose)["heatmaps"]: maps}, known.astype(np.float32)[:, None, None])

    def describe(self) -> str:
        """The filter, if there is one, and DARK."""
        filtered = () if self.blur is None else (f"Gaussian filter {self.blur}",)
        return ", ".join(filtered + (("DARK",) if self.refine == "dark" else ()))


def find_maxima(maps: Array, refine: CellRefinement = "quarter", enlarge: int = 4) -> tuple[NDArray[np.float64], Array]:
    """The maximum of each map.

    The quarter offset is that of the public top-down code (Newell et al., 2016; Xiao et al., 2018): with the maximum
    at ``(x, y)``, ``1 < x < w - 1`` and ``1 < y < h - 1``, each coordinate moves 0.25 towards the higher one of its
    two neighbours.

    Parameters
    ----------
    maps : array, shape (N, K, h, w), float32
        Heatmaps.
    refine : str, optional
        As of `HeatmapDecoder`, without ``"dark"``.
    enlarge : int, optional
        Points per cell and axis of the enlarged maps of ``"cubic"``.

    Returns
    -------
    cells : array, shape (N, K, 2)
        x and y in cells; the centre of the first cell is (0, 0).
    heights : array, shape (N, K), float32
        The maps' largest values; of equal ones the first in reading order counts.
    """
    count, joints, height, width = maps.shape
    if refine == "cubic" and enlarge > 1:
        fine = np.stack([_enlarge(one, enlarge) for one in maps.reshape(-1, height, width)])
        cells, heights = find_maxima(fine.reshape(count, joints, *fine.shape[1:]), "none")
        return (cells + 0.5) / enlarge - 0.5, heights
    flat = maps.reshape(count, joints, -1)
    place = flat.argmax(axis=2)
    heights = np.take_along_axis(flat, place[..., None], axis=2)[..., 0]
    y, x = np.divmod(place, width)
    cells = np.stack([x, y], axis=-1).astype(np.float64)
    if refine == "quarter":
        inner = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
        person, joint = np.nonzero(inner)
        row, column = y[inner], x[inner]
        right = maps[person, joint, row, column + 1] - maps[person, joint, row, column - 1]
        down = maps[person, joint, row + 1, column] - maps[person, joint, row - 1, column]
        cells[inner] += 0.25 * np.sign(np.stack([right, down], axis=-1))
    return cells, heights


def _enlarge(one: Array, times: int) -> Array:
    return np.asarray(cv2.resize(one, (0, 0), fx=times, fy=times, interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def blur_maps(maps: Array, size: int) -> Array:
    """Maps (N, K, h, w) under a Gaussian filter of that many cells, each scaled to its maximum before.

    Beyond its border a map counts as 0.
    """
    margin = size // 2
    result = np.empty_like(maps)
    for index in np.ndindex(maps.shape[:2]):
        padded = np.pad(maps[index], margin)
        smooth = cv2.GaussianBlur(padded, (size, size), BLURS[size])[margin:-margin, margin:-margin]
        highest = float(smooth.max())
        result[index] = smooth * (float(maps[index].max()) / highest) if highest > 0 else smooth
    return result
