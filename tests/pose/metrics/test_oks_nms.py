"""Suppression of people that are almost the same."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.pose.decoders.base import Pose
from compress.pose.metrics.oks import oks, oks_nms
from compress.pose.skeleton import COCO17


def crowd(seed: int, count: int, spread: float) -> tuple[list[Pose], np.ndarray]:
    rng = np.random.default_rng(seed)
    base = rng.random((17, 2)) * 100
    poses = []
    for _ in range(count):
        points = np.ones((17, 3), np.float32)
        points[:, :2] = base + rng.normal(0, spread, 2)
        poses.append(Pose(points, float(rng.random())))
    return poses, np.full(count, 9000.0)


def similarity(a: Pose, b: Pose, area: float) -> float:
    return float(oks(a.keypoints[None], b.keypoints[None], [area], [[0, 0, 1, 1]])[0, 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 7), st.sampled_from([0.5, 2.0, 6.0]), st.sampled_from([0.5, 0.9]))
def test_kept_people_differ_and_each_removed_one_is_similar_to_a_better_one(
    seed: int, count: int, spread: float, threshold: float
) -> None:
    poses, areas = crowd(seed, count, spread)
    kept = oks_nms(poses, areas, COCO17.sigmas, threshold)
    assert [poses[k].score for k in kept] == sorted((poses[k].score for k in kept), reverse=True)
    assert len(set(kept)) == len(kept)
    for index, pose in enumerate(poses):
        better = [k for k in kept if poses[k].score > pose.score]
        alike = [similarity(pose, poses[k], 9000) > threshold for k in better]
        assert any(alike) == (index not in kept)


def test_the_similarity_takes_the_mean_of_both_areas() -> None:
    poses, _ = crowd(0, 1, 0)
    near = poses[0].keypoints.copy()
    near[:, 0] += 6
    pair = [Pose(poses[0].keypoints, 1.0), Pose(near, 0.5)]
    limit = similarity(pair[0], pair[1], 5000)
    assert oks_nms(pair, [2000, 8000], COCO17.sigmas, limit - 1e-6) == [0]
    assert oks_nms(pair, [2000, 8000], COCO17.sigmas, limit + 1e-6) == [0, 1]
