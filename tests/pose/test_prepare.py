from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError
from compress.pose.prepare import prepare
from compress.pose.spec import PoseSpec

SPEC = PoseSpec()


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40)
@given(st.integers(8, 300), st.integers(24, 300), st.integers(16, 200), st.sampled_from([4, 8]))
def test_the_scaled_image_lies_in_the_middle_of_zeros(height: int, width: int, target: int, stride: int) -> None:
    image = np.full((height, width, 3), 255, dtype=np.uint8)
    prepared = prepare(image, replace(SPEC, stride=stride), target)
    outer, inner = prepared.array.shape[1:], prepared.scaled_size
    assert inner[0] == target
    assert outer[0] == -(-target // stride) * stride
    assert outer[1] == -(-max(target, inner[1]) // stride) * stride
    left, top = prepared.pad
    right, bottom = outer[1] - inner[1] - left, outer[0] - inner[0] - top
    assert right - left in (0, 1)
    assert bottom - top in (0, 1)
    filled = prepared.array != 0
    assert filled[:, top : top + inner[0], left : left + inner[1]].all()
    assert filled.sum() == 3 * inner[0] * inner[1]
    np.testing.assert_allclose(prepared.array[filled], 127 / 256, rtol=1e-5)


def test_an_image_of_the_right_size_is_only_normalised() -> None:
    image = noise(64, 72)
    prepared = prepare(image, SPEC, 64)
    expected = (image.astype(np.float64) - 128) / 256
    np.testing.assert_allclose(prepared.array, expected.transpose(2, 0, 1), atol=1e-6)
    assert (prepared.scale, prepared.pad, prepared.size) == (1.0, (0, 0), (64, 72))
    assert prepared.array.dtype == np.float32
    assert prepared.array.flags.c_contiguous


def test_pixels_are_scaled_with_cubic_interpolation() -> None:
    image = noise(90, 151)
    prepared = prepare(image, SPEC, 64)
    scaled = cv2.resize(image.astype(np.float32), (0, 0), fx=64 / 90, fy=64 / 90, interpolation=cv2.INTER_CUBIC)
    left = prepared.pad[0]
    found = prepared.array[:, :, left : left + scaled.shape[1]]
    np.testing.assert_allclose(found, (scaled.transpose(2, 0, 1) - 128) / 256, atol=1e-5)


def test_channels_follow_the_specification() -> None:
    image = noise(32, 40)
    bgr = PoseSpec(mean=(1.0, 2.0, 3.0), scale=(0.5, 0.25, 0.125), color="bgr")
    rgb = PoseSpec(mean=(3.0, 2.0, 1.0), scale=(0.125, 0.25, 0.5), color="rgb")
    np.testing.assert_array_equal(prepare(image, bgr, 32).array, prepare(image, rgb, 32).array[::-1])
    np.testing.assert_allclose(prepare(image, bgr, 32).array[1], (image[..., 1] - 2.0) * 0.25)


def test_the_height_is_the_specifications_unless_given() -> None:
    image = noise(30, 50)
    np.testing.assert_array_equal(
        prepare(image, replace(SPEC, height=48)).array, prepare(image, replace(SPEC, height=368), 48).array
    )


@settings(max_examples=30)
@given(st.integers(40, 400), st.integers(40, 400), st.integers(64, 256), st.integers(0, 2**32 - 1))
def test_a_point_returns_to_where_it_was_in_the_image(height: int, width: int, target: int, seed: int) -> None:
    """The pixels of a ramp say where they come from."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    ramp = np.stack([columns * 255 / width, rows * 255 / height, 0 * rows], axis=-1)
    prepared = prepare(np.round(ramp).astype(np.uint8), SPEC, target)
    inner, rng = prepared.scaled_size, np.random.default_rng(seed)
    margin = [min(side // 3, int(3 * max(prepared.scale, 1)) + 1) for side in inner]
    x = prepared.pad[0] + int(rng.integers(margin[1], inner[1] - margin[1]))
    y = prepared.pad[1] + int(rng.integers(margin[0], inner[0] - margin[0]))
    value = prepared.array[:2, y, x] * 256 + 128
    expected = value / 255 * (width, height)
    # One grey value of rounding, a little more where the cubic filter sharpens it.
    assert np.all(np.abs(prepared.to_image((x, y)) - expected) <= 1.2 * np.array([width, height]) / 255 + 0.1)


def test_points_of_any_shape_are_mapped() -> None:
    prepared = prepare(noise(100, 50), SPEC, 64)
    points = np.random.default_rng(0).random((2, 3, 2)) * 64
    one_by_one = [[prepared.to_image(p) for p in row] for row in points]
    np.testing.assert_allclose(prepared.to_image(points), one_by_one)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((10, 10), dtype=np.uint8),
        np.zeros((10, 10, 4), dtype=np.uint8),
        np.zeros((10, 10, 3), dtype=np.float32),
        np.zeros((0, 10, 3), dtype=np.uint8),
        np.zeros((10, 0, 3), dtype=np.uint8),
        None,
    ],
)
def test_anything_but_an_image_is_refused(image) -> None:
    with pytest.raises(DataError):
        prepare(image, SPEC)


def test_sizes_without_pixels_are_refused() -> None:
    with pytest.raises(DataError, match="height"):
        prepare(noise(10, 10), SPEC, 0)
    with pytest.raises(DataError, match="width"):
        prepare(noise(1000, 1), SPEC, 8)
