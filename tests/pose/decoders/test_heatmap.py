"""Maxima of heatmaps against brute force, and the flip test."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_specs import TOP_DOWN

from compress.errors import DataError, UsageError
from compress.pose.crop import Crop, box_region, region_matrix, transform
from compress.pose.decoders.averaging import merge_mirrored
from compress.pose.decoders.heatmap import HeatmapDecoder, blur_maps, find_maxima
from compress.pose.skeleton import COCO17
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets

SINGLE = PoseSpec(skeleton="coco17", decoder="heatmap", height=128, stride=8, joint_threshold=0.2)


def crop_of(spec: PoseSpec, matrix: np.ndarray) -> Crop:
    return Crop(np.zeros((3, *spec.size), np.float32), matrix)


def brute_quarter(one: np.ndarray) -> tuple[float, float, float]:
    """The public rule, cell by cell."""
    height, width = one.shape
    best, x, y = -np.inf, 0, 0
    for row in range(height):
        for column in range(width):
            if one[row, column] > best:
                best, x, y = one[row, column], column, row
    dx = dy = 0.0
    if 1 < x < width - 1 and 1 < y < height - 1:
        dx = 0.25 * np.sign(one[y, x + 1] - one[y, x - 1])
        dy = 0.25 * np.sign(one[y + 1, x] - one[y - 1, x])
    return x + dx, y + dy, best


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
def test_maxima_are_those_of_brute_force(seed: int, height: int, width: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    # Few levels make ties, also between the neighbours.
    maps = (rng.integers(0, 4 * levels, (2, 3, height, width)) / levels).astype(np.float32)
    cells, heights = find_maxima(maps)
    for index in np.ndindex(2, 3):
        assert (*cells[index], heights[index]) == brute_quarter(maps[index])


def test_a_blur_keeps_the_maximum_and_is_a_filter_with_zeros_around() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((1, 2, 20, 14)).astype(np.float32)
    for size, sigma in ((11, 2.0), (17, 3.0)):
        smooth = blur_maps(maps, size)
        np.testing.assert_allclose(smooth.max(axis=(2, 3)), maps.max(axis=(2, 3)), rtol=1e-6)
        filtered = cv2.GaussianBlur(maps[0, 1], (size, size), sigma, borderType=cv2.BORDER_CONSTANT)
        np.testing.assert_allclose(smooth[0, 1] / smooth[0, 1].max(), filtered / filtered.max(), atol=1e-5)
    assert not blur_maps(np.zeros((1, 1, 4, 4), np.float32), 11).any()


@pytest.mark.parametrize("spec", [TOP_DOWN, SINGLE], ids=["corner", "centre"])
@pytest.mark.parametrize("flip", [False, True])
def test_joints_come_back_from_their_targets(spec: PoseSpec, flip: bool) -> None:
    rng = np.random.default_rng(1)
    box = [30.5, 60.0, 90.0, 130.0]
    people = np.ones((17, 3), np.float32)
    people[:, :2] = np.array(box[:2]) + rng.random((17, 2)) * box[2:]
    people[4] = 0
    matrix = region_matrix(box_region(box, spec.size), spec.size, corner_grid=spec.corner_grid)
    inside = people.copy()
    inside[:, :2] = transform(people[:, :2], matrix)
    shape = (spec.size[0] // spec.stride, spec.size[1] // spec.stride)

    def maps_of(keypoints: np.ndarray) -> np.ndarray:
        return heatmap_targets(
            [keypoints], shape, spec.stride, sigma=8, skeleton=COCO17, background=spec.background,
            first_cell=spec.first_cell,
        )[None]  # fmt: skip

    maps = maps_of(inside)
    if flip:
        mirrored = inside[list(COCO17.flip_order)]
        mirrored[:, 0] = np.where(mirrored[:, 2] > 0, spec.size[1] - 1 - mirrored[:, 0], 0)
        merged = merge_mirrored(maps, maps_of(mirrored), COCO17, shift=spec.flip_shift)
        # Without the right shift the two would not lie on top of each other.
        assert float(merged.max()) > 0.9
        maps = merged
    decoder = HeatmapDecoder(refine="cubic" if spec.background else "quarter")
    ((person,),) = decoder.decode({"heatmaps": maps}, [crop_of(spec, matrix)], spec)
    found = person.keypoints
    counted = found[:, 2][found[:, 2] > spec.joint_threshold]
    assert person.score == pytest.approx(counted.mean())
    cell = spec.stride / np.sqrt(np.abs(np.linalg.det(matrix[:, :2])))
    there = people[:, 2] > 0
    assert found[4].tolist() == [0, 0, 0]
    assert np.abs(found[there, :2] - people[there, :2]).max() <= 0.6 * cell
    assert found[there, 2].min() > 0.7


def test_the_cubic_maximum_lies_closer_than_the_cell() -> None:
    rng = np.random.default_rng(2)
    errors = {"none": [], "quarter": [], "cubic": []}
    for _ in range(20):
        point = rng.uniform(30, 90, 2)
        maps = heatmap_targets(
            [np.tile(np.array([*point, 2], np.float32), (17, 1))], (16, 16), 8, sigma=10, skeleton=COCO17
        )
        for refine, found in errors.items():
            cells, _ = find_maxima(maps[None, :1], refine, 8)
            found.append(np.abs(cells[0, 0] * 8 + 3.5 - point).max())
    assert np.mean(errors["cubic"]) < np.mean(errors["quarter"]) < np.mean(errors["none"])


def test_a_merge_is_the_mean_with_sides_swapped_and_the_background_its_own_mirror() -> None:
    rng = np.random.default_rng(3)
    maps, mirrored = rng.random((2, 1, 18, 3, 5)).astype(np.float32)
    plain = merge_mirrored(maps, mirrored, COCO17, shift=False)
    left, right = COCO17.joints.index("left_knee"), COCO17.joints.index("right_knee")
    np.testing.assert_allclose(plain[0, left], (maps[0, left] + mirrored[0, right, :, ::-1]) / 2)
    np.testing.assert_allclose(plain[0, 17], (maps[0, 17] + mirrored[0, 17, :, ::-1]) / 2)
    shifted = merge_mirrored(maps, mirrored, COCO17, shift=True)
    np.testing.assert_allclose(shifted[0, left, :, 1:], (maps[0, left, :, 1:] + mirrored[0, right, :, :0:-1]) / 2)
    np.testing.assert_allclose(shifted[0, left, :, 0], plain[0, left, :, 0])


def test_invalid_heatmaps_and_options_are_refused() -> None:
    maps = np.zeros((1, 17, 4, 4), np.float32)
    crops, decoder = [crop_of(TOP_DOWN, np.eye(2, 3))], HeatmapDecoder()
    assert not decoder.decode({"heatmaps": maps}, crops, TOP_DOWN)[0][0].keypoints.any()
    with pytest.raises(DataError, match="17 channels"):
        decoder.decode({"heatmaps": maps[:, :16]}, crops, TOP_DOWN)
    with pytest.raises(DataError, match="not finite"):
        decoder.decode({"heatmaps": maps + np.nan}, crops, TOP_DOWN)
    with pytest.raises(UsageError, match="11 or 17"):
        HeatmapDecoder(blur=12)
    with pytest.raises(UsageError, match="refinement"):
        HeatmapDecoder(refine="sharp")  # type: ignore[arg-type]
