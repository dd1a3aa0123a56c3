"""Drawn people: determinism, anatomy and annotations."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from compress.data.drawn.body import LIMITS, POSES, Proportions, clip_angles, draw_pose, draw_proportions, mirror_angles
from compress.data.drawn.body import pose_body as pose
from compress.data.drawn.clothes import draw_outfit
from compress.data.drawn.person import Camera, Painting, paint_person
from compress.data.drawn.shapes import Light
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError
from compress.pose.skeleton import COCO17

JOINT = {name: index for index, name in enumerate(COCO17.joints)}
FACING = np.diag([1.0, -1.0, -1.0])  # the person looks into the camera
AWAY = np.diag([-1.0, -1.0, 1.0])


@pytest.fixture(scope="module")
def samples():
    people = DrawnPeople(seed=7, count=48)
    return [people[index] for index in range(len(people))]


def paint(turn: np.ndarray, angles: dict[str, float], size: int = 256) -> Painting:
    rng = np.random.default_rng(0)
    shape = Proportions()
    camera = Camera(turn, distance=5.0, scale=0.8 * size, x=size / 2, y=size / 2)
    light = Light(np.array([0.0, -0.6, -0.8]), ambient=0.5)
    painting = paint_person(rng, pose(shape, angles), shape, draw_outfit(rng), camera, (size, size), light)
    assert painting is not None
    return painting


def same(a, b) -> bool:
    return (
        np.array_equal(a.image, b.image)
        and len(a.people) == len(b.people)
        and all(np.array_equal(p.keypoints, q.keypoints) for p, q in zip(a.people, b.people, strict=True))
    )


def test_a_sample_depends_only_on_seed_and_index():
    first = DrawnPeople(seed=3, count=50)
    forwards = [first[index] for index in (4, 9, 17)]
    np.random.seed(5)  # noqa: NPY002 - global state must not matter
    second = DrawnPeople(seed=3, count=18)
    second.ground_truth()
    backwards = [second[index] for index in (17, 9, 4)][::-1]
    assert all(same(a, b) for a, b in zip(forwards, backwards, strict=True))


def test_another_seed_or_index_gives_another_image():
    one, other = DrawnPeople(seed=0, count=2), DrawnPeople(seed=1, count=2)
    assert not same(one[0], other[0])
    assert not same(one[0], one[1])


def test_samples_follow_the_protocol():
    people = DrawnPeople(seed=2, count=3, size=(128, 192))
    sample = people[2]
    assert (people.name, people.annotated, len(people)) == ("synthetic:2:3", True, 3)
    assert sample.image.shape == (128, 192, 3)
    assert sample.image.dtype == np.uint8
    assert sample.mask.shape == (128, 192)
    assert sample.mask.dtype == np.bool_
    assert (sample.image_id, sample.skeleton) == (3, "coco17")
    with pytest.raises(IndexError):
        people[3]


def test_labelled_keypoints_lie_in_the_image_and_others_are_zero(samples):
    for sample in samples:
        height, width = sample.image.shape[:2]
        for person in sample.people:
            assert person.keypoints.shape == (17, 3)
            x, y, visible = person.keypoints.T
            labelled = visible > 0
            assert np.isin(visible, (0, 1, 2)).all()
            assert ((x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1))[labelled].all()
            assert not person.keypoints[~labelled].any()


def test_boxes_hold_the_visible_keypoints_and_the_area(samples):
    for sample in samples:
        height, width = sample.image.shape[:2]
        for person in sample.people:
            left, top, wide, high = person.box
            assert left >= 0
            assert top >= 0
            assert left + wide <= width
            assert top + high <= height
            assert 0 < person.area <= wide * high
            x, y, visible = person.keypoints.T
            seen = visible == 2
            assert seen.any()
            assert (x[seen] >= left - 2).all()
            assert (x[seen] <= left + wide + 1).all()
            assert (y[seen] >= top - 2).all()
            assert (y[seen] <= top + high + 1).all()


def test_one_to_six_people_and_all_visibilities_occur(samples):
    assert {len(sample.people) for sample in samples} >= {1, 2, 3, 4, 5, 6}
    joints = np.concatenate([person.keypoints for sample in samples for person in sample.people])
    assert set(np.unique(joints[:, 2])) == {0.0, 1.0, 2.0}
    # Training needs visible joints far more than guessed ones.
    assert (joints[:, 2] == 2).mean() > 0.5


def test_people_too_small_to_label_are_masked_out():
    people = DrawnPeople(seed=11, count=400, size=(96, 96))
    sample = next(sample for sample in map(people.__getitem__, range(400)) if not sample.mask.all())
    assert sample.mask.mean() > 0.9
    for person in sample.people:  # annotated people are not masked out
        seen = np.rint(person.keypoints[person.keypoints[:, 2] == 2]).astype(int)
        assert sample.mask[seen[:, 1], seen[:, 0]].mean() > 0.8


def test_the_left_of_a_person_facing_the_camera_is_on_the_right():
    front, back = paint(FACING, {}).keypoints, paint(AWAY, {}).keypoints
    for joint in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle", "ear"):
        left, right = JOINT[f"left_{joint}"], JOINT[f"right_{joint}"]
        assert front[left, 0] > front[right, 0]
        assert back[left, 0] < back[right, 0]


def test_the_face_is_labelled_only_from_the_front():
    face = [JOINT[name] for name in ("nose", "left_eye", "right_eye")]
    assert (paint(FACING, {}).keypoints[face, 2] == 2).all()
    assert (paint(AWAY, {}).keypoints[face, 2] == 0).all()


def test_an_arm_behind_the_body_is_labelled_as_occluded():
    angles = {"left_shoulder_swing": -30, "left_shoulder_turn": -85, "left_elbow": 90}
    wrist = JOINT["left_wrist"]
    assert paint(FACING, angles).keypoints[wrist, 2] == 1
    assert paint(AWAY, angles).keypoints[wrist, 2] == 2


def test_joints_lie_on_the_painted_body():
    painting = paint(FACING, {"left_shoulder_raise": 90, "left_elbow": 40, "right_hip_spread": 30})
    for x, y, visible in painting.keypoints:
        assert visible == 2
        assert painting.cover[round(y) - painting.top, round(x) - painting.left] > 0.5


@given(st.integers(0, 10_000), st.sampled_from(sorted(POSES)))
@settings(max_examples=60, deadline=None)
def test_poses_respect_the_limits_of_joints(seed, kind):
    angles = draw_pose(np.random.default_rng(seed), kind)
    for name, value in angles.items():
        low, high = LIMITS[name.removeprefix("left_").removeprefix("right_")]
        assert low <= value <= high
    assert angles == clip_angles(angles)


@given(st.integers(0, 10_000), st.sampled_from(sorted(POSES)))
@settings(max_examples=60, deadline=None)
def test_bones_keep_their_lengths_in_any_pose(seed, kind):
    rng = np.random.default_rng(seed)
    shape = draw_proportions(rng)
    body = pose(shape, draw_pose(rng, kind))
    bones = {
        ("shoulder", "elbow"): shape.upper_arm, ("elbow", "wrist"): shape.forearm, ("wrist", "fingers"): shape.hand,
        ("hip", "knee"): shape.thigh, ("knee", "ankle"): shape.shin, ("heel", "toe"): shape.foot,
    }  # fmt: skip
    for side in ("left", "right"):
        for (first, last), length in bones.items():
            bone = body.points[f"{side}_{first}"] - body.points[f"{side}_{last}"]
            assert np.linalg.norm(bone) == pytest.approx(length, abs=1e-9)
    across = body.points["left_shoulder"] - body.points["right_shoulder"]
    assert np.linalg.norm(across) == pytest.approx(2 * shape.shoulders, abs=1e-9)
    for frame in body.frames.values():
        assert np.allclose(frame @ frame.T, np.eye(3), atol=1e-9)
        assert np.linalg.det(frame) == pytest.approx(1)


@given(st.integers(0, 10_000), st.sampled_from(sorted(POSES)))
@settings(max_examples=30, deadline=None)
def test_a_mirrored_pose_is_the_mirror_image(seed, kind):
    angles = draw_pose(np.random.default_rng(seed), kind)
    body, mirrored = pose(Proportions(), angles), pose(Proportions(), mirror_angles(angles))
    for name, point in body.points.items():
        other = {"left": "right", "right": "left"}
        side, _, rest = name.partition("_")
        twin = f"{other[side]}_{rest}" if side in other else name
        assert np.allclose(mirrored.points[twin], point * (-1, 1, 1), atol=1e-9)


def test_ground_truth_agrees_with_the_samples(samples):
    record = DrawnPeople(seed=7, count=20).ground_truth()
    expected = [(sample.image_id, person) for sample in samples[:20] for person in sample.people]
    assert len(record["annotations"]) == len(expected)
    for annotation, (image_id, person) in zip(record["annotations"], expected, strict=True):
        assert annotation["image_id"] == image_id
        assert annotation["area"] == person.area
        assert annotation["bbox"] == person.box.tolist()
        assert annotation["num_keypoints"] == (person.keypoints[:, 2] > 0).sum()
        assert np.allclose(np.reshape(annotation["keypoints"], (17, 3)), person.keypoints, atol=0.006)


def test_pycocotools_scores_the_ground_truth_as_perfect():
    record = DrawnPeople(seed=1, count=25).ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = record
        truth.createIndex()
        results = [
            {key: a[key] for key in ("image_id", "category_id", "keypoints")} | {"score": 1.0}
            for a in record["annotations"]
        ]
        score = COCOeval(truth, truth.loadRes(results), "keypoints")
        score.evaluate()
        score.accumulate()
        score.summarize()
    assert truth.loadCats(1)[0]["keypoints"] == list(COCO17.joints)
    assert score.stats[0] == pytest.approx(1.0)
    assert score.stats[5] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "options", [{"count": 0}, {"count": -3}, {"seed": -1}, {"size": (63, 256)}, {"size": (256, 32)}]
)
def test_impossible_sets_are_refused(options):
    with pytest.raises(DataError):
        DrawnPeople(**options)
