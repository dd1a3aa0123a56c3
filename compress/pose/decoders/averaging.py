"""Averages of maps over views of an image: mirrored maps are turned back, those of other scales resampled."""

from __future__ import annotations

from collections.abc import Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.pose.skeleton import Skeleton
from compress.pose.spec import PoseSpec

Maps = NDArray[np.float32]


def resample(maps: Maps, matrix: NDArray[np.float64], size: tuple[int, int]) -> Maps:
    """Maps on another grid.

    Parameters
    ----------
    maps : array, shape (..., h, w), float32
        Maps.
    matrix : array, shape (2, 3)
        From cells (x, y) of the result to cells of the maps.
    size : (int, int)
        Height and width of the result.

    Returns
    -------
    array, shape (..., *size), float32
        Cubic interpolation; beyond the border, maps continue with the values at the border.
    """
    flat = maps.reshape(-1, *maps.shape[-2:])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = [
        cv2.warpAffine(one, matrix, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE) for one in flat
    ]
    return np.stack(moved).astype(np.float32).reshape(*maps.shape[:-2], *size)


def resample_outputs(
    outputs: Mapping[str, Maps], matrix: NDArray[np.float64], like: Mapping[str, Maps], pose: PoseSpec
) -> dict[str, Maps]:
    """`resample` for all maps of a network, with a matrix between pixels of its inputs."""
    linear = matrix[:, :2]
    first = np.full(2, pose.first_cell)
    cells = np.column_stack([linear, (linear @ first + matrix[:, 2] - first) / pose.stride])
    return {name: resample(maps, cells, like[name].shape[-2:]) for name, maps in outputs.items()}


def merge_mirrored(maps: Maps, mirrored: Maps, skeleton: Skeleton, *, shift: bool) -> Maps:
    """The mean of heatmaps and those of the mirrored input.

    Parameters
    ----------
    maps, mirrored : array, shape (N, C, h, w), float32
        Maps of the inputs, and of the inputs mirrored left to right; channels beyond the joints (the background) are
        their own mirror image.
    skeleton : Skeleton
        Pairs left and right joints.
    shift : bool
        Move the maps of the mirrored input one cell to the right after turning them back (``SHIFT_HEATMAP``). On a
        corner grid (`compress.pose.spec.PoseSpec.grid`) they are otherwise off by most of a cell.
    """
    joints = len(skeleton.joints)
    order = [*skeleton.flip_order, *range(joints, maps.shape[1])]
    back = mirrored[:, order, :, ::-1]
    if shift:
        back = np.concatenate([back[..., :1], back[..., :-1]], axis=-1)
    return np.asarray((maps + back) / 2, dtype=np.float32)


def merge_mirrored_pafs(pafs: Maps, mirrored: Maps, skeleton: Skeleton) -> Maps:
    """The mean of part-affinity fields and those of the mirrored image.

    Turned back, the field of a limb is that of its mirror image with the x component negated, and negated as a whole
    where the skeleton lists the two joints of the mirror image in the opposite order.

    Parameters
    ----------
    pafs, mirrored : array, shape (N, 2 * limbs, h, w), float32
        Fields of the images, and of the images mirrored left to right.
    skeleton : Skeleton
        Limbs and their channels; every limb's mirror image is a limb.
    """
    flip = skeleton.flip_order
    result = np.empty_like(pafs, dtype=np.float32)
    for limb, (start, end) in enumerate(skeleton.limbs):
        twin, sign = (flip[start], flip[end]), 1.0
        if twin not in skeleton.limbs:
            twin, sign = (flip[end], flip[start]), -1.0
        own, other = skeleton.paf_channels[limb], skeleton.paf_channels[skeleton.limbs.index(twin)]
        for offset, factor in ((0, -sign), (1, sign)):
            result[:, own + offset] = (pafs[:, own + offset] + factor * mirrored[:, other + offset, :, ::-1]) / 2
    return result
