"""Augmentation transforms pixels, people and mask of a sample alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.data.augment import (
    PLAIN,
    Augmentation,
    augment,
    colour_matrix,
    draw_rotation,
    recolour,
    shift_colours,
    view_matrix,
    warp,
)
from compress.data.sample import Person, Sample
from compress.errors import DataError
from compress.pose.skeleton import COCO17

SIZE = (96, 128)


def dotted(points: np.ndarray, shape: tuple[int, int] = (120, 160), radius: int = 2) -> np.ndarray:
    """A black image with a white square on each point."""
    image = np.zeros((*shape, 3), np.uint8)
    for x, y in points.round().astype(int):
        image[y - radius : y + radius + 1, x - radius : x + radius + 1] = 255
    return image


def person(points: np.ndarray) -> Person:
    """One person whose joints are the points, all visible."""
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[: len(points), :2] = points
    keypoints[: len(points), 2] = 2
    low, high = points.min(axis=0) - 3, points.max(axis=0) + 3
    return Person(keypoints, np.array([*low, *(high - low)], np.float32), float(np.prod(high - low)))


def sample_of(points: np.ndarray, mask: np.ndarray | None = None) -> Sample:
    image = dotted(points)
    return Sample(image, (person(points),), np.ones(image.shape[:2], bool) if mask is None else mask, 7, "dots")


STRONG = Augmentation(scale=(0.4, 2.0), rotate=180, flip=0.5, shift=0.3, colour=0.0)
POINTS = np.array([[20.0, 30], [140, 30], [80, 60], [30, 100], [130, 90]])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_keypoints_move_with_their_pixels(seed: int) -> None:
    sample = sample_of(POINTS)
    # Without a flip joints keep their indices; another test covers left and right.
    view = augment(sample, SIZE, Augmentation(scale=(0.4, 2.0), rotate=180, flip=0, shift=0.3, colour=0),
                   np.random.default_rng(seed), fill=(0, 0, 0))  # fmt: skip
    assert view.image.shape == (*SIZE, 3)
    if not view.people:
        assert view.image.max() == 0  # all dots lie outside
        return
    for x, y, seen in view.people[0].keypoints[: len(POINTS)]:
        if seen and 1 <= x < SIZE[1] - 2 and 1 <= y < SIZE[0] - 2:
            assert view.image[round(float(y)), round(float(x))].min() > 60


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_dot_lies_where_its_keypoint_says_to_a_fraction_of_a_pixel(seed: int) -> None:
    # The centre of mass of a blurred dot is exact to less than a pixel and reveals half-pixel errors.
    y, x = np.mgrid[:120, :160]
    blob = 255 * np.exp(-((x - 80) ** 2 + (y - 60) ** 2) / (2 * 6**2))
    sample = Sample(
        np.repeat(blob[..., None], 3, 2).astype(np.uint8), (person(np.array([[80.0, 60]])),), np.ones((120, 160), bool),
        0, "blob",
    )  # fmt: skip
    options = Augmentation(scale=(0.3, 1.0), rotate=180, flip=0.5, shift=0.0, colour=0)
    view = augment(sample, SIZE, options, np.random.default_rng(seed), fill=(0, 0, 0))
    weight = view.image[..., 0].astype(float)
    yy, xx = np.mgrid[: SIZE[0], : SIZE[1]]
    centre = np.array([(weight * xx).sum(), (weight * yy).sum()]) / weight.sum()
    moved = view.people[0].keypoints
    assert np.allclose(moved[moved[:, 2] > 0, :2], centre, atol=0.25)


def test_a_flip_swaps_left_and_right() -> None:
    points = np.stack([np.linspace(10, 150, 17), np.linspace(20, 100, 17)], axis=1)
    sample = sample_of(points)
    flipped = augment(sample, (120, 160), Augmentation((1, 1), 0, 1.0, 0, 0, "centre"), np.random.default_rng(0))
    other = {"left": "right", "right": "left"}
    for index, joint in enumerate(COCO17.joints):
        side, _, rest = joint.partition("_")
        mirror = f"{other[side]}_{rest}" if side in other else joint
        x, y, seen = sample.people[0].keypoints[COCO17.joints.index(mirror)]
        assert np.allclose(flipped.people[0].keypoints[index], (159 - x, y, seen), atol=1e-3)
    assert np.array_equal(flipped.image, sample.image[:, ::-1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_mask_follows_the_pixels(seed: int) -> None:
    mask = np.ones((120, 160), bool)
    mask[40:90, 60:120] = False
    sample = sample_of(POINTS, mask)
    sample.image[...] = np.where(mask, 0, 255)[..., None]
    view = augment(sample, SIZE, STRONG, np.random.default_rng(seed), fill=(0, 0, 0))
    sure = (view.image[..., 0] < 5) | (view.image[..., 0] > 250)
    # Nearest and bilinear sampling may differ only at edges.
    assert np.mean(view.mask[sure] == (view.image[..., 0][sure] < 128)) > 0.98
    assert view.mask[view.image[..., 0] < 5].mean() > 0.98


def test_outside_the_image_the_mask_is_true_and_pixels_are_grey() -> None:
    mask = np.zeros((120, 160), bool)
    view = augment(sample_of(POINTS, mask), (120, 320), PLAIN, np.random.default_rng(0))
    assert view.mask[:, :75].all()
    assert (view.image[:, :75] == 128).all()
    assert not view.mask[:, 85:235].any()


def test_nothing_varies_without_augmentation() -> None:
    sample = sample_of(POINTS)
    views = [augment(sample, (120, 160), PLAIN, np.random.default_rng(seed)) for seed in range(3)]
    for view in views:
        assert np.array_equal(view.image, sample.image)
        assert np.allclose(view.people[0].keypoints, sample.people[0].keypoints)
        assert np.allclose(view.people[0].box, sample.people[0].box)


def test_area_grows_with_the_square_of_the_scale() -> None:
    sample = sample_of(POINTS)
    view = augment(sample, (240, 320), PLAIN, np.random.default_rng(0))
    assert view.people[0].area == pytest.approx(4 * sample.people[0].area)
    assert np.allclose(view.people[0].box, 2 * sample.people[0].box, atol=1e-3)


def test_people_outside_are_removed_and_joints_outside_become_unlabelled() -> None:
    left, across = np.array([[10.0, 50], [20, 60]]), np.array([[70.0, 50], [110, 60]])
    image = dotted(np.concatenate([left, across]))
    sample = Sample(image, (person(left), person(across)), np.ones(image.shape[:2], bool), 0, "two")
    # A crop of the right half.
    view = augment(sample, (120, 80), PLAIN, np.random.default_rng(0))
    assert view.image.shape == (120, 80, 3)
    centred = view.people
    assert len(centred) == 1
    x = centred[0].keypoints[:2, 0]
    assert centred[0].keypoints[0, 2] == 2
    assert x[0] == pytest.approx(30)
    assert centred[0].keypoints[1, 2] == 2
    narrow = augment(sample, (120, 40), PLAIN, np.random.default_rng(0)).people[0]
    assert narrow.keypoints[0, 2] == 2
    assert (narrow.keypoints[1] == 0).all()


def test_the_crop_stays_inside_a_larger_image() -> None:
    options = Augmentation(scale=(2.0, 3.0), rotate=0, flip=0.5, shift=0.0, colour=0)
    sample = sample_of(POINTS)
    for seed in range(20):
        matrix, _ = view_matrix(sample, SIZE, options, np.random.default_rng(seed))
        inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
        corners = np.array([[-0.5, -0.5, 1], [SIZE[1] - 0.5, SIZE[0] - 0.5, 1]]) @ inverse.T
        assert (corners[:, :2] > -0.5 - 1e-6).all()
        assert (corners[:, :2] < np.array([159.5, 119.5]) + 1e-6).all()


def test_shrinking_averages_instead_of_skipping() -> None:
    # Stripes one pixel wide average to grey; bilinear sampling alone would alias.
    image = np.zeros((256, 256, 3), np.uint8)
    image[::2] = 255
    small = warp(image, np.array([[0.25, 0, -0.375], [0, 0.25, -0.375]]), (64, 64), (0, 0, 0))
    assert np.abs(small.astype(int) - 127).max() <= 2


def test_colours_change_by_the_matrix_and_are_clipped() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    matrices = [colour_matrix(0.3, np.random.default_rng(seed)) for seed in range(4)]
    for matrix in matrices:
        expected = np.clip(np.rint(image.astype(float) @ matrix[:, :3].T + matrix[:, 3]), 0, 255)
        assert np.abs(shift_colours(image, matrix).astype(float) - expected).max() <= 1
    assert len({float(matrix[0, 0]) for matrix in matrices}) == 4


def test_views_depend_only_on_the_state_of_the_generator() -> None:
    sample = sample_of(POINTS)
    views = [augment(sample, SIZE, Augmentation(), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert np.array_equal(views[0].image, views[1].image)
    assert not np.array_equal(views[0].image, views[2].image)
    assert np.array_equal(sample.image, dotted(POINTS))  # the input stays


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0.0, 1.0)}, {"scale": (1.2, 0.8)}, {"rotate": -1}, {"flip": 1.5}, {"shift": 1.0}, {"colour": 1.0},
        {"crop": "left"},
    ],
)  # fmt: skip
def test_an_invalid_augmentation_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"augmentation's {next(iter(wrong))}"):
        Augmentation(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("picture", [(200, 300), (400, 150)])
def test_people_fill_their_share_of_the_crop_whatever_the_image_size(picture: tuple[int, int]) -> None:
    height = 50.0
    keypoints = np.zeros((17, 3), dtype=np.float32)
    keypoints[0] = 80, 90, 2
    person = Person(keypoints, np.array([70, 65, 20, height], np.float32), 500.0)
    sample = Sample(np.zeros((*picture, 3), np.uint8), (person,), np.ones(picture, np.bool_), 1, "a")
    options = replace(PLAIN, crop="person", person_scale=0.6)
    (found,) = augment(sample, (100, 100), options, np.random.default_rng(0)).people
    assert found.box[3] == pytest.approx(60, abs=0.1)
    half = replace(options, scale=(0.5, 0.5))
    (found,) = augment(sample, (100, 100), half, np.random.default_rng(0)).people
    assert found.box[3] == pytest.approx(30, abs=0.1)
    nobody = replace(sample, people=())
    plain = augment(nobody, (100, 100), replace(options, person_scale=None), np.random.default_rng(0))
    assert np.array_equal(augment(nobody, (100, 100), options, np.random.default_rng(0)).image, plain.image)


def test_only_a_share_of_the_views_is_rotated() -> None:
    options = replace(PLAIN, rotate=40.0, rotated=0.6)
    rng = np.random.default_rng(0)
    angles = [draw_rotation(options, rng) for _ in range(2000)]
    assert 0.55 < np.count_nonzero(angles) / 2000 < 0.65
    assert 35 < max(angles) <= 40
    assert all(draw_rotation(replace(options, rotated=1.0), rng) for _ in range(100))
    assert not any(draw_rotation(replace(options, rotated=0.0), rng) for _ in range(100))


def test_colour_channels_are_only_permuted() -> None:
    image = np.random.default_rng(1).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    orders = {recolour(image, replace(PLAIN, channels=1.0), rng)[0, 0].tobytes() for _ in range(100)}
    assert len(orders) == 6
    once = recolour(image, replace(PLAIN, channels=1.0), rng)
    assert sorted(map(bytes, once.transpose(2, 0, 1))) == sorted(map(bytes, image.transpose(2, 0, 1)))
    assert recolour(image, PLAIN, rng) is image


@pytest.mark.parametrize(("name", "value"), [("person_scale", 0.0), ("rotated", 1.5), ("channels", -0.1)])
def test_further_invalid_ranges_are_refused(name: str, value: float) -> None:
    with pytest.raises(DataError, match=name):
        replace(PLAIN, **{name: value})
