"""Random views of one person of a sample, for training top-down networks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.data.augment import Augmentation, draw_rotation, recolour
from compress.data.sample import Image, Person, Sample
from compress.pose.crop import Region, box_region, cut, image_region, region_matrix, transform
from compress.pose.skeleton import Skeleton, convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec

#: Half a body is shown only of people with more labelled joints than this, as in the public top-down code.
_MIN_JOINTS = 8

#: Ratio of the region of half a body to the bounds of its joints.
_HALF_PADDING = 1.5

#: Parts of joint names of the lower half.
_LOWER = ("hip", "knee", "ankle", "pelvis")

#: Range of the side of a patch over a joint, as a share of the longer side of the person's box.
_PATCH = (0.1, 0.2)

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class PersonView:
    """A crop of one person.

    Attributes
    ----------
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    keypoints : array, shape (K, 3), float32
        x, y in pixels of the view and visibility for the network's skeleton; all 0 for joints that are not annotated or
        lie outside.
    """

    image: Image
    keypoints: NDArray[np.float32]


def person_region(person: Person, size: tuple[int, int]) -> Region:
    """The region that shows a person: the data set's own view, or the box with its padding."""
    if person.view is not None:
        return box_region(person.view, size, padding=1.0)
    return box_region(person.box, size)


def usable_people(sample: Sample, skeleton: Skeleton) -> list[tuple[Person, NDArray[np.float32]]]:
    """People with a box and at least one labelled joint of a skeleton, with their keypoints in that skeleton."""
    source = get_skeleton(sample.skeleton)
    people = []
    for person in sample.people:
        if not person.crowd and float(person.box[2:].min()) > 0:
            keypoints = convert_keypoints(person.keypoints, source, skeleton)
            if (keypoints[:, 2] > 0).any():
                people.append((person, keypoints))
    return people


def random_view(
    sample: Sample, pose: PoseSpec, size: tuple[int, int], options: Augmentation, rng: np.random.Generator
) -> PersonView | None:
    """A random view of a random person.

    The region follows from the person's box (`person_region`) or, with the probability ``options.half_body``, from the
    labelled joints of the upper or lower half of the body with a padding of 1.5. It is then divided by the scale,
    rotated, shifted and flipped. Samples without people show the whole image.

    Parameters
    ----------
    sample : Sample
        Not modified.
    pose : PoseSpec
        Skeleton, grid and colours of the network.
    size : (int, int)
        Height and width of the view.
    options : Augmentation
        What may vary and by how much.
    rng : numpy.random.Generator
        The only source of randomness.

    Returns
    -------
    PersonView or None
        None if the sample has people, but none that can be shown.
    """
    people = usable_people(sample, pose.joints)
    if people:
        person, keypoints = people[int(rng.integers(len(people)))]
        region = person_region(person, size)
        if rng.random() < options.half_body:
            region = _half_region(keypoints, pose.joints, size, rng) or region
        box = np.asarray(person.box, dtype=np.float64)
    elif sample.people:
        return None
    else:
        keypoints = np.zeros((len(pose.joints.joints), 3), dtype=np.float32)
        region = image_region(sample.image.shape, size)
        box = np.array([0, 0, sample.image.shape[1], sample.image.shape[0]], dtype=np.float64)
    region = _vary(region, options, rng)
    image = sample.image
    if rng.random() < options.body_mask:
        image = mask_body(image, box, rng)
    if options.keypoint_mask > 0 and rng.random() < options.keypoint_mask:
        image = mask_keypoints(image, keypoints, box, rng)
    image = recolour(image, options, rng)
    matrix = region_matrix(region, size, corner_grid=pose.corner_grid)
    pixels = cut(image, matrix, size, pose.fill)
    return PersonView(pixels, _move(keypoints, matrix, size, region.mirrored, pose.joints))


def _vary(region: Region, options: Augmentation, rng: np.random.Generator) -> Region:
    low, high = np.log(options.scale)
    scale = float(np.exp(rng.uniform(low, high)))
    rotation = draw_rotation(options, rng)
    mirrored = bool(rng.random() < options.flip)
    shift = rng.uniform(-options.shift, options.shift, 2)
    centre = (region.centre[0] + shift[0] * region.size[0], region.centre[1] + shift[1] * region.size[1])
    size = (region.size[0] / scale, region.size[1] / scale)
    return replace(region, centre=centre, size=size, rotation=rotation, mirrored=mirrored)


def _half_region(
    keypoints: NDArray[np.float32], skeleton: Skeleton, size: tuple[int, int], rng: np.random.Generator
) -> Region | None:
    """The region of a random half of the body, or of the other if that has too few joints; None if both have."""
    labelled = keypoints[:, 2] > 0
    lower = np.array([any(part in joint for part in _LOWER) for joint in skeleton.joints])
    halves = [labelled & ~lower, labelled & lower]
    if rng.random() < 0.5:
        halves.reverse()
    chosen = next((half for half in halves if half.sum() > 2), None)
    if labelled.sum() <= _MIN_JOINTS or chosen is None:
        return None
    low, high = keypoints[chosen, :2].min(axis=0), keypoints[chosen, :2].max(axis=0)
    return box_region([*low, *np.maximum(high - low, 1)], size, padding=_HALF_PADDING)


def mask_body(image: Image, box: NDArray[np.float64], rng: np.random.Generator) -> Image:
    """A copy with a grey quadrilateral over a person: the body masking of Global Context CPM (Osokin, 2019).

    Its centre lies in the middle third of the box, and one corner in each quadrant around the centre, at most 0.3 of
    the box's width and height away.
    """
    x, y, width, height = box.tolist()
    centre = np.array([x + width * rng.uniform(1 / 3, 2 / 3), y + height * rng.uniform(1 / 3, 2 / 3)])
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    corners = centre + signs * rng.uniform(0, 0.3, (4, 2)) * (width, height)
    return np.asarray(cv2.fillPoly(image.copy(), [np.rint(corners).astype(np.int32)], _GREY), dtype=np.uint8)


def mask_keypoints(
    image: Image, keypoints: NDArray[np.float32], box: NDArray[np.float64], rng: np.random.Generator
) -> Image:
    """A copy with small grey patches over some of a person's joints, which keep their labels.

    The keypoint masking that Global Context CPM (Osokin, 2019, section 3.2.2) compares its body masking with: that of
    Ke et al. (2018), with patches of one colour instead of background. How many joints and how large the patches are
    is not stated there; here up to a quarter of the labelled joints, at least one, and squares centred at them, with
    sides of a tenth to a fifth of the longer side of the box.

    Parameters
    ----------
    image : array, shape (H, W, 3), uint8
        Not modified.
    keypoints : array, shape (K, 3)
        x and y in pixels of the image, and visibility.
    box : array, shape (4,)
        Left, top, width and height of the person.
    rng : numpy.random.Generator
        The only source of randomness.
    """
    labelled = np.flatnonzero(keypoints[:, 2] > 0)
    if not len(labelled):
        return image
    chosen = rng.choice(labelled, int(rng.integers(1, max(1, len(labelled) // 4) + 1)), replace=False)
    masked = image.copy()
    for point in keypoints[chosen, :2]:
        half = rng.uniform(*_PATCH) * float(max(box[2:])) / 2
        low, high = np.rint(point - half).astype(int), np.rint(point + half).astype(int)
        cv2.rectangle(masked, low.tolist(), high.tolist(), _GREY, cv2.FILLED)
    return masked


def _move(
    keypoints: NDArray[np.float32],
    matrix: NDArray[np.float64],
    size: tuple[int, int],
    mirrored: bool,
    skeleton: Skeleton,
) -> NDArray[np.float32]:
    moved = keypoints.copy()
    moved[:, :2] = transform(keypoints[:, :2], matrix)
    inside = np.all((moved[:, :2] >= -0.5) & (moved[:, :2] < (size[1] - 0.5, size[0] - 0.5)), axis=1)
    moved[~inside | (keypoints[:, 2] <= 0)] = 0
    return moved[list(skeleton.flip_order)] if mirrored else moved
