"""Regions, the way into a crop and back."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import DataError
from compress.pose.crop import (
    Region,
    box_region,
    cut,
    image_region,
    invert,
    normalise_crop,
    region_matrix,
    transform,
)
from compress.pose.spec import PoseSpec

SIDES = st.floats(2, 500)
PLACES = st.floats(-300, 300)
REGIONS = st.builds(
    Region, centre=st.tuples(PLACES, PLACES), size=st.tuples(SIDES, SIDES), rotation=st.floats(-180, 180),
    mirrored=st.booleans(),
)  # fmt: skip


@given(REGIONS, st.booleans(), st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=5))
def test_the_way_back_undoes_the_way_there(
    region: Region, corner_grid: bool, points: list[tuple[float, float]]
) -> None:
    matrix = region_matrix(region, (256, 192), corner_grid=corner_grid)
    back = transform(transform(points, matrix), invert(matrix))
    np.testing.assert_allclose(back, points, atol=1e-6)


@given(PLACES, PLACES, SIDES, SIDES, st.floats(1, 2))
def test_a_region_holds_its_box_with_the_padding_and_has_the_aspect_ratio(
    x: float, y: float, width: float, height: float, padding: float
) -> None:
    region = box_region((x, y, width, height), (256, 192), padding)
    assert region.size[0] / region.size[1] == pytest.approx(0.75)
    # One side is the box's own, the other is not shorter.
    assert min(region.size[0] / width, region.size[1] / height) == pytest.approx(padding)
    assert region.centre == pytest.approx((x + width / 2 - 0.5, y + height / 2 - 0.5))


def public_matrix(centre: np.ndarray, scale: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The public construction from three points, without rotation; scale in units of 200 pixels."""
    wide = scale[0] * 200
    source = np.array([centre, centre - np.array([0, wide / 2]), [0, 0]], np.float32)
    goal = np.array([[size[1] / 2, size[0] / 2], [size[1] / 2, size[0] / 2 - size[1] / 2], [0, 0]], np.float32)
    for points in (source, goal):
        direction = points[0] - points[1]
        points[2] = points[1] + np.array([-direction[1], direction[0]])
    return cv2.getAffineTransform(source, goal)


def test_it_is_the_affine_map_of_the_public_top_down_code() -> None:
    box, size = (41.0, 17.0, 60.0, 200.0), (256, 192)
    centre = np.array([41 + 59 / 2, 17 + 199 / 2])  # the public code measures boxes from centre to centre
    scale = np.array([150.0, 200.0]) / 200 * 1.25
    ours = region_matrix(box_region(box, size), size, corner_grid=True)
    np.testing.assert_allclose(ours, public_matrix(centre, scale, size), atol=1e-4)


def test_a_whole_image_of_the_right_size_is_left_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 24, 3), dtype=np.uint8)
    matrix = region_matrix(image_region(image.shape, (32, 24)), (32, 24), corner_grid=False)
    np.testing.assert_allclose(matrix, np.eye(2, 3), atol=1e-12)
    np.testing.assert_array_equal(cut(image, matrix, (32, 24), (0, 0, 0)), image)


def test_a_wide_image_is_padded_above_and_below_in_equal_parts() -> None:
    image = np.full((10, 20, 3), 7, np.uint8)
    pose = PoseSpec(skeleton="lip16", decoder="heatmap", outputs=("heatmaps",), height=40, mean=(1.0, 2.0, 3.0),
                    scale=(1.0, 1.0, 1.0), color="rgb", fill=(3.0, 2.0, 1.0))  # fmt: skip
    matrix = region_matrix(image_region(image.shape, (40, 40)), (40, 40), corner_grid=False)
    crop = cut(image, matrix, (40, 40), pose.fill)
    assert (crop[:9] == [3, 2, 1]).all()
    assert (crop[-9:] == [3, 2, 1]).all()
    assert (crop[12:28, 2:38] == 7).all()
    # What lies beyond the image is zero to the network.
    read = normalise_crop(crop, pose)
    assert read.shape == (3, 40, 40)
    assert not read[:, :9].any()
    assert read[:, 20, 20].tolist() == [6, 5, 4]


def test_a_gray_crop_has_one_channel() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    image[..., 1] = 100
    pose = PoseSpec(skeleton="lip16", decoder="heatmap", height=40, mean=(10.0,), scale=(0.5,), color="gray")
    read = normalise_crop(image, pose)
    assert read.shape == (1, 40, 40)
    assert np.allclose(read, (round(100 * 0.587) - 10) / 2)
    with pytest.raises(DataError, match="4 channels"):
        normalise_crop(image, PoseSpec(mean=(0.0,) * 4, scale=(1.0,) * 4, color="rgb"))


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (0, 0, 5, -1), (0, 0, 5), (0, np.nan, 5, 5), (0, 0, np.inf, 5)])
def test_an_impossible_box_is_refused(box: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="box"):
        box_region(box, (256, 192))
