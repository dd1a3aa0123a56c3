"""Images of drawn people: a data set with exact annotations that needs no files."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, degrees
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.data.drawn.body import POSES, Body, Proportions, draw_pose, draw_proportions, pose_body, rotation
from compress.data.drawn.clothes import choose, draw_colour, draw_outfit, noise
from compress.data.drawn.person import Camera, Painting, outline, paint_person
from compress.data.drawn.scene import BACKGROUNDS, Scene, expose, foreground
from compress.data.drawn.shapes import Array, Light
from compress.data.sample import Person, Sample
from compress.errors import DataError
from compress.pose.skeleton import COCO17

#: Probabilities of 1 to 6 people in an image.
CROWDS = {"1": 0.40, "2": 0.25, "3": 0.15, "4": 0.10, "5": 0.06, "6": 0.04}
#: Smallest height and width in pixels: in smaller images faces have no features.
MIN_SIDE = 64

_UPRIGHT = np.diag([1.0, -1.0, -1.0])
_NEIGHBOURS = tuple(
    tuple(b if a == joint else a for a, b in COCO17.limbs if joint in (a, b)) for joint in range(len(COCO17.joints))
)


@dataclass(frozen=True)
class _Actor:
    """One person and its place in an image."""

    body: Body
    shape: Proportions
    camera: Camera
    seated: bool


class DrawnPeople:
    """Deterministic images of drawn people with COCO keypoint annotations.

    Bodies have joint limits and varied proportions and clothes; they occlude themselves and one another and stand
    behind objects. Visibility follows COCO: 2 visible; 1 hidden by the person's own body, or by others beside a visible
    joint of the same person; 0 otherwise, as for eyes and nose seen from behind. ``area`` is the number of visible
    pixels of a person. Image ids are the index plus one.

    Parameters
    ----------
    seed : int
        Not negative; each seed gives another data set.
    count : int
        Number of images.
    size : (int, int)
        Height and width in pixels.

    Raises
    ------
    DataError
        For a negative seed, no images, or images smaller than `MIN_SIDE`.
    """

    annotated = True

    def __init__(self, seed: int = 0, count: int = 200, size: tuple[int, int] = (256, 256)) -> None:
        if seed < 0:
            raise DataError("the seed of drawn people must not be negative", found=seed)
        if count < 1:
            raise DataError("a set of drawn people needs at least one image", found=count)
        if min(size) < MIN_SIDE:
            raise DataError(
                "too small to draw people", found=size, hint=f"Height and width are at least {MIN_SIDE} pixels"
            )
        self.name = f"synthetic:{seed}:{count}"
        self.seed = seed
        self.size = size
        self._count = count
        self._people: dict[int, tuple[Person, ...]] = {}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self._draw(index, pixels=True)

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images as a COCO keypoint record."""
        annotations: list[dict[str, Any]] = []
        for index in range(self._count):
            if index not in self._people:
                self._people[index] = self._draw(index, pixels=False).people
            for person in self._people[index]:
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": index + 1,
                        "category_id": 1,
                        "iscrowd": 0,
                        "keypoints": [
                            round(float(value), 2) if at % 3 < 2 else int(value)
                            for at, value in enumerate(person.keypoints.ravel())
                        ],
                        "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
                        "bbox": [float(value) for value in person.box],
                        "area": person.area,
                    }
                )
        height, width = self.size
        return {
            "info": {"description": self.name},
            "images": [
                {"id": index + 1, "file_name": _file_name(index), "height": height, "width": width}
                for index in range(self._count)
            ],
            "annotations": annotations,
            "categories": [
                {
                    "id": 1,
                    "name": "person",
                    "supercategory": "person",
                    "keypoints": list(COCO17.joints),
                    "skeleton": [[a + 1, b + 1] for a, b in COCO17.limbs],
                }
            ],
        }

    def _draw(self, index: int, pixels: bool) -> Sample:
        """Draw one image; without ``pixels`` only its annotations are right, and it is drawn faster."""
        place, paint, behind, camera = (
            np.random.default_rng(source) for source in np.random.SeedSequence([self.seed, index]).spawn(4)
        )
        horizon = float(place.uniform(0.22, 0.55))
        actors = _cast(place, self.size, horizon)
        direction = np.array([place.uniform(-0.8, 0.8), -place.uniform(0.15, 0.9), -place.uniform(0.4, 1.0)])
        direction /= np.linalg.norm(direction)
        light = Light(direction, ambient=float(place.uniform(0.35, 0.7)))
        if pixels:
            image = Scene(behind, self.size, horizon).background(choose(behind, BACKGROUNDS))
            _shadows(image, actors, direction)
        else:
            image = np.zeros((*self.size, 3), np.float32)

        owner = np.zeros(self.size, np.uint8)
        layer = 0
        painted: list[tuple[int, Painting]] = []
        for actor in sorted(actors, key=lambda actor: actor.camera.scale):
            if actor.seated:
                layer += 1
                _seat(paint, image, owner, layer, actor)
            painting = paint_person(paint, actor.body, actor.shape, draw_outfit(paint), actor.camera, self.size, light)
            if painting is None:
                continue
            layer += 1
            painted.append((layer, painting))
            height, width = painting.cover.shape
            here = slice(painting.top, painting.top + height), slice(painting.left, painting.left + width)
            image[here] = cv2.blendLinear(painting.colours, image[here], painting.cover, 1 - painting.cover)
            owner[here][painting.cover >= 0.5] = layer
        if paint.random() < 0.22:
            _occlude(paint, image, owner, [layer for layer, _ in painted], layer + 1)

        mask = np.ones(self.size, np.bool_)
        people = []
        for layer, painting in painted:
            person = _annotate(owner, layer, painting)
            if person is None:
                mask &= owner != layer
            else:
                people.append(person)
        exposed = expose(camera, image) if pixels else image.astype(np.uint8)
        return Sample(exposed, tuple(people), mask, index + 1, _file_name(index))


def _file_name(index: int) -> str:
    return f"drawn_{index:06d}.png"


def _cast(rng: np.random.Generator, size: tuple[int, int], horizon: float) -> list[_Actor]:
    """Choose bodies, poses and places of all people of an image."""
    height, width = size
    count = int(choose(rng, CROWDS))
    unit = min(height, 1.6 * width)
    # Statures as shares of the image; a close view cuts the feet off.
    close = rng.random() < (0.22 if count == 1 else 0.12)
    tall = float(rng.uniform(*((0.95, 1.7) if close else (0.45, 0.95) if count < 4 else (0.4, 0.8))))
    feet = float(rng.uniform(0.85, 1.04))
    eye = float(np.clip((feet - horizon) / tall, 0.3, 1.2))  # height of the camera in statures
    lens = float(rng.uniform(1.3, 3.5))
    actors: list[_Actor] = []
    taken: list[tuple[float, float, float, float]] = []
    for number in range(count):
        share = tall if number == 0 else max(tall * float(rng.uniform(0.55, 1.05)), 0.33)
        kind = choose(rng, POSES)
        shape = draw_proportions(rng)
        body = pose_body(shape, draw_pose(rng, kind))
        distance = float(np.clip(lens / share, 1.8, 9.0))
        turn = _view(rng, kind, degrees(atan2(eye - 0.55, distance)))
        scale = share * unit
        low, high = np.inf, -np.inf
        for _ in range(2):  # a body wider than the image steps back
            low_x, top, high_x, bottom = outline(body, Camera(turn, distance, scale, 0.0, 0.0))
            low, high = min(low_x, 0.0), max(high_x, 0.0)
            if high - low <= 1.05 * width or close:
                break
            scale *= width / (high - low)
        x = float(rng.uniform(0.25, 0.75) if count == 1 else rng.uniform(0.06, 0.94)) * width
        ground = (horizon + eye * scale / height) * height if rng.random() < 0.8 else rng.uniform(0.75, 1.05) * height
        y = float(ground) - bottom + 0.06 * scale
        if close and kind != "lie":
            y = float(rng.uniform(-0.03, 0.12)) * height - top
        best = np.inf
        limit = float(rng.uniform(0.0, 0.35))
        for _ in range(12):
            middle = x - (low_x + high_x) / 2
            box = (middle + low_x, y + top, middle + high_x, y + bottom)
            overlap = max((_overlap(box, other) for other in taken), default=0.0)
            if overlap < best:
                best, place, chosen = overlap, middle, box
            if best <= limit:
                break
            x = float(rng.uniform(0.06, 0.94)) * width
        taken.append(chosen)
        camera = Camera(turn, distance, scale, place, y)
        actors.append(_Actor(body, shape, camera, seated=kind == "sit" and rng.random() < 0.8))
    return actors


def _view(rng: np.random.Generator, kind: str, above: float) -> NDArray[np.float64]:
    """Rotation from body to camera axes: mostly facing the camera, whose elevation in degrees is ``above``."""
    yaw = float(rng.uniform(-70, 70) if rng.random() < 0.6 else rng.uniform(70, 290))
    tilt = rotation("x", above + rng.normal(0, 4)) @ rotation("z", rng.normal(0, 3))
    if kind == "lie":
        tilt = rotation("x", abs(rng.normal(25, 12))) @ rotation("y", rng.uniform(-40, 40))
        side = rotation("z", float(rng.choice([-90.0, 90.0])))
        return _UPRIGHT @ tilt @ side @ rotation("y", yaw)
    if kind == "free":
        tilt = tilt @ rotation("z", rng.normal(0, 18))
    return _UPRIGHT @ tilt @ rotation("y", yaw)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Intersection of two boxes (left, top, right, bottom) as a share of the smaller one."""
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(wide, 0.0) * max(high, 0.0) / smaller


def _shadows(image: Array, actors: list[_Actor], light: NDArray[np.float64]) -> None:
    """Darken the ground where people stand."""
    dark = np.zeros((image.shape[0] // 2, image.shape[1] // 2), np.float32)
    for actor in actors:
        for side in ("left", "right"):
            x, y, _ = actor.camera.project(actor.body.points[f"{side}_heel"]) / 2
            radius = 0.5 * actor.camera.scale
            at = (round(x - 0.10 * radius * light[0]), round(y + 0.03 * radius))
            cv2.ellipse(dark, at, (max(round(0.17 * radius), 1), max(round(0.05 * radius), 1)), 0, 0, 360, 0.5, -1)
    dark = cv2.resize(cv2.blur(dark, (5, 5)), (image.shape[1], image.shape[0]), interpolation=cv2.INTER_LINEAR)
    rows = np.flatnonzero(dark.any(axis=1))
    if len(rows):
        image[rows[0] :] *= (1 - dark[rows[0] :])[:, :, None]


def _seat(rng: np.random.Generator, image: Array, owner: NDArray[np.uint8], layer: int, actor: _Actor) -> None:
    """Paint the seat of a sitting person, from under the thighs to the ground."""
    camera = actor.camera
    _, _, _, bottom = outline(actor.body, camera)
    x, y = camera.x, camera.y + 0.045 * camera.scale
    half = float(rng.uniform(0.10, 0.22)) * camera.scale
    left, right = max(round(x - half), 0), min(round(x + half), image.shape[1])
    top, low = max(round(y), 0), min(round(bottom - 0.09 * camera.scale), image.shape[0])
    if left >= right or top >= low:
        return
    colour = np.asarray(draw_colour(rng), np.float32)
    wide = np.linspace(1.1, 0.7, right - left, dtype=np.float32)
    image[top:low, left:right] = colour * (wide * (1 + 0.06 * noise(rng, low - top, right - left, 2)))[:, :, None]
    edge = max(round(0.02 * camera.scale), 1)
    image[top : top + edge, left:right] *= 1.25
    owner[top:low, left:right] = layer


def _occlude(rng: np.random.Generator, image: Array, owner: NDArray[np.uint8], people: list[int], layer: int) -> None:
    """Put an object in front of the people, unless it would hide more than half of one of them."""
    colours, cover = foreground(rng, owner.shape)
    solid = cover >= 0.5
    for person in people:
        visible = owner == person
        if (visible & solid).sum() > 0.5 * visible.sum():
            return
    image += (colours - image) * cover[:, :, None]
    owner[solid] = layer


def _annotate(owner: NDArray[np.uint8], layer: int, painting: Painting) -> Person | None:
    """Annotation of a person from the layer that each pixel shows, or None if too little is visible to label."""
    height, width = owner.shape
    visible = owner == layer
    area = int(visible.sum())
    keypoints = painting.keypoints.copy()
    for index, (x, y, _) in enumerate(painting.keypoints):
        if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
            keypoints[index] = 0
    hidden = []
    for index in np.flatnonzero(keypoints[:, 2]).tolist():
        column, row = round(keypoints[index, 0]), round(keypoints[index, 1])
        here = owner[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
        if (here > layer).sum() > here.size / 2:
            hidden.append(index)
            keypoints[index, 2] = 1
    for index in hidden:
        if not any(keypoints[other, 2] == 2 for other in _NEIGHBOURS[index]):
            keypoints[index] = 0
    keypoints[keypoints[:, 2] == 0] = 0
    if area < 0.0012 * owner.size or (keypoints[:, 2] == 2).sum() < 2:
        return None
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    left, top = float(columns[0]), float(rows[0])
    box = np.array([left, top, columns[-1] - left + 1, rows[-1] - top + 1], np.float32)
    return Person(keypoints.astype(np.float32), box, float(area))
