"""Coordinates as they are: every order, unit and score, there and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError, UsageError
from compress.pose.crop import Crop
from compress.pose.decoders.points import PointsDecoder
from compress.pose.skeleton import COCO17
from compress.pose.spec import PoseSpec

SIZE = (64, 48)
DECODERS = st.builds(
    PointsDecoder, order=st.sampled_from(["xy", "yx"]), normalized=st.booleans(), score=st.just("none")
)
CROP = Crop(np.zeros((3, *SIZE), np.float32), np.array([[2.0, 0, 5], [0, 2.0, -7]]))


def pose_of(grid: str = "centre") -> PoseSpec:
    return PoseSpec(skeleton="coco17", decoder="points", height=SIZE[0], width=SIZE[1], stride=1, grid=grid)


def random_person(seed: int) -> np.ndarray:
    person = np.full((17, 3), 2, np.float32)
    person[:, :2] = np.random.default_rng(seed).uniform((0, 0), (SIZE[1] - 1, SIZE[0] - 1), (17, 2))
    person[2] = 0
    return person


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), decoder=DECODERS, grid=st.sampled_from(["corner", "centre"]))
def test_joints_come_back_from_their_targets(seed: int, decoder: PointsDecoder, grid: str) -> None:
    pose, person = pose_of(grid), random_person(seed)
    targets = decoder.targets([person], SIZE, pose)
    points = targets.outputs["points"]
    assert points.shape == (17, 2)
    assert targets.weight[:, 0].tolist() == pytest.approx([0 if k == 2 else 1 for k in range(17)])
    if decoder.normalized:
        assert points.min() >= 0
        assert points.max() <= 1
    ((found,),) = decoder.decode({"points": points[None]}, [CROP], pose)
    there = person[:, 2] > 0
    np.testing.assert_allclose(found.keypoints[there, :2] * 2 + (5, -7), person[there, :2], atol=1e-3)
    assert (found.keypoints[:, 2] == 1).all()
    assert found.score == 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), decoder=DECODERS, grid=st.sampled_from(["corner", "centre"]))
def test_points_of_the_mirrored_crop_turn_back(seed: int, decoder: PointsDecoder, grid: str) -> None:
    pose, person = pose_of(grid), random_person(seed)
    person[2] = person[1]
    mirrored = person[list(COCO17.flip_order)]
    mirrored[:, 0] = SIZE[1] - 1 - mirrored[:, 0]
    plain, flipped = ({"points": decoder.targets([p], SIZE, pose).outputs["points"][None]} for p in (person, mirrored))
    merged = decoder.merge_mirrored(plain, flipped, pose, SIZE)
    np.testing.assert_allclose(merged["points"], plain["points"], atol=1e-3)


def test_scores_are_read_as_they_are_or_through_a_sigmoid() -> None:
    pose = pose_of("corner")
    points = np.zeros((1, 1, 17, 3), np.float32)  # an axis of size 1 as in MoveNet
    points[..., 0], points[..., 1] = 0.5, 0.25
    points[..., 2] = np.linspace(-4, 4, 17)
    ((raw,),) = PointsDecoder(order="yx").decode({"points": points}, [CROP], pose)
    ((smooth,),) = PointsDecoder(order="yx", score="sigmoid").decode({"points": points}, [CROP], pose)
    assert raw.keypoints[-1].tolist() == [(12 - 5) / 2, (32 + 7) / 2, 4]
    assert not raw.keypoints[:9].any()
    np.testing.assert_allclose(smooth.keypoints[:, 2], 1 / (1 + np.exp(-points[0, 0, :, 2])), rtol=1e-5)
    flat = {"points": points.reshape(1, -1)}
    ((again,),) = PointsDecoder(order="yx").decode(flat, [CROP], pose)
    np.testing.assert_array_equal(again.keypoints, raw.keypoints)


@pytest.mark.parametrize("shape", [(1, 17, 2), (1, 16, 3), (1, 17, 4), (2, 17, 3), (1, 17)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="points"):
        PointsDecoder().decode({"points": np.ones(shape, np.float32)}, [CROP], pose_of())


@pytest.mark.parametrize("broken", [{"order": "zy"}, {"normalized": 1}, {"score": "softmax"}], ids=str)
def test_invalid_options_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="points decoder"):
        PointsDecoder(**broken)


def test_scores_have_no_targets() -> None:
    with pytest.raises(UsageError, match=r"no training targets.*distillation"):
        PointsDecoder().targets([random_person(0)], SIZE, pose_of())
