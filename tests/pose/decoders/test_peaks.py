from __future__ import annotations

import cv2
import numpy as np
import pytest
from crowds import STRIDE, scatter
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.pose.decoders.peaks import cubic_weights, find_peaks
from compress.pose.targets import heatmap_targets


def enlarged(heat: np.ndarray, upsample: int) -> np.ndarray:
    return cv2.resize(heat, (0, 0), fx=upsample, fy=upsample, interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("upsample", range(1, 9))
def test_weights_interpolate_as_opencv_does(upsample: int) -> None:
    heat = np.random.default_rng(upsample).random((6, 9)).astype(np.float32)
    weights = cubic_weights(upsample)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    padded, expected = np.pad(heat, 2, mode="edge"), enlarged(heat, upsample)
    for row, column in np.ndindex(heat.shape):
        found = (weights @ padded[row : row + 5, column : column + 5] @ weights.T)[1:-1, 1:-1]
        y, x = row * upsample, column * upsample
        np.testing.assert_allclose(found, expected[y : y + upsample, x : x + upsample], atol=2e-6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 4]), st.sampled_from([0.0, 0.01, 0.03]))
def test_the_same_peaks_as_in_maps_upsampled_as_a_whole(seed: int, upsample: int, noise: float) -> None:
    """Each maximum of the whole map has its peak, unless a higher one is near, and each peak its maximum."""
    rng = np.random.default_rng(seed)
    cells = (12, 17)
    heatmaps = heatmap_targets(scatter(rng, 4, cells), cells, STRIDE)[:18]
    heatmaps = (heatmaps + rng.normal(0, noise, heatmaps.shape)).astype(np.float32)
    radius = 0.75
    peaks = find_peaks(heatmaps, upsample=upsample, threshold=0.1, radius=radius, limit=100)
    for joint, heat in enumerate(heatmaps):
        found = peaks.points[peaks.starts[joint] : peaks.starts[joint + 1]]
        heights = peaks.scores[peaks.starts[joint] : peaks.starts[joint + 1]]
        large = enlarged(heat, upsample)
        around = np.pad(large, 1, constant_values=-np.inf)
        highest = np.max([around[y : y + large.shape[0], x : x + large.shape[1]] for y, x in np.ndindex(3, 3)], axis=0)
        y, x = np.nonzero((large >= highest - 2e-6) & (large >= 0.1 + 1e-5))
        maxima = np.stack([(x + 0.5) / upsample - 0.5, (y + 0.5) / upsample - 0.5], axis=-1)
        # On the outermost points it depends on how the map is thought to go on.
        inside = (x > 0) & (x < large.shape[1] - 1) & (y > 0) & (y < large.shape[0] - 1)
        for place, height in zip(maxima[inside], large[y, x][inside], strict=True):
            distance = np.linalg.norm(found - place, axis=1)
            near = distance < radius + 1.5 / upsample
            assert np.any(near & (heights >= height - 1e-3))
        for place in found[heights > 0.11]:  # others may be below the threshold in the whole map
            assert np.min(np.abs(maxima - place).max(axis=1)) <= 0.51 / upsample


@pytest.mark.parametrize("upsample", [1, 2, 4, 8])
def test_a_single_joint_is_found_between_the_cells(upsample: int) -> None:
    rng = np.random.default_rng(upsample)
    person = np.zeros((18, 3), np.float32)
    for _ in range(50):
        x, y = rng.uniform(20, 140, 2)
        person[7] = (x, y, 2)
        heatmaps = heatmap_targets([person], (20, 20), STRIDE)[:18]
        peaks = find_peaks(heatmaps, upsample=upsample, threshold=0.1, radius=0.75, limit=100)
        assert peaks.starts.tolist() == [0] * 8 + [1] * 11
        np.testing.assert_allclose(peaks.points[0] * STRIDE + 3.5, (x, y), atol=0.07 * STRIDE)
        assert peaks.scores[0] == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("place", [(-3, 80), (1, 1), (80, -3), (163, 80), (80, 163), (158, 159)])
def test_a_joint_on_the_border_is_found(place: tuple[int, int]) -> None:
    person = np.zeros((18, 3), np.float32)
    person[2] = (*place, 1)
    heatmaps = heatmap_targets([person], (20, 20), STRIDE)[:18]
    (point,) = find_peaks(heatmaps, upsample=4, threshold=0.1, radius=0.75, limit=100).points
    assert np.linalg.norm(point * STRIDE + 3.5 - place) < STRIDE


def test_peaks_are_sorted_apart_from_each_other_and_limited() -> None:
    noise = np.random.default_rng(0).random((3, 30, 40)).astype(np.float32)
    peaks = find_peaks(noise, upsample=4, threshold=0.1, radius=1.5, limit=20)
    assert len(peaks.points) == len(peaks.scores) == peaks.starts[-1]
    for start, stop in zip(peaks.starts[:-1], peaks.starts[1:], strict=True):
        assert 10 < stop - start <= 20
        assert np.all(np.diff(peaks.scores[start:stop]) <= 0)
        points = peaks.points[start:stop]
        distance = np.linalg.norm(points[:, None] - points, axis=-1) + 9 * np.eye(len(points))
        assert distance.min() >= 1.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 1), (2, 2)])
def test_maps_of_any_size_can_contain_a_peak(shape: tuple[int, int]) -> None:
    for y, x in np.ndindex(shape):
        heat = np.zeros((1, *shape), np.float32)
        heat[0, y, x] = 0.7
        peaks = find_peaks(heat, upsample=4, threshold=0.1, radius=0.75, limit=100)
        np.testing.assert_allclose(peaks.points[0], (x, y), atol=0.51)


def test_empty_maps_have_no_peaks_and_constant_ones_few() -> None:
    options = {"upsample": 4, "threshold": 0.1, "radius": 0.75, "limit": 100}
    assert len(find_peaks(np.zeros((18, 20, 20), np.float32), **options).scores) == 0
    assert len(find_peaks(np.ones((18, 20, 20), np.float32), **options).scores) <= 18 * 100
