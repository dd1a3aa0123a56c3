"""From the heatmaps of crops that show one person each to that person's joints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.crop import Matrix, invert, transform
from compress.pose.skeleton import Skeleton
from compress.pose.spec import PoseSpec

Maps = NDArray[np.float32]

#: Sizes of the Gaussian filter and the standard deviation in cells that each stands for.
BLURS = {11: 2.0, 17: 3.0}


@dataclass(frozen=True)
class HeatmapOptions:
    """How heatmaps of one person become joints.

    Attributes
    ----------
    flip : bool
        Average the maps with those of the mirrored crop.
    blur : int or None
        Cells of a Gaussian filter over the maps before their maximum is looked for, 11 or 17.
    scales : tuple of float
        Sizes of the crop at which the network runs, as shares of its own, the largest first; the maps are averaged.
    refine : str
        ``"quarter"`` moves the highest cell a quarter towards its higher neighbours; ``"cubic"`` looks for the maximum
        of the maps enlarged to the input's size; ``"none"`` takes the cell. ``"auto"`` is cubic for networks with a
        background map (GCCPM) and quarter for the others.

    Raises
    ------
    UsageError
        If a value is unknown.
    """

    flip: bool = False
    blur: int | None = None
    refine: Literal["auto", "quarter", "cubic", "none"] = "auto"
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.blur is not None and self.blur not in BLURS:
            raise UsageError("unknown size of the heatmap filter", found=self.blur, hint="Give 11 or 17")
        if self.refine not in ("auto", "quarter", "cubic", "none"):
            raise UsageError("unknown refinement of heatmap maxima", found=self.refine)


def decode_heatmaps(
    maps: Maps, matrices: list[Matrix], spec: PoseSpec, options: HeatmapOptions | None = None
) -> NDArray[np.float32]:
    """The joints of the people that crops show, in pixels of their images.

    Parameters
    ----------
    maps : array, shape (N, C, h, w), float32
        Heatmaps of N crops; a background map is dropped.
    matrices : list of N arrays, shape (2, 3)
        From pixels of the image to pixels of the crop.
    spec : PoseSpec
        Skeleton, stride, grid and background of the maps.
    options : HeatmapOptions, optional
        Filter and refinement. The flip test is the caller's: `merge_mirrored`.

    Returns
    -------
    array, shape (N, K, 3), float32
        x, y and the height of the maximum; all 0 for a joint whose map is nowhere above 0.

    Raises
    ------
    DataError
        If the maps have another number of channels than the specification says, or values that are not finite.
    """
    options = options or HeatmapOptions()
    joints = len(spec.joints.joints)
    if maps.ndim != 4 or maps.shape[1] != joints + spec.background or len(maps) != len(matrices):
        raise DataError(f"heatmaps of {len(matrices)} crops must have {joints + spec.background} channels each",
                        found=maps.shape)  # fmt: skip
    if not np.isfinite(maps).all():
        raise DataError("heatmaps with values that are not finite", hint="Do the weights hold NaN or infinity?")
    maps = maps[:, :joints]
    if options.blur is not None:
        maps = blur_maps(maps, options.blur)
    refine = options.refine
    if refine == "auto":
        refine = "cubic" if spec.background else "quarter"
    cells, heights = find_maxima(maps, refine, spec.stride)
    result = np.zeros((*heights.shape, 3), dtype=np.float32)
    for person, matrix in enumerate(matrices):
        result[person, :, :2] = transform(cells[person] * spec.stride + spec.first_cell, invert(matrix))
    result[..., 2] = heights
    result[heights <= 0] = 0
    return result


def find_maxima(
    maps: Maps, refine: Literal["quarter", "cubic", "none"] = "quarter", enlarge: int = 4
) -> tuple[NDArray[np.float64], Maps]:
    """The highest place of each map.

    The quarter offset is that of the public top-down code (Newell et al., 2016; Xiao et al., 2018): with the maximum
    at ``(x, y)``, ``1 < x < w - 1`` and ``1 < y < h - 1``, each coordinate moves 0.25 towards the higher one of its
    two neighbours.

    Parameters
    ----------
    maps : array, shape (N, K, h, w), float32
        Heatmaps.
    refine : str, optional
        As in `HeatmapOptions`.
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


def _enlarge(one: Maps, times: int) -> Maps:
    return np.asarray(cv2.resize(one, (0, 0), fx=times, fy=times, interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def blur_maps(maps: Maps, size: int) -> Maps:
    """Maps (N, K, h, w) under a Gaussian filter of that many cells, each scaled to the maximum it had before.

    Beyond its edge a map counts as 0.
    """
    margin = size // 2
    result = np.empty_like(maps)
    for index in np.ndindex(maps.shape[:2]):
        padded = np.pad(maps[index], margin)
        smooth = cv2.GaussianBlur(padded, (size, size), BLURS[size])[margin:-margin, margin:-margin]
        highest = float(smooth.max())
        result[index] = smooth * (float(maps[index].max()) / highest) if highest > 0 else smooth
    return result


def merge_mirrored(maps: Maps, mirrored: Maps, skeleton: Skeleton, *, shift: bool) -> Maps:
    """The mean of a crop's maps and those of the mirrored crop.

    Parameters
    ----------
    maps, mirrored : array, shape (N, C, h, w), float32
        Maps of the crops, and of the crops mirrored left to right; channels beyond the joints (the background) are
        their own mirror image.
    skeleton : Skeleton
        Tells left from right.
    shift : bool
        Move the maps of the mirrored crop one cell to the right after turning them back (``SHIFT_HEATMAP``). Where
        cell c stands for pixel ``stride * c`` (`compress.pose.spec.PoseSpec.corner_grid`) they lie most of a cell off.
    """
    joints = len(skeleton.joints)
    order = [*skeleton.flip_order, *range(joints, maps.shape[1])]
    back = mirrored[:, order, :, ::-1]
    if shift:
        back = np.concatenate([back[..., :1], back[..., :-1]], axis=-1)
    return np.asarray((maps + back) / 2, dtype=np.float32)
