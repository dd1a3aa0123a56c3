"""One drawn person: a posed, dressed body as a camera sees it."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from compress.data.drawn.body import Body, Proportions
from compress.data.drawn.clothes import Outfit, make_atlas
from compress.data.drawn.shapes import Array, Buffer, Chart, Light, Profile
from compress.pose.skeleton import COCO17

#: Part numbers in a `Painting`; 0 is nothing.
PARTS = (
    "", "head", "hair", "neck", "trunk", "skirt", "pack", "left_upper_arm", "left_forearm", "left_hand", "left_thigh",
    "left_shin", "left_foot", "right_upper_arm", "right_forearm", "right_hand", "right_thigh", "right_shin",
    "right_foot",
)  # fmt: skip
_PART = {name: number for number, name in enumerate(PARTS)}
_HEAD_PARTS = (_PART["head"], _PART["hair"])

#: How far behind the visible surface a joint may lie and still count as visible, in statures: about the limb's radius.
_DEPTH = {
    "nose": 0.020, "eye": 0.022, "ear": 0.030, "shoulder": 0.062, "elbow": 0.048, "wrist": 0.042, "hip": 0.098,
    "knee": 0.066, "ankle": 0.055,
}  # fmt: skip


@dataclass(frozen=True)
class Camera:
    """Where a person stands in front of the camera.

    Attributes
    ----------
    turn : array, shape (3, 3)
        Rotation from body axes (left, up, forward) to camera axes (x right, y down, z away).
    distance : float
        From the camera to the pelvis, in statures.
    scale : float
        Pixels per stature at the pelvis.
    x, y : float
        Image position of the pelvis, in pixels.
    """

    turn: NDArray[np.float64]
    distance: float
    scale: float
    x: float
    y: float

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels x, y and depth of body points (..., 3); depth is in pixels at the pelvis, larger is farther."""
        turned = points @ self.turn.T
        zoom = self.distance / np.maximum(self.distance + turned[..., 2], 0.3)
        return np.stack(
            [
                self.x + self.scale * turned[..., 0] * zoom,
                self.y + self.scale * turned[..., 1] * zoom,
                self.scale * turned[..., 2],
            ],
            axis=-1,
        )


@dataclass(frozen=True)
class Painting:
    """A painted person, before it is put into its image.

    Attributes
    ----------
    left, top : int
        Image position of the arrays' first pixel.
    colours : array, shape (h, w, 3), float32
        BGR, 0 to 255.
    cover : array, shape (h, w), float32
        Opacity, 0 to 1.
    part : array, shape (h, w), uint8
        Index into `PARTS` of what is visible.
    keypoints : array, shape (17, 3), float64
        x, y and COCO visibility as far as self-occlusion decides it; not clipped to the image.
    """

    left: int
    top: int
    colours: Array
    cover: Array
    part: NDArray[np.uint8]
    keypoints: NDArray[np.float64]


def outline(body: Body, camera: Camera) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a person in pixels, with a margin for clothes and hair."""
    points = camera.project(np.stack(list(body.points.values())))
    margin = 0.085 * camera.scale
    low, high = points.min(axis=0) - margin, points.max(axis=0) + margin
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def paint_person(
    rng: np.random.Generator,
    body: Body,
    shape: Proportions,
    outfit: Outfit,
    camera: Camera,
    size: tuple[int, int],
    light: Light,
) -> Painting | None:
    """Paint a person.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random generator for the texture.
    body, shape, outfit : Body, Proportions, Outfit
        The posed body, the proportions it was posed with, and its appearance.
    camera : Camera
        View.
    size : (int, int)
        Height and width of the image in pixels.
    light : Light
        Where it is lit from.

    Returns
    -------
    Painting or None
        None where the person is outside the image.
    """
    left, top, right, bottom = outline(body, camera)
    box = max(floor(left), 0), max(floor(top), 0), min(floor(right) + 1, size[1]), min(floor(bottom) + 1, size[0])
    if box[0] >= box[2] or box[1] >= box[3]:
        return None
    buffer = Buffer(box, light)
    atlas, charts = make_atlas(rng, outfit, camera.scale)
    projected = dict(zip(body.points, camera.project(np.stack(list(body.points.values()))), strict=True))
    painter = _Painter(buffer, camera, body, charts, shape, outfit)
    painter.head()
    painter.trunk()
    for side in ("left", "right"):
        painter.arm(side)
        painter.leg(side)
    colours = buffer.colour(atlas, 0.05 * camera.scale)
    return Painting(box[0], box[1], colours, buffer.cover, buffer.part, _keypoints(buffer, projected, camera.scale))


def _keypoints(buffer: Buffer, projected: dict[str, NDArray[np.float64]], scale: float) -> NDArray[np.float64]:
    result = np.zeros((len(COCO17.joints), 3))
    for index, joint in enumerate(COCO17.joints):
        x, y, depth = projected[joint]
        result[index] = x, y, 2
        column, row = round(x) - buffer.left, round(y) - buffer.top
        if not (0 <= column < buffer.width and 0 <= row < buffer.height):
            continue
        here = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        kind = joint.removeprefix("left_").removeprefix("right_")
        if (depth - buffer.depth[here] < _DEPTH[kind] * scale)[buffer.part[here] > 0].any():
            continue
        # Annotators skip an eye behind the head, but guess a wrist behind the back.
        hidden_by = buffer.part[row, column]
        result[index, 2] = 0 if kind in ("nose", "eye", "ear") and hidden_by in (*_HEAD_PARTS, 0) else 1
    return result


class _Painter:
    """Draws the shapes of one person into a buffer; lengths are in statures."""

    def __init__(
        self,
        buffer: Buffer,
        camera: Camera,
        body: Body,
        charts: dict[str, Chart],
        shape: Proportions,
        outfit: Outfit,
    ) -> None:
        self.buffer = buffer
        self.camera = camera
        self.points = body.points
        self.charts = charts
        self.shape = shape
        self.outfit = outfit
        self.frames = {name: camera.turn @ frame for name, frame in body.frames.items()}
        self.body_frames = body.frames
        # Raised thighs would pierce a skirt, which hangs from standing legs.
        hanging = min(body.frames[f"{side}_thigh"][1, 1] for side in ("left", "right")) > 0.6
        self.legs = outfit.legs if hanging or outfit.legs == "trousers" else "shorts"
        # The yoke runs sideways: its axis is the left direction of the chest.
        self.frames["across"] = self.frames["chest"][:, [1, 0, 2]]

    def head(self) -> None:
        """Head, ears, nose, hair and neck."""
        half, frame, outfit = self.shape.skull, "head", self.outfit
        self._blob("head", "skull", (0, 0, 0), (0.70, 1.0, 0.86), frame, "head", half)
        self._blob("head", "skull", (0, -0.24, 0.84), (0.12, 0.20, 0.16), frame, "skin", half)
        for sign in (1, -1):
            self._blob("head", "skull", (sign * 0.71, -0.06, -0.08), (0.09, 0.23, 0.15), frame, "skin", half)
        style = outfit.hair_style
        if style == "cap":
            self._blob("hair", "skull", (0, 0.34, -0.06), (0.77, 0.74, 0.88), frame, "second", half)
            self._blob("hair", "skull", (0, 0.42, 0.86), (0.58, 0.07, 0.50), frame, "second", half)
        elif style != "bald":
            self._blob("hair", "skull", (0, 0.22, -0.16), (0.76, 0.90, 0.84), frame, "hair", half)
        skull, axes = self.points["skull"], self.body_frames["head"]
        if style == "long":
            self._rod("hair", skull + axes @ (half * np.array([0, 0.2, -0.30])),
                      skull + axes @ (half * np.array([0, -1.55, -0.52])), (0.74, 0.80, 0.80, 0.66), "hair", frame,
                      flat=0.62, unit=half, caps=(1.0, 0.5))  # fmt: skip
        elif style == "tail":
            self._rod("hair", skull + axes @ (half * np.array([0, 0.45, -0.95])),
                      skull + axes @ (half * np.array([0, -1.15, -1.35])), (0.20, 0.27, 0.10), "hair", frame,
                      unit=half)  # fmt: skip
        girth = 0.5 + 0.5 * self.shape.girth
        low = self.points["neck"] - self.body_frames["chest"] @ np.array([0, 0.012, 0.0])
        high = skull + axes @ (half * np.array([0, -0.55, -0.12]))
        self._rod("neck", high, low, (0.030 * girth, 0.030 * girth, 0.036 * girth), "skin", "chest")

    def trunk(self) -> None:
        """Chest, belly, hips, skirt and backpack."""
        outfit, shape, girth = self.outfit, self.shape, self.shape.girth
        neck, waist = self.points["neck"], self.points["waist"]
        pelvis = self.body_frames["pelvis"]
        wide, hips = shape.shoulders / 0.103, shape.hips / 0.052
        stout = 0.6 * girth + 0.4
        chest = (0.046, 0.092 * wide, 0.101 * wide * stout, 0.095 * wide * stout, 0.084 * girth)
        top = neck - 0.006 * self.body_frames["chest"][:, 1]
        self._rod("trunk", top, waist, chest, "chest", "chest", flat=0.60 * girth**0.4, caps=(0.35, 0.6))
        for side in ("left", "right"):
            shoulder = self.points[f"{side}_shoulder"]
            self._rod("trunk", neck + 0.1 * (shoulder - neck), shoulder, (0.032 * girth, 0.036 * girth, 0.029 * girth),
                      "top", "across")  # fmt: skip
        hip_width = 0.096 * hips * (0.5 + 0.5 * girth)
        dress = self.legs == "dress"
        # The shirt ends under the belt, or hangs over it.
        hem = 0.045 if outfit.tucked and not dress else -0.022
        middle = waist - 0.30 * (waist - neck)
        self._rod("trunk", middle, 0.055 * pelvis[:, 1], (0.086 * girth, 0.083 * girth, 0.088 * girth), "belly",
                  "chest", flat=0.66, caps=(0.5, 0.5))  # fmt: skip
        if hem < 0:
            self._rod("trunk", 0.06 * pelvis[:, 1], hem * pelvis[:, 1], (0.086 * girth, hip_width, hip_width * 1.03),
                      "top", "pelvis", flat=0.68, caps=(0.5, 0.1))  # fmt: skip
        self._rod("trunk", 0.05 * pelvis[:, 1], -0.035 * pelvis[:, 1],
                  (max(0.087 * girth, 0.9 * hip_width), hip_width, hip_width * 0.92), "top" if dress else "hips",
                  "pelvis", flat=0.68, caps=(0.12, 0.6))  # fmt: skip
        if self.legs in ("skirt", "dress"):
            knees = (self.points["left_knee"] + self.points["right_knee"]) / 2
            apart = float(np.linalg.norm(self.points["left_knee"] - self.points["right_knee"])) / 2
            reach = 0.8 if self.legs == "skirt" else 0.92
            flare = max(hip_width * 1.15, reach * apart + 0.055 * girth)
            self._rod("skirt", 0.05 * pelvis[:, 1], reach * knees, (hip_width * 0.92, hip_width * 1.06, flare),
                      "top" if outfit.legs == "dress" else "bottom", "pelvis", flat=0.8, caps=(0.3, 0.12))  # fmt: skip
        if outfit.pack:
            self._blob("pack", "neck", (0, -0.09, -0.105), (0.085, 0.115, 0.055), "chest", "second", 1.0)

    def arm(self, side: str) -> None:
        """Upper arm, forearm, hand and sleeve."""
        girth = 0.35 + 0.65 * self.shape.girth
        cloth = self.outfit.sleeves == "long"
        thick = 1.14 if cloth else 1.0
        chart = "top" if cloth else "skin"
        shoulder, elbow, wrist = (self.points[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        upper = tuple(r * girth * thick for r in (0.030, 0.030, 0.028, 0.024))
        lower = tuple(r * girth * thick for r in (0.024, 0.025, 0.021, 0.0165))
        self._rod(f"{side}_upper_arm", shoulder, elbow, upper, chart, f"{side}_upper_arm")
        self._rod(f"{side}_forearm", elbow, wrist, lower, chart, f"{side}_forearm")
        if self.outfit.sleeves == "short":
            sleeve = shoulder + 0.58 * (elbow - shoulder)
            self._rod(f"{side}_upper_arm", shoulder, sleeve, (0.033 * girth, 0.036 * girth, 0.037 * girth), "top",
                      f"{side}_upper_arm", caps=(1.0, 0.15))  # fmt: skip
        frame, hand = self.body_frames[f"{side}_hand"], self.shape.hand
        palm = wrist - 0.52 * hand * frame[:, 1]
        sign = 1 if side == "left" else -1
        # A hanging palm faces the thigh: thin from left to right.
        self._blob(f"{side}_hand", palm, (0, 0, 0), (0.014, 0.56 * hand, 0.024), f"{side}_hand", "skin", 1.0)
        if self.camera.scale < 130:
            return  # a thumb is thinner than a pixel
        thumb = wrist + frame @ np.array([0.0, -0.32 * hand, 0.016])
        tip = wrist + frame @ np.array([-0.006 * sign, -0.66 * hand, 0.032])
        self._rod(f"{side}_hand", thumb, tip, (0.008, 0.006), "skin", f"{side}_hand")

    def leg(self, side: str) -> None:
        """Thigh, shin and foot with trousers, shorts and shoes."""
        girth, legs = self.shape.girth, self.legs
        trousers = legs == "trousers"
        chart = "bottom" if trousers else "skin"
        hip, knee, ankle = (self.points[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        thigh = tuple(r * girth for r in (0.050, 0.052, 0.046, 0.037))
        shin = (0.038, 0.038, 0.034, 0.034) if trousers else (0.032, 0.037, 0.028, 0.020)
        self._rod(f"{side}_thigh", hip, knee, thigh, "bottom" if legs == "shorts" else chart, f"{side}_thigh")
        if legs == "shorts":
            self._rod(f"{side}_thigh", knee + 0.25 * (hip - knee), knee, (0.042 * girth, 0.036 * girth), "skin",
                      f"{side}_thigh")  # fmt: skip
            self._rod(f"{side}_thigh", hip, hip + 0.78 * (knee - hip),
                      (0.052 * girth, 0.056 * girth, 0.054 * girth), "bottom", f"{side}_thigh",
                      caps=(1.0, 0.12))  # fmt: skip
        hem = ankle + (0.10 if trousers else 0.0) * (knee - ankle)
        self._rod(f"{side}_shin", knee, hem, tuple(r * girth for r in shin), chart, f"{side}_shin",
                  caps=(1.0, 0.2 if trousers else 1.0))  # fmt: skip
        if trousers:
            self._rod(f"{side}_shin", hem, ankle, (0.022, 0.021), "skin", f"{side}_shin")
        heel, toe = self.points[f"{side}_heel"], self.points[f"{side}_toe"]
        frame = self.body_frames[f"{side}_foot"]
        middle, length = (heel + toe) / 2, float(np.linalg.norm(toe - heel))
        self._blob(f"{side}_foot", heel + 0.018 * frame[:, 1] + 0.012 * frame[:, 2], (0, 0, 0),
                   (0.025, 0.034, 0.030), f"{side}_foot", "shoe", 1.0)  # fmt: skip
        self._blob(f"{side}_foot", middle + 0.004 * frame[:, 1], (0, 0, 0), (0.030, 0.024, 0.60 * length),
                   f"{side}_foot", "shoe", 1.0)  # fmt: skip

    def _pixels(self, point: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
        """`Camera.project` for one point, and pixels per stature there."""
        camera = self.camera
        right, down, away = (camera.turn @ point).tolist()
        scale = camera.scale * camera.distance / max(camera.distance + away, 0.3)
        return np.array((camera.x + scale * right, camera.y + scale * down, camera.scale * away)), scale

    def _rod(
        self,
        part: str,
        start: NDArray[np.float64],
        end: NDArray[np.float64],
        radii: tuple[float, ...],
        chart: str,
        frame: str,
        flat: float = 1.0,
        caps: tuple[float, float] = (1.0, 1.0),
        unit: float = 1.0,
    ) -> None:
        first, scale0 = self._pixels(start)
        last, scale1 = self._pixels(end)
        steps = max(len(radii) - 1, 1)
        sizes = tuple(r * unit * (scale0 + (scale1 - scale0) * i / steps) for i, r in enumerate(radii))
        self.buffer.tube(_PART[part], first, last, Profile(sizes, flat, caps), self.charts[chart], self.frames[frame])

    def _blob(
        self,
        part: str,
        anchor: str | NDArray[np.float64],
        offset: tuple[float, float, float],
        half: tuple[float, float, float],
        frame: str,
        chart: str,
        unit: float,
    ) -> None:
        start = self.points[anchor] if isinstance(anchor, str) else anchor
        centre, scale = self._pixels(start + self.body_frames[frame] @ (unit * np.array(offset)))
        axes = self.frames[frame] * (scale * unit * np.array(half))
        self.buffer.ellipsoid(_PART[part], centre, axes, self.charts[chart])
