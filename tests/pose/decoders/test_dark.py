"""DARK decoding: values worked out by hand, accuracy on drawn Gaussians, borders and invariances."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pose_specs import TOP_DOWN

from compress.pose.decoders.dark import filter_size, modulate, taylor_steps
from compress.pose.decoders.heatmap import HeatmapDecoder, find_maxima


def gaussian(x: float, y: float, size: tuple[int, int] = (64, 48), sigma: float = 2.0) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)).astype(np.float32)


def cells_of(maps: np.ndarray, **options: object) -> np.ndarray:
    """Decoded cells of up to 17 maps."""
    full = np.zeros((1, 17, *maps.shape[-2:]), np.float32)
    full[0, : len(maps)] = maps
    found = HeatmapDecoder(**options).keypoints({"heatmaps": full}, TOP_DOWN.size, TOP_DOWN)
    return (found[0, : len(maps), :2] - TOP_DOWN.first_cell) / TOP_DOWN.stride


def test_a_step_is_that_of_the_equation_worked_out_by_hand() -> None:
    # The logarithm is -(x - 3.2)^2 - 2 (y - 2.9)^2 + (x - 3.2)(y - 2.9) / 2: at the cell (3, 3) its gradient is
    # (0.4 + 0.05, -0.4 - 0.1) and its Hessian ((-2, 0.5), (0.5, -4)), so the step is
    # -((-4, -0.5), (-0.5, -2)) / 7.75 (0.45, -0.5) = (1.55, -0.775) / 7.75 = (0.2, -0.1).
    rows, columns = np.mgrid[:7, :7]
    x, y = columns - 3.2, rows - 2.9
    maps = np.exp(-(x**2) - 2 * y**2 + x * y / 2).astype(np.float32)[None, None]
    step = taylor_steps(maps, np.array([[3]]), np.array([[3]]))
    np.testing.assert_allclose(step, [[[0.2, -0.1]]], atol=1e-5)


def test_modulation_is_a_filter_rescaled_to_the_old_maximum() -> None:
    rng = np.random.default_rng(0)
    maps = rng.random((1, 2, 20, 14)).astype(np.float32)
    smooth = modulate(maps, 2.0)
    filtered = cv2.GaussianBlur(maps[0, 1], (11, 11), 2.0, borderType=cv2.BORDER_CONSTANT)
    expected = (filtered - filtered.min()) / (filtered.max() - filtered.min()) * maps[0, 1].max()
    np.testing.assert_allclose(smooth[0, 1], expected, atol=1e-5)
    assert [filter_size(sigma) for sigma in (2.0, 3.0)] == [11, 17]
    assert filter_size(0.1) == 3
    flat = np.stack([np.zeros((4, 4)), -np.ones((4, 4))]).astype(np.float32)[None]
    np.testing.assert_array_equal(modulate(flat, 2.0), flat)


def test_peaks_between_cells_are_found_far_closer_than_by_the_quarter_offset() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(8, 40, (200, 2))
    maps = np.stack([gaussian(x, y) for x, y in points])
    errors = {}
    for refine in ("none", "quarter", "dark"):
        found = np.concatenate([cells_of(maps[i : i + 17], refine=refine) for i in range(0, 200, 17)])
        errors[refine] = np.linalg.norm(found - points, axis=1)
    assert errors["dark"].max() < 0.02
    assert 20 * errors["dark"].mean() < errors["quarter"].mean() < errors["none"].mean()


def test_noise_moves_peaks_less_than_the_quarter_offset_errs() -> None:
    rng = np.random.default_rng(2)
    points = rng.uniform(10, 38, (170, 2))
    maps = np.stack([gaussian(x, y) for x, y in points])
    maps = np.maximum(maps + rng.normal(0, 0.03, maps.shape), 0).astype(np.float32)
    error = {
        refine: np.linalg.norm(
            np.concatenate([cells_of(maps[i : i + 17], refine=refine) for i in range(0, 170, 17)]) - points, axis=1
        ).mean()
        for refine in ("quarter", "dark")
    }
    assert error["dark"] < 0.7 * error["quarter"]


@settings(max_examples=30, deadline=None)
@given(
    x=st.floats(8, 38),
    y=st.floats(8, 54),
    factor=st.floats(0.05, 20),
    right=st.integers(-2, 2),
    down=st.integers(-2, 2),
)
def test_the_place_is_invariant_to_height_and_follows_shifts_mirrors_and_turns(
    x: float, y: float, factor: float, right: int, down: int
) -> None:
    one = gaussian(x, y)
    (place,) = cells_of(one[None], refine="dark")
    np.testing.assert_allclose(cells_of(one[None] * np.float32(factor), refine="dark")[0], place, atol=1e-3)
    moved = cells_of(gaussian(x + right, y + down)[None], refine="dark")[0]
    np.testing.assert_allclose(moved, place + np.array([right, down]), atol=2e-3)
    # At half a cell two cells are equally high, and rounding decides which one the step starts from.
    np.testing.assert_allclose(cells_of(one[None, :, ::-1], refine="dark")[0], [47 - place[0], place[1]], atol=2e-2)
    np.testing.assert_allclose(cells_of(one.T[None], refine="dark")[0], place[::-1], atol=2e-2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), height=st.integers(1, 9), width=st.integers(1, 9))
def test_any_map_gives_finite_places_within_a_cell_of_its_maximum(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    maps = (rng.integers(-3, 4, (17, height, width)) / 2).astype(np.float32)
    highest, _ = find_maxima(maps[None], "none")
    found = cells_of(maps, refine="dark")
    assert np.isfinite(found).all()
    assert np.abs(found - highest[0]).max() <= 1 + 1e-6


def test_peaks_at_the_border_stay_in_their_cells() -> None:
    corners = [(0, 0), (1, 30), (47, 63), (46, 30), (20, 1), (20, 62)]
    maps = np.stack([gaussian(x + 0.3, y - 0.2) for x, y in corners])
    np.testing.assert_allclose(cells_of(maps, refine="dark"), corners, atol=1e-6)
    assert np.abs(cells_of(gaussian(2.3, 30.2)[None], refine="dark") - [2, 30]).max() > 0.1


def test_a_saddle_and_a_plateau_have_no_maximum_to_move_to() -> None:
    rows, columns = np.mgrid[:7, :7]
    saddle = np.exp((columns - 3.2) ** 2 - (rows - 3.1) ** 2).astype(np.float32)
    maps = np.stack([saddle, np.ones((7, 7), np.float32), np.zeros((7, 7), np.float32)])[None]
    assert not taylor_steps(maps, np.full((1, 3), 3), np.full((1, 3), 3)).any()


def test_the_score_is_the_height_of_the_map_itself() -> None:
    full = np.zeros((1, 17, 64, 48), np.float32)
    full[0, 0] = 0.7 * gaussian(20, 30)
    for blur in (None, 11, 17):
        found = HeatmapDecoder(refine="dark", blur=blur).keypoints({"heatmaps": full}, TOP_DOWN.size, TOP_DOWN)
        assert found[0, 0, 2] == pytest.approx(0.7)
        assert math.isclose(found[0, 0, 0], 20 * TOP_DOWN.stride + TOP_DOWN.first_cell, abs_tol=1e-3)
    assert HeatmapDecoder(refine="dark", blur=17).describe() == "Gaussian filter 17, DARK"
