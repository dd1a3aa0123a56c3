"""Regions of COCO annotations as masks: run lengths, polygons and boxes.

Run lengths are in column-major order and start with pixels outside the region. A polygon covers the pixels whose
centres lie inside; its coordinates, like those of a box, are relative to the corner of the top-left pixel.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError

Mask = NDArray[np.bool_]


def region_mask(annotation: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    """Mask of an annotation's region.

    Parameters
    ----------
    annotation : mapping
        A COCO annotation; its ``segmentation`` is a list of polygons or run lengths (``counts`` and ``size``). Without
        one its ``bbox`` is the region.
    size : (int, int)
        Height and width of the image in pixels.

    Returns
    -------
    array, shape (H, W), bool

    Raises
    ------
    DataError
        If the segmentation can't be read or is of an image of another size.
    """
    segmentation = annotation.get("segmentation")
    try:
        if isinstance(segmentation, Mapping):
            return _runs_mask(segmentation, size)
        if segmentation:
            mask = np.zeros(size, dtype=np.bool_)
            for polygon in segmentation:
                mask |= polygon_mask(np.asarray(polygon, dtype=np.float64).reshape(-1, 2), size)
            return mask
        return box_mask(annotation["bbox"], size)
    except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DataError(
            f"the segmentation of an annotation can't be read: {error}",
            found=annotation.get("id"),
            hint="Give polygons, run lengths as COCO writes them, or a bbox alone",
        ) from error


def box_mask(box: Sequence[float], size: tuple[int, int]) -> Mask:
    """Pixels whose centres lie inside a box (x, y, width, height), as an array (H, W)."""
    x, y, width, height = box
    rows, columns = (np.arange(side) + 0.5 for side in size)
    return ((rows >= y) & (rows < y + height))[:, None] & ((columns >= x) & (columns < x + width))


def polygon_mask(points: NDArray[np.float64], size: tuple[int, int]) -> Mask:
    """Pixels whose centres lie inside a polygon, by the even-odd rule.

    Parameters
    ----------
    points : array, shape (P, 2)
        x and y of the corners in order.
    size : (int, int)
        Height H and width W of the image in pixels.

    Returns
    -------
    array, shape (H, W), bool
    """
    height, width = size
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T  # [P] each
    rows = np.arange(height)[:, None] + 0.5
    row, edge = np.nonzero((y0 <= rows) != (y1 <= rows))
    x = x0[edge] + (row + 0.5 - y0[edge]) * (x1 - x0)[edge] / (y1 - y0)[edge]
    # A pixel is inside if an odd number of edges crosses its row at or left of its centre.
    crossings = np.zeros((height, width + 1), dtype=np.intp)
    np.add.at(crossings, (row, np.clip(np.ceil(x - 0.5), 0, width).astype(np.intp)), 1)
    return crossings.cumsum(axis=1)[:, :width] % 2 == 1


def _runs_mask(segmentation: Mapping[str, Any], size: tuple[int, int]) -> Mask:
    if tuple(segmentation["size"]) != size:
        raise ValueError(f"it is of an image of {tuple(segmentation['size'])} pixels, not {size}")
    counts = segmentation["counts"]
    runs = decode_counts(counts) if isinstance(counts, str | bytes) else np.asarray(counts, dtype=np.int64)
    height, width = size
    if runs.ndim != 1 or np.any(runs < 0) or runs.sum() != height * width:
        raise ValueError("its run lengths do not fill the image")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def decode_counts(text: str | bytes) -> NDArray[np.int64]:
    """Run lengths from COCO's compressed text.

    Each number is coded in groups of five bits, lowest first, in characters from ``0`` on; bit 5 (32) of a character
    marks that more follow, and the highest bit of the last group is the sign. From the fourth run on, the difference
    to the run before the last is coded.

    Raises
    ------
    ValueError
        If the text has other characters or ends inside a number.
    """
    codes = np.frombuffer(text.encode("ascii") if isinstance(text, str) else text, dtype=np.uint8).astype(np.int64) - 48
    if np.any((codes < 0) | (codes > 63)) or (len(codes) and codes[-1] & 32):
        raise ValueError("its compressed run lengths are damaged")
    runs: list[int] = []
    value = shift = 0
    for code in codes.tolist():
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return np.array(runs, dtype=np.int64)
