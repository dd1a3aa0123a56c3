"""Maps of one image from several views: mirrored, and at several scales, averaged on one grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.errors import UsageError
from compress.pose.crop import Matrix, Region, cut, fill_colour, invert, normalise_crop, region_matrix
from compress.pose.decoders.heatmap import merge_mirrored
from compress.pose.prepare import Prepared, prepare
from compress.pose.skeleton import Skeleton
from compress.pose.spec import PoseSpec

Maps = NDArray[np.float32]

#: Runs a network on images (N, 3, H, W): maps by name.
Run = Callable[[Maps], Mapping[str, Maps]]


def read_scales(text: str) -> tuple[float, ...]:
    """``"0.5,1,1.5"`` to numbers, the largest first.

    Raises
    ------
    UsageError
        If they are no numbers above 0, or one stands there twice.
    """
    try:
        scales = tuple(sorted((float(word) for word in text.split(",")), reverse=True))
    except ValueError:
        scales = ()
    if not scales or not all(0 < scale < 10 for scale in scales) or len(set(scales)) < len(scales):
        raise UsageError("scales are different numbers above 0 and below 10", found=text, hint="Such as 0.5,1,1.5")
    return scales


def resample(maps: Maps, matrix: Matrix, size: tuple[int, int]) -> Maps:
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
        Cubic interpolation; beyond their edge maps go on as they end.
    """
    flat = maps.reshape(-1, *maps.shape[-2:])
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    moved = [
        cv2.warpAffine(one, matrix, (size[1], size[0]), flags=flags, borderMode=cv2.BORDER_REPLICATE) for one in flat
    ]
    return np.stack(moved).astype(np.float32).reshape(*maps.shape[:-2], *size)


def merge_mirrored_pafs(pafs: Maps, mirrored: Maps, skeleton: Skeleton) -> Maps:
    """The mean of part-affinity fields and those of the mirrored image.

    Turned back, the field of a limb is that of its mirror image with the x component negated, and negated as a whole
    where the skeleton lists the mirror image the other way round.

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


def whole_image_maps(
    run: Run,
    image: NDArray[np.uint8],
    spec: PoseSpec,
    *,
    height: int | None = None,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> tuple[Maps, Maps, Prepared]:
    """Maps of a network that finds several people, averaged over views of the image.

    Parameters
    ----------
    run : callable
        Runs the network.
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    spec : PoseSpec
        What the network expects and gives.
    height : int, optional
        Height in pixels that the image is scaled to at scale 1; the network's own by default.
    flip : bool
        Whether each view is also seen mirrored.
    scales : sequence of float
        The largest first; its maps are the grid of the mean.

    Returns
    -------
    heatmaps : array, shape (C, h, w)
        The mean.
    pafs : array, shape (2 * limbs, h, w)
        The mean.
    prepared : Prepared
        The network's input at the largest scale, which the maps belong to.
    """
    views = []
    for scale in scales:
        prepared = prepare(image, spec, max(1, round((height or spec.height) * scale)))
        maps = run(prepared.array[None])
        heatmaps, pafs = maps["heatmaps"], maps["pafs"]
        if flip:
            mirrored = run(np.ascontiguousarray(prepared.array[None, ..., ::-1]))
            heatmaps = merge_mirrored(heatmaps, mirrored["heatmaps"], spec.joints, shift=False)
            pafs = merge_mirrored_pafs(pafs, mirrored["pafs"], spec.joints)
        views.append((heatmaps, pafs, prepared))
    (heatmaps, pafs, base), *others = views
    for more_heatmaps, more_pafs, prepared in others:
        matrix = _between(base, prepared, spec)
        heatmaps = heatmaps + resample(more_heatmaps, matrix, heatmaps.shape[-2:])
        pafs = pafs + resample(more_pafs, matrix, pafs.shape[-2:])
    count = np.float32(len(views))
    return heatmaps[0] / count, pafs[0] / count, base


def _between(base: Prepared, other: Prepared, spec: PoseSpec) -> Matrix:
    """From cells of one network input's maps to those of another of the same image."""
    ratio = other.scale / base.scale
    # Pixels of an input count from their centres; half a pixel further they are proportional.
    offset = [(0.5 - base.pad[axis]) * ratio - 0.5 + other.pad[axis] for axis in (0, 1)]
    return _cells(np.column_stack([np.eye(2) * ratio, offset]), spec)


def _cells(pixels: Matrix, spec: PoseSpec) -> Matrix:
    """An affine map between pixels of inputs as one between cells of their maps."""
    linear = pixels[:, :2]
    first = np.full(2, spec.first_cell)
    return np.column_stack([linear, (linear @ first + pixels[:, 2] - first) / spec.stride])


def person_maps(
    run: Run,
    image: NDArray[np.uint8],
    regions: Sequence[Region],
    spec: PoseSpec,
    size: tuple[int, int],
    *,
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
) -> tuple[Maps, list[Matrix]]:
    """Heatmaps of a network that sees one person, averaged over views of each region.

    Parameters
    ----------
    run, image, spec, flip, scales
        As in `whole_image_maps`.
    regions : sequence of N Regions
        Where people are.
    size : (int, int)
        Height and width of the network's input at scale 1; at others to the next multiple of its stride.

    Returns
    -------
    maps : array, shape (N, C, h, w)
        The mean, on the grid of the largest scale.
    matrices : list of N arrays, shape (2, 3)
        From pixels of the image to those of the input at that scale.
    """
    views = []
    for scale in scales:
        side = tuple(max(1, round(n * scale / spec.stride)) * spec.stride if scale != 1 else n for n in size)
        scaled = (side[0], side[1])
        matrices = [region_matrix(region, scaled, corner_grid=spec.corner_grid) for region in regions]
        crops = np.stack([normalise_crop(cut(image, m, scaled, fill_colour(spec)), spec) for m in matrices])
        maps = run(crops)["heatmaps"]
        if flip:
            mirrored = run(np.ascontiguousarray(crops[..., ::-1]))["heatmaps"]
            maps = merge_mirrored(maps, mirrored, spec.joints, shift=spec.corner_grid)
        views.append((maps, matrices))
    (total, base), *others = views
    for maps, matrices in others:
        # The same for all regions: each matrix is the region's own followed by that of the input's size.
        pixels = np.vstack([matrices[0], [0, 0, 1]]) @ np.vstack([invert(base[0]), [0, 0, 1]])
        total = total + resample(maps, _cells(pixels[:2], spec), total.shape[-2:])
    return total / np.float32(len(views)), base
