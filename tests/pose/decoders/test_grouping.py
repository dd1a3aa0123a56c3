from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from crowds import STRIDE, fields, line_up, scatter
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from compress.pose.decoders.grouping import Limbs, Pairs, assign, candidate_pairs, group
from compress.pose.decoders.limbs import min_count, score_limbs
from compress.pose.decoders.peaks import Peaks
from compress.pose.skeleton import OPENPOSE18

LIMBS = len(OPENPOSE18.limbs)


def some_peaks(rng: np.random.Generator, most: int, cells: tuple[int, int]) -> Peaks:
    """Peaks anywhere, also a little outside, two of them at one place."""
    counts = rng.integers(0, most + 1, 18)
    points = rng.uniform(-0.5, (cells[1] - 0.5, cells[0] - 0.5), (counts.sum(), 2)).astype(np.float32)
    if len(points) > 1:
        points[-1] = points[0]
    return Peaks(points, rng.random(len(points)).astype(np.float32), np.concatenate([[0], np.cumsum(counts)]))


def some_limbs(rng: np.random.Generator, ends: int) -> Limbs:
    """Limbs of one kind between so many peaks at either end."""
    first, second = np.nonzero(rng.random((ends, ends)) < 0.6)
    kind = np.zeros(len(first), dtype=np.int64)
    return Limbs(Pairs(kind, first, second + ends), rng.uniform(0.05, 1, len(first)).astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([(2, 0.0), (5, 0.5), (10, 0.8), (10, 0.3)]))
def test_limbs_are_scored_like_one_by_one(seed: int, how: tuple[int, float]) -> None:
    (samples, share), rng, cells = how, np.random.default_rng(seed), (9, 14)
    _, pafs = fields(scatter(rng, 6, cells), cells, rng, 0.05)
    peaks = some_peaks(rng, 4, cells)
    limbs = score_limbs(pafs, peaks, OPENPOSE18, samples=samples, threshold=0.05, share=share)
    found = {key: float(score) for *key, score in zip(
        limbs.pairs.limb.tolist(), limbs.pairs.first.tolist(), limbs.pairs.second.tolist(), limbs.score, strict=True
    ) for key in [tuple(key)]}  # fmt: skip
    for index, ((j, k), channel) in enumerate(zip(OPENPOSE18.limbs, OPENPOSE18.paf_channels, strict=True)):
        for a in range(peaks.starts[j], peaks.starts[j + 1]):
            for b in range(peaks.starts[k], peaks.starts[k + 1]):
                along = (peaks.points[b] - peaks.points[a]).astype(np.float64)
                unit = along / max(np.linalg.norm(along), 1e-30)
                limits = np.array(cells[::-1]) - 1
                start, stop = (np.clip(peaks.points[p], 0, limits) for p in (a, b))
                points = np.array([start + (stop - start) * t / (samples - 1) for t in range(samples)])
                x, y = (map_coordinates(pafs[channel + c], points.T[::-1], order=1, mode="nearest") for c in (0, 1))
                values = x * unit[0] + y * unit[1]
                if np.any(np.abs(values - 0.05) < 1e-5):
                    continue  # rounding decides
                counted = values[values > 0.05]
                good = len(counted) / samples > share
                assert ((index, a, b) in found) == good
                if good:
                    assert found[index, a, b] == pytest.approx(counted.mean(), abs=1e-4)


@given(st.integers(2, 40), st.fractions(0, 1).filter(lambda share: share < 1))
def test_the_smallest_count_above_a_share(samples: int, share) -> None:
    count = min_count(samples, float(share))
    assert count / samples > float(share)
    assert count == 1 or (count - 1) / samples <= float(share)


@given(st.integers(0, 2**32 - 1))
def test_candidates_are_all_pairs_of_the_limbs_joints(seed: int) -> None:
    peaks = some_peaks(np.random.default_rng(seed), 3, (10, 10))
    pairs = candidate_pairs(peaks, OPENPOSE18)
    expected = [
        (index, a, b)
        for index, (j, k) in enumerate(OPENPOSE18.limbs)
        for a in range(peaks.starts[j], peaks.starts[j + 1])
        for b in range(peaks.starts[k], peaks.starts[k + 1])
    ]
    assert list(zip(pairs.limb.tolist(), pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_no_end_is_used_twice_and_the_largest_sum_is_not_below_the_greedy_one(seed: int, ends: int) -> None:
    limbs = some_limbs(np.random.default_rng(seed), ends)
    sums = {}
    for method in ("greedy", "jv"):
        taken, *others = assign(limbs, OPENPOSE18, method)
        assert len(others) == LIMBS - 1
        assert not any(others)
        assert len({a for a, _, _ in taken}) == len({b for _, b, _ in taken}) == len(taken)
        known = set(zip(limbs.pairs.first.tolist(), limbs.pairs.second.tolist(), limbs.score.tolist(), strict=True))
        assert set(taken) <= known
        assert [score for *_, score in taken] == sorted((score for *_, score in taken), reverse=True)
        sums[method] = sum(score for *_, score in taken)
    assert sums["jv"] >= sums["greedy"] - 1e-6


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_the_largest_sum_is_the_largest_of_all(seed: int, ends: int) -> None:
    limbs = some_limbs(np.random.default_rng(seed), ends)
    gain = np.zeros((ends, ends))
    gain[limbs.pairs.first, limbs.pairs.second - ends] = limbs.score
    best = max(gain[range(ends), order].sum() for order in permutations(range(ends)))
    taken = assign(limbs, OPENPOSE18, "jv")[0]
    assert sum(score for *_, score in taken) == pytest.approx(best)


def test_equal_limbs_go_to_the_first_peaks() -> None:
    pairs = Pairs(np.zeros(4, np.int64), np.array([0, 0, 1, 1]), np.array([2, 3, 2, 3]))
    taken = assign(Limbs(pairs, np.full(4, 0.5, np.float32)), OPENPOSE18, "greedy")[0]
    assert taken == [(0, 2, 0.5), (1, 3, 0.5)]


def connect(*limbs: tuple[str, str, int, int]) -> list[list[tuple[int, int, float]]]:
    """Connections of score 1 by joint names and peaks."""
    connections: list[list[tuple[int, int, float]]] = [[] for _ in range(LIMBS)]
    for first, second, a, b in limbs:
        pair = (OPENPOSE18.joints.index(first), OPENPOSE18.joints.index(second))
        connections[OPENPOSE18.limbs.index(pair)].append((a, b, 1.0))
    return connections


BODY = (("neck", "right_shoulder", 0, 1), ("right_shoulder", "right_elbow", 1, 2))
HEAD = (("nose", "right_eye", 3, 4), ("right_eye", "right_ear", 4, 5))
BRIDGE = ("right_shoulder", "right_ear", 1, 5)
HEIGHTS = np.full(9, 0.5, np.float32)


def members(entry) -> dict[str, int]:
    return {joint: peak for joint, peak in zip(OPENPOSE18.joints, entry.peaks, strict=True) if peak >= 0}


def test_an_extended_person_counts_new_joints_and_limbs() -> None:
    (entry,) = group(connect(*BODY), HEIGHTS, OPENPOSE18, merge=True)
    assert members(entry) == {"neck": 0, "right_shoulder": 1, "right_elbow": 2}
    assert (entry.parts, entry.total) == (3, 3 * 0.5 + 2)


def test_a_head_and_a_body_are_merged_only_if_that_is_allowed() -> None:
    (one,) = group(connect(*BODY, *HEAD, BRIDGE), HEIGHTS, OPENPOSE18, merge=True)
    expected = {"neck": 0, "right_shoulder": 1, "right_elbow": 2, "nose": 3, "right_eye": 4, "right_ear": 5}
    assert members(one) == expected
    assert (one.parts, one.total) == (6, 6 * 0.5 + 4)
    body, head = group(connect(*BODY, *HEAD, BRIDGE), HEIGHTS, OPENPOSE18, merge=False)
    assert members(body) == {"neck": 0, "right_shoulder": 1, "right_elbow": 2, "right_ear": 5}
    assert members(head) == {"right_shoulder": 1, "nose": 3, "right_eye": 4, "right_ear": 5}
    assert body.parts == head.parts == 3  # what closing limbs add does not count


def test_people_with_a_common_joint_are_not_merged() -> None:
    connections = connect(*BODY, ("neck", "nose", 0, 6), *HEAD, BRIDGE)
    body, head = group(connections, HEIGHTS, OPENPOSE18, merge=True)
    assert members(body) == {"neck": 0, "right_shoulder": 1, "right_elbow": 2, "nose": 6}
    assert members(head) == {"nose": 3, "right_eye": 4, "right_ear": 5}


@pytest.mark.parametrize("merge", [True, False])
def test_a_closing_limb_fills_a_missing_end_without_a_score_and_starts_nobody(merge: bool) -> None:
    (entry,) = group(connect(*BODY, ("right_shoulder", "right_ear", 1, 7)), HEIGHTS, OPENPOSE18, merge=merge)
    assert members(entry)["right_ear"] == 7
    assert (entry.parts, entry.total) == (3, 3 * 0.5 + 2)
    (entry,) = group(connect(*HEAD, ("right_shoulder", "right_ear", 7, 5)), HEIGHTS, OPENPOSE18, merge=merge)
    assert members(entry)["right_shoulder"] == 7
    assert group(connect(("right_shoulder", "right_ear", 7, 8)), HEIGHTS, OPENPOSE18, merge=merge) == []


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_merged_people_share_no_peak(seed: int, jv: bool) -> None:
    rng = np.random.default_rng(seed)
    peaks = some_peaks(rng, 5, (12, 12))
    pairs = candidate_pairs(peaks, OPENPOSE18)
    pairs = pairs.keep(rng.random(len(pairs.limb)) < 0.4)
    limbs = Limbs(pairs, rng.uniform(0.1, 1, len(pairs.limb)).astype(np.float32))
    entries = group(assign(limbs, OPENPOSE18, "jv" if jv else "greedy"), peaks.scores, OPENPOSE18, merge=True)
    used = [peak for entry in entries for peak in entry.peaks if peak >= 0]
    assert len(used) == len(set(used))
    for entry in entries:
        for joint, peak in enumerate(entry.peaks):
            assert peak < 0 or peaks.starts[joint] <= peak < peaks.starts[joint + 1]


def test_both_assignments_agree_on_people_that_do_not_overlap() -> None:
    rng, cells = np.random.default_rng(2), (30, 60)
    people = line_up(rng, 5, cells)
    order = np.argsort([p[0, 0] for p in people])
    points = np.concatenate([[people[i][k, :2] for i in order] for k in range(18)])
    peaks = Peaks(((points - 3.5) / STRIDE).astype(np.float32), np.ones(90, np.float32), np.arange(19) * 5)
    limbs = score_limbs(fields(people, cells)[1], peaks, OPENPOSE18, samples=10, threshold=0.05, share=0.8)
    for method in ("greedy", "jv"):
        entries = group(assign(limbs, OPENPOSE18, method), peaks.scores, OPENPOSE18, merge=True)
        assert sorted(entry.peaks for entry in entries) == [[5 * k + i for k in range(18)] for i in range(5)]
