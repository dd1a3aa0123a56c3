"""Random scale, rotation, crop, flip and colour of samples, applied to pixels, people and mask alike."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.data.sample import Image, Person, Sample
from compress.errors import DataError
from compress.pose.skeleton import get_skeleton

Matrix = NDArray[np.float64]

#: Luma weights of blue, green and red (ITU-R BT.601); changes of saturation keep the luma.
_GREY = np.array([0.114, 0.587, 0.299])


@dataclass(frozen=True)
class Augmentation:
    """Strength of the augmentation.

    Attributes
    ----------
    scale : (float, float)
        Range of the scale, log-uniform; at 1 the image's height fills the crop.
    rotate : float
        Maximum rotation in degrees, in either direction.
    flip : float
        Probability of a horizontal flip.
    shift : float
        Maximum displacement of the crop beyond the image, as a share of the crop.
    colour : float
        Strength of the changes of brightness, contrast, saturation and colour balance; 0 leaves colours unchanged.
    crop : str
        Where the crop lies if the scaled image is larger: at a random ``"person"``, anywhere (``"random"``; also in
        images without people) or in the ``"centre"``. Views of one person always lie around that person.
    half_body : float
        Probability, in views of one person, of showing only the upper or the lower half of the body.
    body_mask : float
        Probability, in views of one person, of a grey quadrilateral over the middle of the body.
    keypoint_mask : float
        Probability, in views of one person, of grey patches over some of the joints.
    rotated : float
        Share of the views that are rotated at all.
    channels : float
        Probability that red, green and blue are permuted.
    person_scale : float or None
        Scale by people instead of images: at scale 1 the box of the person that the crop lies around fills this share
        of the crop's height (0.6 in the training of lightweight OpenPose). Needs the crop ``"person"``; has no effect
        on images without people and on views of one person.

    Raises
    ------
    DataError
        If a range, probability or strength is out of its domain.
    """

    scale: tuple[float, float] = (0.7, 1.4)
    rotate: float = 30.0
    flip: float = 0.5
    shift: float = 0.1
    colour: float = 0.25
    crop: Literal["person", "random", "centre"] = "person"
    half_body: float = 0.0
    body_mask: float = 0.0
    keypoint_mask: float = 0.0
    rotated: float = 1.0
    channels: float = 0.0
    person_scale: float | None = None

    def __post_init__(self) -> None:
        checks = (
            ("scale", 0 < self.scale[0] <= self.scale[1], "Give two scales above 0, the smaller first"),
            ("person_scale", self.person_scale is None or self.person_scale > 0, "Give a share of the crop above 0"),
            ("rotated", 0 <= self.rotated <= 1, "Give a share from 0 to 1"),
            ("channels", 0 <= self.channels <= 1, "Give a probability from 0 to 1"),
            ("rotate", 0 <= self.rotate <= 180, "Give degrees from 0 to 180"),
            ("flip", 0 <= self.flip <= 1, "Give a probability from 0 to 1"),
            ("shift", 0 <= self.shift < 1, "Give a share of the crop from 0 to below 1"),
            ("colour", 0 <= self.colour < 1, "Give a strength from 0 to below 1"),
            ("half_body", 0 <= self.half_body <= 1, "Give a probability from 0 to 1"),
            ("body_mask", 0 <= self.body_mask <= 1, "Give a probability from 0 to 1"),
            ("keypoint_mask", 0 <= self.keypoint_mask <= 1, "Give a probability from 0 to 1"),
            ("crop", self.crop in ("person", "random", "centre"), "Known: person, random, centre"),
        )
        for name, good, hint in checks:
            if not good:
                raise DataError(f"the augmentation's {name} is invalid", found=getattr(self, name), hint=hint)


#: No augmentation: the image's height fills the crop, and its centre is the crop's.
PLAIN = Augmentation(scale=(1.0, 1.0), rotate=0.0, flip=0.0, shift=0.0, colour=0.0, crop="centre")


def augment(
    sample: Sample,
    size: tuple[int, int],
    options: Augmentation,
    rng: np.random.Generator,
    fill: tuple[float, float, float] = (128.0, 128.0, 128.0),
) -> Sample:
    """A random view of a sample.

    Parameters
    ----------
    sample : Sample
        Not modified.
    size : (int, int)
        Height and width of the result in pixels.
    options : Augmentation
        What may vary and by how much.
    rng : numpy.random.Generator
        The only source of randomness: the same state gives the same view.
    fill : (float, float, float)
        Blue, green and red outside the image.

    Returns
    -------
    Sample
        Image and mask of ``size``; people in its pixels, without those that lie entirely outside. Keypoints outside
        the crop become unlabelled. Boxes are the bounds of the rotated boxes, clipped to the crop. The mask is true
        outside the original image, where nobody is.
    """
    matrix, mirrored = view_matrix(sample, size, options, rng)
    image = recolour(sample.image, options, rng)
    return replace(
        sample,
        image=warp(image, matrix, size, fill),
        people=tuple(p for p in (_move(p, matrix, size, mirrored, sample.skeleton) for p in sample.people) if p),
        mask=_warp_mask(sample.mask, matrix, size),
    )


def view_matrix(
    sample: Sample, size: tuple[int, int], options: Augmentation, rng: np.random.Generator
) -> tuple[Matrix, bool]:
    """The affine map (2, 3) from the sample's pixels to a random crop's, and whether it mirrors."""
    height, width = sample.image.shape[:2]
    low, high = np.log(options.scale)
    scale = size[0] / height * float(np.exp(rng.uniform(low, high)))
    angle = np.deg2rad(draw_rotation(options, rng))
    mirrored = bool(rng.random() < options.flip)
    extent = np.array([width, height], dtype=np.float64)
    crop = np.array([size[1], size[0]], dtype=np.float64)  # x, y like all points
    point, box = _target(sample, options.crop, rng)
    if options.person_scale is not None and box is not None:
        scale *= options.person_scale * height / float(max(box[3], 1.0))
    half = crop / (2 * scale)
    # The crop stays inside the image, or the image inside a larger crop; then it is displaced by up to `shift`.
    nearest, farthest = np.minimum(half, extent - half), np.maximum(half, extent - half)
    centre = np.clip(point + 0.5, nearest, farthest) - 0.5
    centre += rng.uniform(-options.shift, options.shift, 2) * crop / scale
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if mirrored else 1.0, 1.0])
    return np.column_stack([linear, (crop - 1) / 2 - linear @ centre]), mirrored


def draw_rotation(options: Augmentation, rng: np.random.Generator) -> float:
    """A random rotation in degrees; 0 for the share of views that are not rotated."""
    angle = float(rng.uniform(-options.rotate, options.rotate))
    return angle if options.rotated == 1 or rng.random() < options.rotated else 0.0


def recolour(image: Image, options: Augmentation, rng: np.random.Generator) -> Image:
    """The image with randomly changed colours and permuted channels."""
    if options.colour > 0:
        image = shift_colours(image, colour_matrix(options.colour, rng))
    if options.channels > 0 and rng.random() < options.channels:
        image = np.ascontiguousarray(image[..., rng.permutation(3)])
    return image


def _target(
    sample: Sample, crop: str, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float32] | None]:
    """The point (x, y) that the crop is placed around, and the box of the person there."""
    height, width = sample.image.shape[:2]
    point = rng.random(2) * (width, height) - 0.5
    people = [person for person in sample.people if not person.crowd]
    if crop == "centre":
        return np.array([width - 1, height - 1]) / 2, None
    if crop == "person" and people:
        box = people[int(rng.integers(len(people)))].box
        return np.asarray(box[:2] + box[2:] / 2, dtype=np.float64), box
    return point, None


def warp(image: Image, matrix: Matrix, size: tuple[int, int], fill: tuple[float, float, float]) -> Image:
    """The image under an affine map (2, 3) of its pixels: bilinear, after averaging if it becomes much smaller."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if scale <= 0.5:
        # Bilinear sampling would skip pixels, so blocks of pixels are averaged first.
        height, width = image.shape[:2]
        block = 1 // scale
        small = cv2.resize(image, None, fx=1 / block, fy=1 / block, interpolation=cv2.INTER_AREA)
        ratio = np.array([width / small.shape[1], height / small.shape[0]])
        to_large = np.column_stack([np.diag(ratio), (ratio - 1) / 2])
        matrix = np.column_stack([matrix[:, :2] @ to_large[:, :2], matrix @ np.append(to_large[:, 2], 1.0)])
        image = np.asarray(small, dtype=np.uint8)
    return np.asarray(
        cv2.warpAffine(
            image, matrix, (size[1], size[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        )
    )


def _warp_mask(mask: NDArray[np.bool_], matrix: Matrix, size: tuple[int, int]) -> NDArray[np.bool_]:
    if mask.all():
        return np.ones(size, dtype=np.bool_)
    moved = cv2.warpAffine(
        mask.astype(np.uint8),
        matrix,
        (size[1], size[0]),
        flags=cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=1,
    )
    return np.asarray(moved, dtype=np.bool_)


def _move(person: Person, matrix: Matrix, size: tuple[int, int], mirrored: bool, skeleton: str) -> Person | None:
    """The person in pixels of the crop, or None if the box lies entirely outside."""
    x, y, width, height = person.box
    # Corners of boxes are relative to pixel corners, points to pixel centres.
    corners = np.array([[x, y], [x + width, y], [x, y + height], [x + width, y + height]]) - 0.5
    moved = corners @ matrix[:, :2].T + matrix[:, 2] + 0.5  # (4, 2)
    low = np.clip(moved.min(axis=0), 0, (size[1], size[0]))
    high = np.clip(moved.max(axis=0), 0, (size[1], size[0]))
    if np.any(high <= low):
        return None
    keypoints = person.keypoints.copy()
    if len(keypoints):
        points = keypoints[:, :2] @ matrix[:, :2].T + matrix[:, 2]
        inside = np.all((points >= -0.5) & (points < (size[1] - 0.5, size[0] - 0.5)), axis=1) & (keypoints[:, 2] > 0)
        keypoints[:, :2] = points
        keypoints[~inside] = 0
        if mirrored:
            keypoints = keypoints[list(get_skeleton(skeleton).flip_order)]
    return Person(
        keypoints=keypoints,
        box=np.concatenate([low, high - low]).astype(np.float32),
        area=person.area * float(abs(np.linalg.det(matrix[:, :2]))),
        crowd=person.crowd,
    )


def colour_matrix(strength: float, rng: np.random.Generator) -> Matrix:
    """A random affine map (3, 4) of blue, green and red: saturation, contrast, colour balance and brightness."""
    saturation, contrast = 1 + rng.uniform(-strength, strength, 2)
    balance = 1 + rng.uniform(-strength, strength, 3) / 3
    brightness = 255 * rng.uniform(-strength, strength) / 2
    mix = saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1))
    linear = contrast * balance[:, None] * mix
    # Contrast pivots on mid-grey, so that it does not change brightness.
    return np.column_stack([linear, np.full(3, 128 * (1 - contrast) + brightness)])


def shift_colours(image: Image, matrix: Matrix) -> Image:
    """The image with an affine map (3, 4) applied to the colour of each pixel, rounded and clipped to 0 to 255."""
    return np.asarray(cv2.transform(image, matrix))
