from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import DataError, UsageError
from compress.pose.decoders.paf import PafDecoder
from compress.pose.skeleton import COCO17, OPENPOSE18
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, merge_heatmaps, merge_pafs, paf_targets

STRIDE = 8
MIRROR = list(OPENPOSE18.flip_order)


def draw_people(rng: np.random.Generator, count: int, size: tuple[int, int], spread: float = 40.0) -> list[np.ndarray]:
    """People of random joints around random places, some of which lie outside a map of that size."""
    people = []
    for _ in range(count):
        centre = rng.uniform(-20, 20, 2) + rng.random(2) * (size[1] * STRIDE, size[0] * STRIDE)
        points = centre + rng.normal(0, spread, (18, 2))
        people.append(np.column_stack([points, rng.integers(0, 3, 18)]).astype(np.float32))
    return people


def slow_heatmaps(people: list[np.ndarray], size: tuple[int, int], sigma: float) -> np.ndarray:
    maps = np.zeros((19, *size))
    for k in range(18):
        for row in range(size[0]):
            for column in range(size[1]):
                for person in people:
                    x, y, visibility = map(float, person[k])
                    if visibility > 0:
                        dx, dy = column * STRIDE + 3.5 - x, row * STRIDE + 3.5 - y
                        value = math.exp(-(dx * dx + dy * dy) / (2 * sigma**2))
                        maps[k, row, column] += value if value >= 0.01 else 0
    maps[:18] = np.minimum(maps[:18], 1)
    maps[18] = 1 - maps[:18].max(axis=0)
    return maps


def slow_pafs(people: list[np.ndarray], size: tuple[int, int], thickness: float) -> np.ndarray:
    maps = np.zeros((38, *size))
    for person in people:
        for (i, j), channel in zip(OPENPOSE18.limbs, OPENPOSE18.paf_channels, strict=True):
            if person[i, 2] == 0 or person[j, 2] == 0:
                continue
            ax, ay = ((float(v) - 3.5) / STRIDE for v in person[i, :2])
            bx, by = ((float(v) - 3.5) / STRIDE for v in person[j, :2])
            length = math.hypot(bx - ax, by - ay)
            if length == 0:
                continue
            ux, uy = (bx - ax) / length, (by - ay) / length
            for y in range(size[0]):
                for x in range(size[1]):
                    in_x = min(ax, bx) - thickness <= x <= max(ax, bx) + thickness
                    in_y = min(ay, by) - thickness <= y <= max(ay, by) + thickness
                    if in_x and in_y and abs((x - ax) * uy - (y - ay) * ux) <= thickness:
                        maps[channel : channel + 2, y, x] = ux, uy
    return maps


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [0, 1, 4])
def test_maps_equal_their_definition_cell_by_cell(seed: int, count: int) -> None:
    rng = np.random.default_rng((seed, count))
    size = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
    people = draw_people(rng, count, size)
    sigma, thickness = (7.0, 1.0) if seed < 2 else (float(rng.uniform(2, 12)), float(rng.uniform(0.3, 2.5)))
    heatmaps = heatmap_targets(people, size, STRIDE, sigma=sigma)
    pafs = paf_targets(people, size, STRIDE, thickness=thickness)
    assert heatmaps.dtype == pafs.dtype == np.float32
    np.testing.assert_allclose(heatmaps, slow_heatmaps(people, size, sigma), atol=1e-6)
    np.testing.assert_allclose(pafs, slow_pafs(people, size, thickness), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_a_mirrored_person_has_mirrored_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (12, 15)
    people = draw_people(rng, 2, size)
    mirrored = []
    for person in people:
        other = person[MIRROR].copy()
        other[:, 0] = size[1] * STRIDE - 1 - other[:, 0]
        mirrored.append(other)
    heatmaps, pafs = heatmap_targets(people, size, STRIDE), paf_targets(people, size, STRIDE)
    expected = heatmaps[[*MIRROR, 18], :, ::-1]
    np.testing.assert_allclose(heatmap_targets(mirrored, size, STRIDE), expected, atol=1e-5)
    found = paf_targets(mirrored, size, STRIDE)
    for (i, j), channel in zip(OPENPOSE18.limbs, OPENPOSE18.paf_channels, strict=True):
        partner = OPENPOSE18.paf_channels[OPENPOSE18.limbs.index((MIRROR[i], MIRROR[j]))]
        np.testing.assert_allclose(found[channel], -pafs[partner, :, ::-1], atol=1e-5)
        np.testing.assert_allclose(found[channel + 1], pafs[partner + 1, :, ::-1], atol=1e-5)


@given(st.integers(0, 2**32 - 1))
def test_values_stay_in_their_ranges(seed: int) -> None:
    rng = np.random.default_rng(seed)
    people = draw_people(rng, 12, (8, 8), spread=10.0)
    heatmaps, pafs = heatmap_targets(people, (8, 8), STRIDE), paf_targets(people, (8, 8), STRIDE)
    assert heatmaps.min() >= 0
    assert heatmaps.max() <= 1
    length = np.hypot(pafs[0::2], pafs[1::2])
    np.testing.assert_allclose(length[length > 0], 1, atol=1e-6)


def test_a_joint_in_the_centre_of_a_cell_has_the_value_one_there() -> None:
    person = np.zeros((18, 3), dtype=np.float32)
    person[4] = (5 * STRIDE + 3.5, 2 * STRIDE + 3.5, 1)
    heatmaps = heatmap_targets([person], (6, 9), STRIDE)
    assert heatmaps[4, 2, 5] == 1
    assert heatmaps[18, 2, 5] == 0
    assert heatmaps[4].sum() == pytest.approx(2 * math.pi * (7 / 8) ** 2, rel=0.02)
    assert not heatmaps[[k for k in range(18) if k != 4]].any()


def test_hidden_joints_count_like_visible_ones_and_unlabelled_ones_do_not_count() -> None:
    seen = draw_people(np.random.default_rng(3), 3, (9, 9))
    hidden = [np.column_stack([p[:, :2], np.minimum(p[:, 2], 1)]).astype(np.float32) for p in seen]
    gone = [np.column_stack([p[:, :2], 0 * p[:, 2]]).astype(np.float32) for p in seen]
    for make in (heatmap_targets, paf_targets):
        np.testing.assert_array_equal(make(seen, (9, 9), STRIDE), make(hidden, (9, 9), STRIDE))
        np.testing.assert_array_equal(make(gone, (9, 9), STRIDE), make([], (9, 9), STRIDE))


def test_without_background_the_joints_maps_are_the_same() -> None:
    people = draw_people(np.random.default_rng(5), 2, (9, 9))
    with_it = heatmap_targets(people, (9, 9), STRIDE)
    np.testing.assert_array_equal(heatmap_targets(people, (9, 9), STRIDE, background=False), with_it[:18])


@pytest.mark.parametrize("make", [heatmap_targets, paf_targets])
def test_broken_keypoints_are_refused(make) -> None:
    with pytest.raises(DataError, match="shape"):
        make([np.zeros((17, 3), dtype=np.float32)], (4, 4), STRIDE)
    with pytest.raises(DataError, match="finite"):
        make([np.full((18, 3), np.nan, dtype=np.float32)], (4, 4), STRIDE)


def test_a_skeleton_without_fields_is_refused() -> None:
    with pytest.raises(DataError, match="coco17"):
        paf_targets([], (4, 4), STRIDE, skeleton=COCO17)


def crossing() -> list[np.ndarray]:
    """Two people, of whom only neck and right shoulder are annotated, whose limbs cross at right angles in a cell."""
    people = []
    for ends in (((3, 4), (7, 4)), ((5, 2), (5, 6))):
        person = np.zeros((18, 3), dtype=np.float32)
        for joint, (x, y) in zip((1, 2), ends, strict=True):
            person[joint] = (x * STRIDE + 3.5, y * STRIDE + 3.5, 2)
        people.append(person)
    return people


def test_overlaps_of_cao_are_the_maximum_and_the_mean_worked_out_by_hand() -> None:
    # Necks at the cells (3, 4) and (5, 2): both are sqrt(2) cells from (4, 3), whose value is exp(-2 * 8^2 / (2 * 7^2))
    # for each. Limbs along x and along y: where they cross the mean is (1/2, 1/2), elsewhere each is alone.
    pose = PoseSpec(height=80)
    size, channel = (80, 80), OPENPOSE18.paf_channels[0]
    one = math.exp(-2 * 64 / (2 * 49))
    cao = PafDecoder(overlap="cao").targets(crossing(), size, pose).outputs
    lightweight = PafDecoder().targets(crossing(), size, pose).outputs
    assert cao["heatmaps"][1, 3, 4] == pytest.approx(one, rel=1e-5)
    assert lightweight["heatmaps"][1, 3, 4] == pytest.approx(2 * one, rel=1e-5)
    assert cao["heatmaps"][18, 3, 4] == pytest.approx(1 - cao["heatmaps"][:18, 3, 4].max(), rel=1e-5)
    assert cao["pafs"][channel : channel + 2, 4, 5].tolist() == [0.5, 0.5]
    assert lightweight["pafs"][channel : channel + 2, 4, 5].tolist() == [0, 1]
    assert cao["pafs"][channel : channel + 2, 4, 7].tolist() == [1, 0]
    assert cao["pafs"][channel : channel + 2, 6, 5].tolist() == [0, 1]
    for name in ("heatmaps", "pafs"):
        for people in (crossing()[:1], []):
            np.testing.assert_array_equal(
                PafDecoder(overlap="cao").targets(people, size, pose).outputs[name],
                PafDecoder().targets(people, size, pose).outputs[name],
            )
    with pytest.raises(UsageError, match="lightweight, cao"):
        PafDecoder(overlap="mean")  # type: ignore[arg-type]


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_overlaps_of_cao_do_not_depend_on_the_order_of_people(seed: int, background: bool) -> None:
    rng = np.random.default_rng(seed)
    people = draw_people(rng, 4, (8, 8), spread=20.0)
    heatmaps = [heatmap_targets([p], (8, 8), STRIDE, background=background) for p in people]
    pafs = [paf_targets([p], (8, 8), STRIDE) for p in people]
    merged, fields = merge_heatmaps(heatmaps, background), merge_pafs(pafs)
    np.testing.assert_array_equal(merge_heatmaps(heatmaps[::-1], background), merged)
    np.testing.assert_allclose(merge_pafs(pafs[::-1]), fields, atol=1e-6)
    assert (merged[:18] <= heatmap_targets(people, (8, 8), STRIDE, background=background)[:18] + 1e-6).all()
    assert np.hypot(fields[0::2], fields[1::2]).max() <= 1 + 1e-6
    if background:
        np.testing.assert_allclose(merged[18], 1 - merged[:18].max(axis=0), atol=1e-6)
