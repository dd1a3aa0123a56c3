"""Poses drawn on images."""

from __future__ import annotations

import numpy as np

from compress.pose.skeleton import COCO17, OPENPOSE18, SKELETONS, Skeleton
from compress.reporting.drawing import draw_poses


def person(skeleton: Skeleton, **joints: tuple[float, float, float]) -> np.ndarray:
    found = np.zeros((len(skeleton.joints), 3), np.float32)
    for name, place in joints.items():
        found[skeleton.joints.index(name)] = place
    return found


def test_drawing_changes_only_a_copy_and_only_near_present_joints() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    arm = person(COCO17, left_shoulder=(20, 20, 1), left_elbow=(40, 30, 1))
    drawn = draw_poses(image, [arm], COCO17)
    assert image.max() == 0
    assert drawn[20, 20].max() > 0
    assert drawn[25, 30].max() > 0
    assert drawn[60:, :].max() == 0


def test_joints_with_low_scores_and_their_limbs_are_left_out() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    arm = person(COCO17, left_shoulder=(20, 20, 0.9), left_elbow=(80, 80, 0.1))
    assert draw_poses(image, [arm], COCO17, above=0.2)[40:, 40:].max() == 0
    assert draw_poses(image, [arm], COCO17)[40:, 40:].max() > 0


def test_limbs_are_wider_in_larger_people() -> None:
    widths = []
    for length in (60, 480):
        image = np.zeros((600, 600, 3), np.uint8)
        arm = person(COCO17, left_hip=(300, 50, 1), left_knee=(300, 50 + length, 1))
        widths.append(int((draw_poses(image, [arm], COCO17)[50 + length // 2].max(axis=1) > 0).sum()))
    assert 1 <= widths[0] < widths[1] < 30


def test_left_and_right_arms_and_legs_have_different_colours() -> None:
    colours = set()
    for a, b in (("shoulder", "elbow"), ("hip", "knee")):
        for side in ("left", "right"):
            image = np.zeros((100, 100, 3), np.uint8)
            limb = person(COCO17, **{f"{side}_{a}": (50, 10, 1), f"{side}_{b}": (50, 90, 1)})
            colours.add(tuple(draw_poses(image, [limb], COCO17)[50, 50].tolist()))
    assert len(colours) == 4


def test_limbs_that_serve_grouping_only_are_not_drawn() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    joints = {"left_shoulder": (50.0, 90.0, 1.0), "left_ear": (50.0, 10.0, 1.0)}
    assert draw_poses(image, [person(OPENPOSE18, **joints)], OPENPOSE18)[50].max() == 0
    assert draw_poses(image, [person(COCO17, **joints)], COCO17)[50].max() > 0


def test_every_skeleton_can_be_drawn_far_outside_and_with_labels() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    rng = np.random.default_rng(0)
    for skeleton in SKELETONS.values():
        crowd = [rng.uniform(-1e7, 1e7, (len(skeleton.joints), 3)).astype(np.float32) for _ in range(3)]
        nobody = np.zeros_like(crowd[0])
        assert draw_poses(image, [*crowd, nobody], skeleton, labels=["1", "2", "3", "4"]).shape == image.shape
    middle = person(COCO17, nose=(30, 20, 1))
    assert draw_poses(image, [middle], COCO17, labels=["0.9"]).sum() > draw_poses(image, [middle], COCO17).sum()
