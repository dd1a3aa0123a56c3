"""The maps that a network should return for people at known places: heatmaps and part-affinity fields (PAFs).

Positions are in pixels of the network's input, the centre of the top-left pixel being (0, 0). Cell (row, column) of a
map covers ``stride`` x ``stride`` input pixels; its centre is at ``stride * (column, row) + (stride - 1) / 2``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError
from compress.pose.skeleton import OPENPOSE18, Skeleton

#: Gaussians are cut off below this value.
CUT = 0.01


def heatmap_targets(
    people: Sequence[NDArray[np.float32]],
    size: tuple[int, int],
    stride: int,
    *,
    sigma: float = 7.0,
    skeleton: Skeleton = OPENPOSE18,
    background: bool = True,
    first_cell: float | None = None,
) -> NDArray[np.float32]:
    """Gaussian peaks at the joints: the heatmaps of lightweight OpenPose (Osokin, 2018).

    A cell centred at ``c`` has, on the map of joint k, ``min(1, sum over people of g(|c - p_k|))`` with
    ``g(d) = exp(-d^2 / (2 sigma^2))``, and ``g = 0`` where that is below 0.01. The background is one minus the largest
    value of the joints' maps.

    Parameters
    ----------
    people : sequence of array, shape (K, 3)
        x, y in pixels of the network's input and visibility; joints with visibility 0 are missing, hidden ones (1) and
        visible ones (2) count the same. Joints may lie outside the map.
    size : (int, int)
        Height and width of the maps in cells.
    stride : int
        Input pixels per cell.
    sigma : float, optional
        Standard deviation of the peaks in input pixels.
    skeleton : Skeleton, optional
        Whose joints the keypoints are.
    background : bool, optional
        Whether a background map follows those of the joints.
    first_cell : float, optional
        Input pixel that the first cell stands for along either axis (`compress.pose.spec.PoseSpec.first_cell`); the
        middle of its pixels by default.

    Returns
    -------
    array, shape (K + 1 or K, h, w), float32
        Values in 0 to 1.

    Raises
    ------
    DataError
        If a person's keypoints have another shape or are not finite.
    """
    joints, (rows, columns) = len(skeleton.joints), size
    keypoints = _stack(people, joints)  # (P, K, 3)
    # Squared distance, in cells, at which a Gaussian is cut off; its window holds the nearest cells of any position.
    spread = 2 * (sigma / stride) ** 2
    reach = spread * -math.log(CUT)
    half = math.ceil(math.sqrt(reach) + 0.5)
    cells = (keypoints[..., :2] - ((stride - 1) / 2 if first_cell is None else first_cell)) / stride
    nearest = np.floor(cells + 0.5)
    inside = np.all((nearest >= -half) & (nearest < np.array([columns, rows]) + half), axis=-1)
    joint = np.nonzero((keypoints[..., 2] > 0) & inside)
    nearest, offset = nearest[joint], nearest[joint] - cells[joint]  # (M, 2)
    window = np.arange(-half, half + 1)
    square = (offset[:, :, None] + window) ** 2  # (M, 2, window), x then y
    square = square[:, 1, :, None] + square[:, 0, None, :]  # (M, window rows, window columns)
    values = np.where(square <= reach, np.exp(-square / spread), 0)
    # The maps are summed with a margin for everything that falls outside.
    wide = (joints, rows + 4 * half, columns + 4 * half)
    corner = nearest.astype(np.int64) + 2 * half
    index = (joint[1][:, None, None] * wide[1] + corner[:, 1, None, None] + window[:, None]) * wide[2]
    index = index + corner[:, 0, None, None] + window
    total = np.bincount(index.ravel(), weights=values.ravel(), minlength=math.prod(wide)).reshape(wide)
    maps = np.empty((joints + background, rows, columns), dtype=np.float32)
    np.minimum(total[:, 2 * half : 2 * half + rows, 2 * half : 2 * half + columns], 1, out=maps[:joints])
    if background:
        np.subtract(1, maps[:joints].max(axis=0), out=maps[joints])
    return maps


def paf_targets(
    people: Sequence[NDArray[np.float32]],
    size: tuple[int, int],
    stride: int,
    *,
    thickness: float = 1.0,
    skeleton: Skeleton = OPENPOSE18,
    first_cell: float | None = None,
) -> NDArray[np.float32]:
    """Unit vectors along the limbs: the part-affinity fields of OpenPose (Cao et al., 2017) on a coarse grid.

    On the two maps of a limb from a to b, with ``u = (b - a) / |b - a|``, a cell centred at ``c`` has ``u`` if it lies
    no further from the limb's line than the thickness, ``|(c - a) x u| <= thickness``, and in the box of the two ends
    enlarged by the thickness on all sides. Where limbs of several people overlap, the last person's stays. The public
    code of lightweight OpenPose measures from the corners of the cells, so its fields lie half a cell further; from
    the centres, a mirrored person has mirrored fields.

    Parameters
    ----------
    people : sequence of array, shape (K, 3)
        As for `heatmap_targets`. A limb with a missing end, or with both ends at one place, is left out.
    size : (int, int)
        Height and width of the maps in cells.
    stride : int
        Input pixels per cell.
    thickness : float, optional
        Half the width of a limb in cells.
    skeleton : Skeleton, optional
        Limbs and their channels.
    first_cell : float, optional
        As for `heatmap_targets`.

    Returns
    -------
    array, shape (2 * limbs, h, w), float32
        x and y of the vectors on the channels that the skeleton names.

    Raises
    ------
    DataError
        If a person's keypoints have another shape or are not finite, or the skeleton has no PAFs.
    """
    if not skeleton.paf_channels:
        raise DataError("the skeleton has no part-affinity fields", found=skeleton.name)
    rows, columns = size
    keypoints = _stack(people, len(skeleton.joints))
    maps = np.zeros((2 * len(skeleton.limbs), rows, columns), dtype=np.float32)
    first, second = np.array(skeleton.limbs).T
    cells = (keypoints[..., :2] - ((stride - 1) / 2 if first_cell is None else first_cell)) / stride
    a, b = cells[:, first], cells[:, second]  # (P, limbs, 2)
    length = np.linalg.norm(b - a, axis=-1)
    there = np.minimum(keypoints[:, first, 2], keypoints[:, second, 2]) > 0
    low = np.maximum(np.ceil(np.minimum(a, b) - thickness), 0)
    high = np.minimum(np.floor(np.maximum(a, b) + thickness), np.array([columns, rows]) - 1)
    person, limb = np.nonzero(there & (length > 1e-6) & np.all(high >= low, axis=-1))
    if not len(limb):
        return maps
    a, low, high = a[person, limb], low[person, limb], high[person, limb]  # (M, 2), person by person
    unit = (b[person, limb] - a) / length[person, limb, None]
    low, extent = low.astype(np.int64), (high - low + 1).astype(np.int64)
    # The cells of all boxes one after the other: `owner` is a cell's limb, `place` its number in the box.
    count = extent[:, 0] * extent[:, 1]
    owner = np.repeat(np.arange(len(limb)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    y, x = np.divmod(place, extent[owner, 0])
    x += low[owner, 0]
    y += low[owner, 1]
    cross = (x - a[owner, 0]) * unit[owner, 1] - (y - a[owner, 1]) * unit[owner, 0]
    near = np.abs(cross) <= thickness
    owner, x, y = owner[near], x[near], y[near]
    channel = np.array(skeleton.paf_channels)[limb[owner]]
    # Of values assigned to one place NumPy keeps the last, which is the last person's.
    maps[channel, y, x] = unit[owner, 0]
    maps[channel + 1, y, x] = unit[owner, 1]
    return maps


def merge_heatmaps(maps: Sequence[NDArray[np.float32]], background: bool) -> NDArray[np.float32]:
    """Heatmaps of several people by the maximum over people (Cao et al., 2017, arXiv:1611.08050, equation 7).

    ``S_j(p) = max_k S_jk(p)``: unlike the clipped sum of `heatmap_targets`, peaks close to each other stay distinct.

    Parameters
    ----------
    maps : sequence of array, shape (C, h, w)
        `heatmap_targets` of each person alone, at least one.
    background : bool
        Whether the last map is the background.
    """
    merged = np.max(maps, axis=0)
    if background:
        np.subtract(1, merged[:-1].max(axis=0), out=merged[-1])
    return np.asarray(merged, dtype=np.float32)


def merge_pafs(maps: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Fields of several people by the mean over people (Cao et al., 2017, arXiv:1611.08050, equation 9).

    ``L_c(p) = sum over people of L_ck(p) / n_c(p)`` with ``n_c(p)`` the number of vectors there that are not zero.

    Parameters
    ----------
    maps : sequence of array, shape (2 * limbs, h, w)
        `paf_targets` of each person alone, at least one; the two channels of a limb follow each other.
    """
    stacked = np.stack(maps)
    vectors = stacked.reshape(len(maps), -1, 2, *stacked.shape[2:])
    count = (vectors != 0).any(axis=2, keepdims=True).sum(axis=0)
    return np.asarray((vectors.sum(axis=0) / np.maximum(count, 1)).reshape(stacked.shape[1:]), dtype=np.float32)


def shrink_mask(mask: NDArray[np.bool_], stride: int) -> NDArray[np.float32]:
    """The share of each cell (1, h, w) where a mask (H, W) is true; H and W are multiples of the stride."""
    # Not cv2.resize: in worker processes it sometimes returned cells of 1e37.
    blocks = mask.reshape(mask.shape[0] // stride, stride, mask.shape[1] // stride, stride)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))[None]


def _stack(people: Sequence[NDArray[np.float32]], joints: int) -> NDArray[np.float64]:
    """The people's keypoints (P, K, 3), checked."""
    for keypoints in people:
        if np.shape(keypoints) != (joints, 3):
            raise DataError("a person's keypoints have the wrong shape", found=np.shape(keypoints),
                            hint=f"Give x, y and visibility of {joints} joints")  # fmt: skip
    stacked = np.array(people, dtype=np.float64).reshape(-1, joints, 3)
    if not np.isfinite(stacked).all():
        raise DataError("a person's keypoints are not finite")
    return stacked
