"""Regions of annotations compared with pycocotools, and refusals of malformed ones."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from pycocotools import mask as reference

from compress.data.segmentation import box_mask, decode_counts, polygon_mask, region_mask
from compress.errors import DataError

SIZES = st.tuples(st.integers(1, 40), st.integers(1, 40))
MASKS = SIZES.flatmap(
    lambda size: st.one_of(
        hnp.arrays(np.bool_, size),
        # Long runs, whose lengths take several characters.
        st.floats(-50, 50).map(lambda slope: np.add.outer(np.arange(size[0]), slope * np.arange(size[1])) > 10),
    )
)


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    return [*([0] if flat[0] else []), *np.diff([0, *edges, flat.size]).tolist()]


@settings(max_examples=200, deadline=None)
@given(MASKS)
@example(np.ones((40, 40), np.bool_))
@example(np.zeros((1, 1), np.bool_))
def test_run_lengths_of_pycocotools_are_read(mask: NDArray[np.bool_]) -> None:
    written = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    size = list(mask.shape)
    for counts in (written["counts"], written["counts"].decode(), run_lengths(mask)):
        read = region_mask({"id": 1, "segmentation": {"counts": counts, "size": size}}, mask.shape)
        assert np.array_equal(read, mask)


def test_a_large_mask_with_growing_and_shrinking_runs_survives() -> None:
    yy, xx = np.mgrid[:640, :480]
    mask = (xx - 240) ** 2 + (yy - 320) ** 2 < 200**2
    written = reference.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert decode_counts(written["counts"]).tolist() == run_lengths(mask)


POINTS = st.integers(3, 9).flatmap(lambda n: hnp.arrays(np.float64, (n, 2), elements=st.floats(-10, 50, width=32)))


@settings(max_examples=150, deadline=None)
@given(POINTS)
def test_a_polygon_differs_from_pycocotools_along_its_edge_only(points: NDArray[np.float64]) -> None:
    inside = np.clip(points, 0, 40)
    ours = polygon_mask(inside, (40, 40))
    theirs = reference.decode(reference.frPyObjects([inside.ravel().tolist()], 40, 40))[..., 0].astype(np.bool_)
    corners = inside.astype(np.float32).reshape(-1, 1, 2)
    for row, column in np.argwhere(ours != theirs):
        assert abs(cv2.pointPolygonTest(corners, (column + 0.5, row + 0.5), True)) <= 1.0


@settings(max_examples=150, deadline=None)
@given(POINTS)
def test_a_polygon_covers_the_pixels_whose_centres_lie_inside(points: NDArray[np.float64]) -> None:
    mask = polygon_mask(points, (40, 40))
    for row, column in np.random.default_rng(0).integers(0, 40, (60, 2)):
        x, y = column + 0.5, row + 0.5
        crossings = 0  # of a ray to the left
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, axis=0), strict=True):
            if (y0 <= y) != (y1 <= y):
                crossings += x0 + (y - y0) * (x1 - x0) / (y1 - y0) <= x
        assert mask[row, column] == crossings % 2


def test_boxes_polygons_and_pycocotools_agree_on_whole_pixels() -> None:
    box = [3, 5, 7, 4]
    corners = [3, 5, 10, 5, 10, 9, 3, 9]
    theirs = reference.decode(reference.frPyObjects([corners], 20, 30))[..., 0].astype(np.bool_)
    assert theirs.sum() == 28
    assert np.array_equal(box_mask(box, (20, 30)), theirs)
    assert np.array_equal(region_mask({"segmentation": [corners]}, (20, 30)), theirs)


def test_several_polygons_are_joined_and_a_box_replaces_missing_ones() -> None:
    first, second = [0, 0, 4, 0, 4, 4, 0, 4], [2, 2, 8, 2, 8, 8, 2, 8]
    joined = region_mask({"segmentation": [first, second]}, (10, 10))
    assert joined.sum() == 16 + 36 - 4
    for segmentation in ([], None):
        only_box = region_mask({"segmentation": segmentation, "bbox": [0, 0, 4, 4]}, (10, 10))
        assert np.array_equal(only_box, region_mask({"segmentation": [first]}, (10, 10)))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"counts": [10, 90], "size": [20, 5]}, r"image of \(20, 5\) pixels, not \(10, 10\)"),
        ({"counts": [10, 80], "size": [10, 10]}, "do not fill the image"),
        ({"counts": [-10, 110], "size": [10, 10]}, "do not fill the image"),
        ({"counts": "", "size": [10, 10]}, "do not fill the image"),
        ({"counts": "T", "size": [10, 10]}, "damaged"),
        ({"counts": "\u00e9", "size": [10, 10]}, "can't be read"),
        ({"counts": "~~", "size": [10, 10]}, "damaged"),
        ({"counts": "o" * 40 + "0", "size": [10, 10]}, "can't be read"),
        ({"size": [10, 10]}, "can't be read"),
        ([[1, 2, 3]], "can't be read"),
        (["polygon"], "can't be read"),
        (7, "can't be read"),
        (None, "can't be read: 'bbox'"),
    ],
)
def test_a_damaged_segmentation_is_refused_and_its_annotation_named(segmentation: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        region_mask({"id": 4711, "segmentation": segmentation}, (10, 10))
    assert "4711" in str(caught.value)
