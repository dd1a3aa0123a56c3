"""Displacement of one network's people against another's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from compress.pose.decoders.base import Pose
from compress.pose.metrics.displacement import MIN_ASPECT, areas_of, compare_people, joint_sigmas, summarise
from compress.pose.metrics.oks import oks
from compress.pose.skeleton import COCO17, LIP16, LSP14, MPII16, OPENPOSE18, Skeleton

SKELETONS = [COCO17, OPENPOSE18]


def people(skeleton: Skeleton, count: int, seed: int = 0, height: float = 200.0) -> list[Pose]:
    """People side by side, their joints anywhere in their boxes."""
    rng = np.random.default_rng(seed)
    corners = np.arange(count)[:, None] * np.array([500.0, 0.0])
    points = corners[:, None] + rng.uniform(0, 1, (count, len(skeleton.joints), 2)) * [height / 2, height]
    return [Pose(np.column_stack([p, np.ones(len(p))]).astype(np.float32), 1.0) for p in points]


def shifted(pose: Pose, by: tuple[float, float], missing: tuple[int, ...] = ()) -> Pose:
    keypoints = pose.keypoints + np.array([*by, 0.0], dtype=np.float32)
    keypoints[list(missing)] = 0
    return Pose(keypoints, pose.score)


def box_area(keypoints: NDArray[np.float32]) -> float:
    width, height = np.ptp(keypoints[:, :2], axis=0)
    return float(max(width, MIN_ASPECT * height) * max(height, MIN_ASPECT * width))


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda s: s.name)
def test_equal_people_in_any_order_have_not_moved(skeleton: Skeleton) -> None:
    wanted = people(skeleton, 4)
    found = summarise([compare_people(wanted, wanted[::-1], skeleton)], skeleton)
    assert (found.people, found.lost_people, found.new_people, found.lost_joints) == (4, 0, 0, 0)
    assert found.joints == 4 * len(skeleton.joints)
    assert (found.pixels, found.loss) == (0.0, 0.0)
    assert set(found.joint_loss) == {0.0}


@pytest.mark.parametrize("skeleton", SKELETONS, ids=lambda s: s.name)
def test_a_common_shift_is_the_displacement_of_every_joint(skeleton: Skeleton) -> None:
    wanted = people(skeleton, 3)
    found = summarise([compare_people(wanted, [shifted(p, (3.0, -4.0)) for p in wanted], skeleton)], skeleton)
    assert found.pixels == pytest.approx(5.0, rel=1e-5)
    assert found.joint_pixels == pytest.approx([5.0] * len(skeleton.joints), rel=1e-5)
    assert 0 < found.loss < 1
    assert found.loss == pytest.approx(np.mean(found.joint_loss))


@given(st.integers(0, 2**31), st.floats(0, 30))
def test_the_loss_is_one_less_the_similarity_of_coco(seed: int, spread: float) -> None:
    (wanted,) = people(COCO17, 1, seed)
    rng = np.random.default_rng(seed + 1)
    moved = wanted.keypoints.copy()
    moved[:, :2] += rng.normal(0, spread, (17, 2)).astype(np.float32)
    similarity = oks(moved[None], wanted.keypoints[None], [box_area(wanted.keypoints)], [[0, 0, 1, 1]])[0, 0]
    found = summarise([compare_people([wanted], [Pose(moved, 1.0)], COCO17)], COCO17)
    # Below the least similarity the two are no longer the same person, and every joint is lost.
    assert found.loss == pytest.approx(1 - similarity if similarity >= 0.1 else 1.0, abs=1e-6)
    assert found.lost_people == (similarity < 0.1)


def test_a_lost_joint_counts_as_loss_1_and_has_no_displacement() -> None:
    (wanted,) = people(OPENPOSE18, 1)
    moved = compare_people([wanted], [shifted(wanted, (0.0, 2.0), missing=(4, 7))], OPENPOSE18)
    found = summarise([moved], OPENPOSE18)
    assert (found.lost_joints, found.lost_people, found.joints) == (2, 0, 18)
    assert found.joint_loss[4] == found.joint_loss[7] == 1
    assert math.isnan(found.joint_pixels[4])
    assert found.pixels == pytest.approx(2.0, rel=1e-5)


def test_a_joint_that_the_original_lacks_does_not_count() -> None:
    (whole,) = people(OPENPOSE18, 1)
    wanted = shifted(whole, (0.0, 0.0), missing=(0, 17))
    found = summarise([compare_people([wanted], [whole], OPENPOSE18)], OPENPOSE18)
    assert (found.joints, found.lost_joints, found.loss) == (16, 0, 0.0)
    assert math.isnan(found.joint_loss[0])


def test_lost_and_new_people_are_counted_separately() -> None:
    wanted = people(COCO17, 3)
    stranger = shifted(wanted[0], (0.0, 5000.0))
    moved = compare_people(wanted, [wanted[2], stranger, wanted[0]], COCO17)
    assert (moved.lost, moved.new) == (1, 1)
    assert np.isnan(moved.pixels[1]).all()
    assert (moved.loss[1] == 1).all()
    assert summarise([moved], COCO17).loss == pytest.approx(1 / 3)


@pytest.mark.parametrize(("wanted", "given_people"), [(0, 0), (0, 2), (2, 0)])
def test_images_without_people(wanted: int, given_people: int) -> None:
    found = compare_people(people(COCO17, wanted), people(COCO17, given_people), COCO17)
    assert (found.lost, found.new) == (wanted, given_people)
    whole = summarise([found], COCO17)
    assert whole.people == wanted
    assert math.isnan(whole.pixels)
    assert math.isnan(whole.loss) == (wanted == 0)


def test_low_scores_are_ignored_in_the_original_but_not_in_the_changed_network() -> None:
    (wanted,) = people(COCO17, 1)
    scores = np.where(np.arange(17) < 10, 0.9, 0.1).astype(np.float32)
    unsure = Pose(np.column_stack([wanted.keypoints[:, :2], scores]), 1.0)
    found = summarise([compare_people([unsure], [unsure], COCO17, seen=0.2)], COCO17)
    assert (found.joints, found.lost_joints) == (10, 0)
    nobody = Pose(np.column_stack([wanted.keypoints[:, :2], scores * 0.1]), 1.0)
    assert summarise([compare_people([nobody], [unsure], COCO17, seen=0.2)], COCO17).people == 0


def test_joints_of_all_images_have_equal_weight() -> None:
    one, many = people(COCO17, 1), people(COCO17, 3)
    images = [
        compare_people(one, [shifted(one[0], (8.0, 0.0))], COCO17),
        compare_people(many, many, COCO17),
        compare_people([], [], COCO17),
    ]
    assert summarise(images, COCO17).pixels == pytest.approx(2.0, rel=1e-5)


def test_the_same_shift_costs_a_larger_person_less() -> None:
    losses = []
    for height in (50.0, 100.0, 400.0):
        wanted = people(COCO17, 1, height=height)
        losses.append(summarise([compare_people(wanted, [shifted(wanted[0], (4.0, 0.0))], COCO17)], COCO17).loss)
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_a_person_whose_joints_lie_on_a_line_has_an_area() -> None:
    line = np.stack([np.zeros(5), np.linspace(0, 100, 5)], axis=1)[None]
    there = np.ones((1, 5), dtype=bool)
    assert areas_of(line, there) == pytest.approx([100 * 100 * MIN_ASPECT])
    assert areas_of(line, ~there) > 0


@pytest.mark.parametrize("skeleton", [COCO17, OPENPOSE18, MPII16, LIP16, LSP14], ids=lambda s: s.name)
def test_every_joint_has_a_sigma_and_those_of_coco_are_cocos(skeleton: Skeleton) -> None:
    sigmas = joint_sigmas(skeleton)
    assert sigmas.shape == (len(skeleton.joints),)
    shared = [joint for joint in skeleton.joints if joint in COCO17.joints]
    assert [sigmas[skeleton.joints.index(j)] for j in shared] == [COCO17.sigmas[COCO17.joints.index(j)] for j in shared]
    assert sigmas.min() > 0
