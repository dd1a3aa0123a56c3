from __future__ import annotations

from dataclasses import fields as fields_of
from dataclasses import replace

import numpy as np
import pytest
from crowds import SPEC, STRIDE, blank, fields, line_up, mirror_fields, scatter
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError, UsageError
from compress.pose.decoders.base import Pose
from compress.pose.decoders.paf import PafDecoder
from compress.pose.prepare import Prepared, prepare
from compress.pose.skeleton import OPENPOSE18
from compress.pose.spec import PoseSpec

CELLS = (36, 60)
PLAIN = blank((CELLS[0] * STRIDE, CELLS[1] * STRIDE), CELLS)  # an image of the input's own size
FAST = pytest.param(PafDecoder(), id="fast")
JV = pytest.param(PafDecoder(assignment="jv"), id="jv")
COMPAT = pytest.param(PafDecoder(mode="compat"), id="compat")
MODES = pytest.mark.parametrize("options", [FAST, JV, COMPAT])
FAST_MODES = pytest.mark.parametrize("options", [FAST, JV])


def decode(
    heatmaps: np.ndarray, pafs: np.ndarray, prepared: Prepared, pose: PoseSpec, decoder: PafDecoder | None = None
) -> list[Pose]:
    outputs = {"heatmaps": heatmaps[None], "pafs": pafs[None]}
    (people,) = (decoder or PafDecoder()).decode(outputs, [prepared], pose)
    return people


def joints_of(poses: list[Pose]) -> np.ndarray:
    """Keypoints (N, 18, 3) in an order of their own."""
    stacked = np.array([pose.keypoints for pose in poses]).reshape(-1, 18, 3)
    return stacked[np.lexsort((stacked[:, 1, 1].round(), stacked[:, 1, 0].round()))]


def assert_found(people: list[np.ndarray], poses: list[Pose], tolerance: float) -> None:
    found, expected = joints_of(poses), joints_of([Pose(person, 0.0) for person in people])
    assert found.shape == expected.shape
    assert np.all(found[..., 2] > 0.5)
    assert np.linalg.norm(found[..., :2] - expected[..., :2], axis=-1).max() < tolerance


@FAST_MODES
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 6))
def test_people_come_back_from_their_targets(options: PafDecoder, seed: int, count: int) -> None:
    people = line_up(np.random.default_rng(seed), count, CELLS)
    assert_found(people, decode(*fields(people, CELLS), PLAIN, SPEC, options), STRIDE / 2)


@pytest.mark.parametrize("seed", range(5))
def test_people_come_back_from_the_compatible_decoder(seed: int) -> None:
    # Not any people: it loses a joint whose peak is as high on the next pixel.
    people = line_up(np.random.default_rng(seed), 4, CELLS)
    assert_found(people, decode(*fields(people, CELLS), PLAIN, SPEC, PafDecoder(mode="compat")), STRIDE / 2 + 1)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(60, 500), st.floats(0.5, 2.5))
def test_people_lie_where_they_are_in_the_original_image(seed: int, height: int, aspect: float) -> None:
    image = np.zeros((height, round(height * aspect), 3), np.uint8)
    prepared = prepare(image, SPEC, 240)
    cells = (prepared.array.shape[1] // STRIDE, prepared.array.shape[2] // STRIDE)
    people = line_up(np.random.default_rng(seed), 1, cells)
    (pose,) = decode(*fields(people, cells), prepared, SPEC)
    expected = prepared.to_image(people[0][:, :2])
    assert np.abs(pose.keypoints[:, :2] - expected).max() < STRIDE / 2 / prepared.scale


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_order_of_the_people_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    people = line_up(rng, 5, CELLS)
    shuffled = [people[i] for i in rng.permutation(5)]
    first, second = (joints_of(decode(*fields(p, CELLS), PLAIN, SPEC)) for p in (people, shuffled))
    np.testing.assert_allclose(first, second, atol=1e-3)


@FAST_MODES
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_mirrored_image_has_mirrored_people(options: PafDecoder, seed: int) -> None:
    people = line_up(np.random.default_rng(seed), 3, CELLS)
    heatmaps, pafs = fields(people, CELLS)
    mirrored = [p.keypoints.copy() for p in decode(*mirror_fields(heatmaps, pafs), PLAIN, SPEC, options)]
    for keypoints in mirrored:
        keypoints[:, 0] = CELLS[1] * STRIDE - 1 - keypoints[:, 0]
        keypoints[:] = keypoints[list(OPENPOSE18.flip_order)]
    found = joints_of([Pose(keypoints, 0.0) for keypoints in mirrored])
    expected = joints_of(decode(heatmaps, pafs, PLAIN, SPEC, options))
    np.testing.assert_allclose(found, expected, atol=1e-2)


def test_scores_are_the_sums_over_joints_and_limbs_times_their_number() -> None:
    people = line_up(np.random.default_rng(4), 1, CELLS, jitter=0.0)
    (pose,) = decode(*fields(people, CELLS), PLAIN, SPEC)
    # 18 joints and the 17 limbs of the tree, each at most 1 and nearly so.
    assert pose.score == pytest.approx((18 + 17) * 17, rel=0.1)
    assert pose.keypoints.shape == (18, 3)
    assert pose.keypoints.dtype == np.float32


def test_missing_joints_are_zero() -> None:
    people = line_up(np.random.default_rng(5), 1, CELLS)
    people[0][[4, 10, 13]] = 0
    (pose,) = decode(*fields(people, CELLS), PLAIN, SPEC)
    assert not pose.keypoints[[4, 10, 13]].any()
    assert np.flatnonzero(pose.keypoints[:, 2]).tolist() == [k for k in range(18) if k not in (4, 10, 13)]


@MODES
def test_maps_without_people_give_nobody(options: PafDecoder) -> None:
    heatmaps, pafs = fields([], CELLS)
    assert decode(heatmaps, pafs, PLAIN, SPEC, options) == []
    person = np.zeros((18, 3), np.float32)
    person[0] = (100, 100, 2)
    assert decode(*fields([person], CELLS), PLAIN, SPEC, options) == []
    assert decode(fields([], CELLS)[0], np.ones_like(pafs), PLAIN, SPEC, options) == []


@MODES
def test_noisy_maps_do_not_crash_the_decoder(options: PafDecoder) -> None:
    cells = (10, 12)
    prepared = blank((cells[0] * STRIDE, cells[1] * STRIDE), cells)
    rng = np.random.default_rng(0)
    for heatmaps, pafs in (
        (np.ones((19, *cells)), np.ones((38, *cells))),
        (rng.random((19, *cells)), rng.normal(0, 1, (38, *cells))),
        (rng.normal(0, 1e6, (19, *cells)), rng.normal(0, 1e6, (38, *cells))),
    ):
        for pose in decode(heatmaps, pafs, prepared, SPEC, options):
            assert np.isfinite(pose.keypoints).all()
            assert np.isfinite(pose.score)


@MODES
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_thresholds_hold_for_each_person(options: PafDecoder, seed: int) -> None:
    rng = np.random.default_rng(seed)
    heatmaps, pafs = fields(scatter(rng, 6, CELLS), CELLS, rng, 0.02)
    strict = replace(options, min_parts=6, peak_threshold=0.4, merge=False)
    for pose in decode(heatmaps, pafs, PLAIN, SPEC, strict):
        there = pose.keypoints[:, 2] > 0
        assert there.sum() >= 6
        assert pose.keypoints[there, 2].min() >= 0.4
    loose, tight = (
        decode(heatmaps, pafs, PLAIN, SPEC, replace(options, min_score=score, merge=False)) for score in (0.2, 1.2)
    )
    assert len(tight) <= len(loose)


def test_an_image_of_a_single_cell_can_be_decoded() -> None:
    prepared = blank((8, 8), (1, 1))
    for mode in ("fast", "compat"):
        poses = decode(np.ones((19, 1, 1)), np.ones((38, 1, 1)), prepared, SPEC, PafDecoder(mode=mode))
        assert poses == []


def test_a_network_without_background_is_decoded_alike() -> None:
    people = line_up(np.random.default_rng(6), 2, CELLS)
    heatmaps, pafs = fields(people, CELLS)
    with_it = decode(heatmaps, pafs, PLAIN, SPEC)
    without = decode(heatmaps[:18], pafs, PLAIN, replace(SPEC, background=False))
    np.testing.assert_array_equal(joints_of(without), joints_of(with_it))


def test_maps_are_left_as_they_were() -> None:
    heatmaps, pafs = fields(line_up(np.random.default_rng(6), 2, CELLS), CELLS, np.random.default_rng(1), 0.05)
    copies = heatmaps.copy(), pafs.copy()
    for mode in ("fast", "compat"):
        decode(heatmaps, pafs, PLAIN, SPEC, PafDecoder(mode=mode))
        np.testing.assert_array_equal(heatmaps, copies[0])
        np.testing.assert_array_equal(pafs, copies[1])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    for broken in ("heatmaps", "pafs"):
        maps = dict(zip(("heatmaps", "pafs"), fields([], CELLS), strict=True))
        maps[broken][3, 4, 5] = value
        with pytest.raises(DataError, match=f"{broken}.*finite"):
            decode(maps["heatmaps"], maps["pafs"], PLAIN, SPEC)


def test_maps_of_other_shapes_are_refused() -> None:
    heatmaps, pafs = fields([], CELLS)
    for wrong in (heatmaps[:18], heatmaps[:, 1:], heatmaps[None]):
        with pytest.raises(DataError, match="heatmaps"):
            decode(wrong, pafs, PLAIN, SPEC)
    with pytest.raises(DataError, match="pafs"):
        decode(heatmaps, pafs[:36], PLAIN, SPEC)
    with pytest.raises(DataError, match="coco17"):
        decode(heatmaps, pafs, PLAIN, replace(SPEC, skeleton="coco17"))


@pytest.mark.parametrize(
    "broken",
    [
        {"mode": "slow"}, {"assignment": "hungarian"}, {"upsample": 0}, {"upsample": 9}, {"upsample": 4.0},
        {"max_peaks": 0}, {"peak_threshold": 0.0}, {"peak_threshold": float("nan")}, {"peak_distance": -1.0},
        {"samples": 1}, {"samples": 10.0}, {"paf_threshold": -0.1}, {"paf_share": 1.0}, {"min_parts": 0},
        {"min_score": float("inf")}, {"mode": "compat", "assignment": "jv"},
    ],
    ids=str,
)  # fmt: skip
def test_invalid_options_are_refused(broken: dict) -> None:
    with pytest.raises(UsageError):
        PafDecoder(**broken)


def test_every_option_is_documented() -> None:
    for field in fields_of(PafDecoder):
        assert f"{field.name} : " in (PafDecoder.__doc__ or "")
