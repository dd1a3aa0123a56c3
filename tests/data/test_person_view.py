"""Random views of single people: pixels and joints agree."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.data.augment import PLAIN, Augmentation
from compress.data.person_view import mask_body, mask_keypoints, random_view, usable_people
from compress.data.sample import Person, Sample
from compress.errors import DataError
from compress.pose.skeleton import COCO17, LSP14
from compress.pose.spec import PoseSpec

POSE = PoseSpec(
    skeleton="coco17",
    decoder="heatmap",
    outputs=("heatmaps",),
    height=128,
    width=96,
    stride=4,
    background=False,
    grid="corner",
)


def dots(seed: int = 0) -> Sample:
    """A person of 17 separate white dots on grey."""
    rng = np.random.default_rng(seed)
    keypoints = np.full((17, 3), 2, np.float32)
    # The grid keeps the dots apart.
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(5)), axis=-1).reshape(-1, 2)[:17]
    keypoints[:, :2] = 40 + 30 * grid + rng.integers(-8, 9, (17, 2))
    image = np.full((240, 200, 3), 40, np.uint8)
    for x, y, _ in keypoints:
        cv2.circle(image, (int(x), int(y)), 4, (250, 250, 250), -1)
    low, high = keypoints[:, :2].min(0), keypoints[:, :2].max(0)
    person = Person(keypoints, np.array([*low, *(high - low)], np.float32), 5000.0)
    return Sample(image, (person,), np.ones(image.shape[:2], bool), 1, "dots.png")


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1.0]))
def test_joints_lie_on_their_pixels_in_every_view(seed: int, half: float) -> None:
    view = random_view(
        dots(), POSE, (128, 96), Augmentation(colour=0, scale=(0.8, 1.2), half_body=half), np.random.default_rng(seed)
    )
    assert view is not None
    assert view.image.shape == (128, 96, 3)
    for x, y, _ in view.keypoints[view.keypoints[:, 2] > 0]:
        if 1 <= x <= 94 and 1 <= y <= 126:
            assert view.image[round(float(y)), round(float(x))].min() > 150


def test_a_plain_view_is_the_box_with_its_padding() -> None:
    sample = dots()
    view = random_view(sample, POSE, (128, 96), PLAIN, np.random.default_rng(0))
    assert view is not None
    assert (view.keypoints[:, 2] == 2).all()
    extent = view.keypoints[:, :2].max(0) - view.keypoints[:, :2].min(0)
    assert max(extent / (96, 128)) == pytest.approx(1 / 1.25, abs=0.01)


def test_a_mirrored_view_swaps_left_and_right() -> None:
    sample = dots()
    plain = random_view(sample, POSE, (128, 96), PLAIN, np.random.default_rng(0))
    mirrored = random_view(sample, POSE, (128, 96), replace(PLAIN, flip=1.0), np.random.default_rng(0))
    assert plain is not None
    assert mirrored is not None
    back = mirrored.keypoints[list(COCO17.flip_order)]
    np.testing.assert_allclose(back[:, 0] + plain.keypoints[:, 0], 96, atol=1e-3)
    np.testing.assert_allclose(back[:, 1], plain.keypoints[:, 1], atol=1e-3)


def test_half_a_body_is_centred_in_the_view() -> None:
    sample = dots()
    halves = (slice(0, 11), slice(11, 17))
    centred_halves = set()
    for seed in range(8):
        view = random_view(sample, POSE, (128, 96), replace(PLAIN, half_body=1.0), np.random.default_rng(seed))
        assert view is not None
        middles = [(view.keypoints[half, :2].min(0) + view.keypoints[half, :2].max(0)) / 2 for half in halves]
        centred = [k for k in (0, 1) if np.abs(middles[k] - (48, 64)).max() < 1.5]
        assert len(centred) == 1
        centred_halves.add(centred[0])
    assert centred_halves == {0, 1}


def test_the_mask_covers_the_middle_of_the_body_and_leaves_the_image_alone() -> None:
    sample = dots()
    box = np.array([50.0, 40.0, 90.0, 150.0])
    before = sample.image.copy()
    for seed in range(20):
        masked = mask_body(sample.image, box, np.random.default_rng(seed))
        rows, columns = np.nonzero((masked != sample.image).any(axis=2))
        assert len(rows)
        assert columns.min() >= 50 + 90 * (1 / 3 - 0.3) - 1
        assert columns.max() <= 50 + 90 * (2 / 3 + 0.3) + 1
        assert rows.max() <= 40 + 150 * (2 / 3 + 0.3) + 1
        assert (masked[rows, columns] == 128).all()
    np.testing.assert_array_equal(sample.image, before)


def test_keypoint_masks_are_small_grey_patches_on_labelled_joints_which_stay_labelled() -> None:
    sample = dots()
    (person,) = sample.people
    box, before = np.array([30.0, 30.0, 100.0, 160.0]), sample.image.copy()
    labelled = np.arange(17) < 9
    keypoints = np.where(labelled[:, None], person.keypoints, 0).astype(np.float32)
    counts = set()
    for seed in range(40):
        masked = mask_keypoints(sample.image, keypoints, box, np.random.default_rng(seed))
        changed = (masked != sample.image).any(axis=2)
        assert (masked[changed] == 128).all()
        places = np.rint(keypoints[labelled, :2]).astype(int)
        hit = [bool((masked[y, x] == 128).all()) for x, y in places]
        chosen = keypoints[labelled][hit]
        counts.add(len(chosen))
        rows, columns = np.nonzero(changed)
        # Every changed pixel lies within half of a fifth of the longer side of a covered joint.
        distance = np.abs(np.stack([columns, rows], axis=-1)[:, None] - chosen[:, :2]).max(axis=2).min(axis=1)
        assert distance.max() <= 0.2 * 160 / 2 + 1
        assert 1 <= changed.sum() <= 2 * (0.2 * 160 + 2) ** 2
    assert counts >= {1, 2}  # a quarter of nine; a patch may cover a neighbour too
    np.testing.assert_array_equal(sample.image, before)
    assert mask_keypoints(sample.image, np.zeros((17, 3), np.float32), box, np.random.default_rng(0)) is sample.image


def test_keypoint_masking_changes_pixels_of_a_view_but_no_label_and_no_other_randomness() -> None:
    sample, options = dots(), Augmentation(colour=0)
    plain = random_view(sample, POSE, (128, 96), options, np.random.default_rng(3))
    masked = random_view(sample, POSE, (128, 96), replace(options, keypoint_mask=1.0), np.random.default_rng(3))
    assert plain is not None
    assert masked is not None
    np.testing.assert_array_equal(masked.keypoints, plain.keypoints)
    assert (masked.image != plain.image).any()


def test_a_joint_outside_the_view_is_unlabelled() -> None:
    view = random_view(dots(), POSE, (128, 96), replace(PLAIN, scale=(3.0, 3.0)), np.random.default_rng(0))
    assert view is not None
    unlabelled = view.keypoints[:, 2] == 0
    assert 0 < unlabelled.sum() < 17
    assert not view.keypoints[unlabelled].any()


def test_people_that_cannot_be_shown() -> None:
    sample = dots()
    (person,) = sample.people
    crowd = replace(person, crowd=True, keypoints=person.keypoints[:0])
    blank = replace(person, keypoints=np.zeros_like(person.keypoints))
    flat = replace(person, box=np.array([1, 2, 0, 5], np.float32))
    face = replace(person, keypoints=np.where(np.arange(17)[:, None] < 5, person.keypoints, 0))
    group = replace(sample, people=(crowd, blank, flat, face, person))
    assert [p is face or p is person for p, _ in usable_people(group, COCO17)] == [True, True]
    assert [p is person for p, _ in usable_people(group, LSP14)] == [True]  # LSP has no face
    rng = np.random.default_rng(0)
    assert random_view(replace(sample, people=(blank,)), POSE, (128, 96), PLAIN, rng) is None
    alone = random_view(replace(sample, people=()), POSE, (128, 96), PLAIN, rng)
    assert alone is not None
    assert not alone.keypoints.any()


@pytest.mark.parametrize("name", ["half_body", "body_mask", "keypoint_mask"])
def test_probabilities_above_one_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=name):
        Augmentation(**{name: 1.5})
