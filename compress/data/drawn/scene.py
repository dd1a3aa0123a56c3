"""What surrounds drawn people: backgrounds, clutter, occluding objects, and the imperfections of a camera.

Positions are shares of the image's height and width. Images are float32 BGR, 0 to 255, until `expose` makes bytes.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.data.drawn.clothes import Colour, choose, draw_colour, noise
from compress.data.drawn.shapes import Array

#: Kinds of background and their probabilities.
BACKGROUNDS = {"room": 0.28, "street": 0.24, "field": 0.20, "clutter": 0.20, "blur": 0.08}


class Scene:
    """A background under construction.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random generator.
    size : (int, int)
        Height and width in pixels.
    horizon : float
        Height of the horizon from the top, as a share of the image's height.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int], horizon: float) -> None:
        self.rng = rng
        self.height, self.width = size
        self.horizon = float(np.clip(horizon, 0.08, 0.85))
        self.image: NDArray[np.uint8] = np.zeros((*size, 3), np.uint8)

    def background(self, kind: str) -> Array:
        """Paint a background of one of the `BACKGROUNDS` and return it as float32."""
        getattr(self, f"_{kind}")()
        rng = self.rng
        image: Array = self.image
        if rng.random() < 0.4:
            image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.5)) * self.height / 256)
        mottle = float(rng.uniform(0, 6)) * noise(rng, self.height, self.width, 2)
        mottle += float(rng.uniform(0, 8)) * noise(rng, self.height, self.width, 4)
        return cv2.add(image, cv2.merge([mottle, mottle, mottle]), dtype=cv2.CV_32F)

    def polygon(self, points: list[tuple[float, float]], colour: Colour) -> None:
        """Fill a polygon."""
        corners = np.array([[x * self.width * 16, y * self.height * 16] for x, y in points])
        cv2.fillPoly(self.image, [np.rint(corners).astype(np.int32)], colour, cv2.LINE_AA, 4)

    def box(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """Fill an upright rectangle."""
        corner = (round(left * self.width), round(top * self.height))
        cv2.rectangle(self.image, corner, (round(right * self.width), round(bottom * self.height)), colour, -1)

    def line(self, start: tuple[float, float], end: tuple[float, float], colour: Colour, thick: float) -> None:
        """Draw a round-ended bar, ``thick`` being a share of the height."""
        first = (round(start[0] * self.width), round(start[1] * self.height))
        last = (round(end[0] * self.width), round(end[1] * self.height))
        cv2.line(self.image, first, last, colour, max(round(thick * self.height), 1), cv2.LINE_AA)

    def _slope(self, top: float, bottom: float, first: Colour, last: Colour) -> None:
        """Blend two colours over a band of rows."""
        low, high = max(round(top * self.height), 0), min(round(bottom * self.height), self.height)
        if high > low:
            share = np.linspace(0, 1, high - low)[:, None, None]
            band = np.asarray(first) + share * (np.asarray(last) - np.asarray(first))
            self.image[low:high] = np.clip(band, 0, 255).astype(np.uint8)

    def _tone(self, low: float = 40, high: float = 225, tint: float = 14) -> Colour:
        values = self.rng.uniform(low, high) + self.rng.normal(0, tint, 3)
        return float(values[0]), float(values[1]), float(values[2])

    def _room(self) -> None:
        rng, floor = self.rng, min(self.horizon + float(self.rng.uniform(0.08, 0.35)), 0.92)
        wall, ground = self._tone(90, 235), self._tone(50, 190, 22)
        self._slope(0, floor, wall, _scaled(wall, 0.85))
        self._slope(floor, 1, _scaled(ground, 0.8), ground)
        corner = float(rng.uniform(-0.4, 1.4))
        if 0 < corner < 1:
            side = [(corner, 0), (1.0, 0), (1.0, floor + 0.25 * (1 - corner)), (corner, floor)]
            self.polygon(side, _scaled(wall, float(rng.uniform(0.75, 1.1))))
        if rng.random() < 0.5:  # floor boards run to the vanishing point
            for x in np.arange(-2.0, 3.0, float(rng.uniform(0.12, 0.4))):
                self.polygon([(0.5 + (x - 0.5) * 0.3, floor), (x, 1.02), (x + 0.012, 1.02)], _scaled(ground, 0.7))
        self.line((0, floor), (1, floor), self._tone(), 0.012)
        for _ in range(int(rng.integers(0, 4))):  # windows, pictures, doors
            x, y, w, h = rng.uniform(-0.1, 0.9), rng.uniform(0, 0.5), rng.uniform(0.1, 0.3), rng.uniform(0.1, 0.5)
            frame = self._tone()
            self.box(x, y, x + w, min(y + h, floor), frame)
            self.box(x + 0.015, y + 0.015, x + w - 0.015, min(y + h, floor) - 0.015, self._tone(60, 250, 30))
            if rng.random() < 0.5:
                self.line((x + w / 2, y), (x + w / 2, min(y + h, floor)), frame, 0.012)
        for _ in range(int(rng.integers(0, 4))):
            self._furniture(floor)
        self._limbs(int(rng.integers(0, 3)))

    def _furniture(self, floor: float) -> None:
        rng, colour = self.rng, draw_colour(self.rng)
        x, w = float(rng.uniform(-0.15, 0.9)), float(rng.uniform(0.15, 0.45))
        base, h = floor + float(rng.uniform(0.0, 0.2)), float(rng.uniform(0.12, 0.4))
        kind = rng.integers(4)
        if kind == 0:  # table
            for leg in (x + 0.03, x + w - 0.03):
                self.line((leg, base - h), (leg, base), _scaled(colour, 0.6), 0.02)
            far = base - h - 0.05
            self.polygon([(x, base - h), (x + w, base - h), (x + w - 0.03, far), (x + 0.03, far)], colour)
            self.box(x, base - h, x + w, base - h + 0.02, _scaled(colour, 0.75))
        elif kind == 1:  # shelf
            self.box(x, base - 1.8 * h, x + w, base, _scaled(colour, 0.5))
            for level in range(4):
                top = base - 1.8 * h * (level + 1) / 4
                at = x + 0.01
                while at < x + w - 0.04:
                    book = float(rng.uniform(0.01, 0.04))
                    self.box(at, top + 0.02 + rng.uniform(0, 0.03), at + book, top + 0.42 * h, draw_colour(rng))
                    at += book + 0.004
                self.box(x, top + 0.43 * h, x + w, top + 0.45 * h, colour)
        elif kind == 2:  # sofa
            self.box(x, base - 0.8 * h, x + w, base, _scaled(colour, 0.8))
            self.box(x, base - 0.45 * h, x + w, base - 0.1 * h, colour)
            for edge in (x, x + w - 0.05):
                self.box(edge, base - 0.6 * h, edge + 0.05, base, _scaled(colour, 0.65))
        else:  # lamp
            self.line((x, base), (x, base - 1.8 * h), _scaled(colour, 0.5), 0.012)
            self.polygon([(x - 0.03, base - 2.2 * h), (x + 0.03, base - 2.2 * h), (x + 0.07, base - 1.7 * h),
                          (x - 0.07, base - 1.7 * h)], self._tone(180, 250))  # fmt: skip

    def _street(self) -> None:
        rng, far = self.rng, self.horizon
        sky: Colour = (float(rng.uniform(170, 250)), float(rng.uniform(150, 225)), float(rng.uniform(110, 220)))
        self._slope(0, far + 0.02, sky, _scaled(sky, 1.12))
        road = self._tone(60, 150, 6)
        self._slope(far, 1, _scaled(road, 1.1), road)
        x = -0.1
        while x < 1.0:
            w, top = float(rng.uniform(0.12, 0.45)), far - float(rng.uniform(0.1, 0.9))
            wall, pane = self._tone(60, 215, 18), self._tone(30, 200, 20)
            base = far + float(rng.uniform(0.01, 0.06))
            self.box(x, top, x + w, base, wall)
            nx, ny = int(rng.integers(2, 6)), int(rng.integers(2, 8))
            for i in range(nx):
                for j in range(ny):
                    left, high = x + w * (i + 0.25) / nx, top + (base - top) * (j + 0.2) / ny
                    self.box(left, high, left + 0.5 * w / nx, high + 0.6 * (base - top) / ny, pane)
            x += w
        if rng.random() < 0.6:
            vanish, paint = float(rng.uniform(0.2, 0.8)), self._tone(180, 240, 8)
            for foot in (float(rng.uniform(-0.5, 0.3)), float(rng.uniform(0.6, 1.5))):
                self.polygon([(vanish, far + 0.02), (foot, 1.02), (foot + 0.05, 1.02)], paint)
        for _ in range(int(rng.integers(0, 4))):
            self._pole(float(rng.uniform(0, 1)), far + float(rng.uniform(0.03, 0.3)))
        for _ in range(int(rng.integers(0, 3))):
            self._car(float(rng.uniform(-0.1, 0.9)), far + float(rng.uniform(0.04, 0.2)))

    def _field(self) -> None:
        rng, far = self.rng, self.horizon
        sky: Colour = (float(rng.uniform(190, 255)), float(rng.uniform(160, 230)), float(rng.uniform(110, 225)))
        grass: Colour = (float(rng.uniform(30, 90)), float(rng.uniform(90, 170)), float(rng.uniform(50, 150)))
        if rng.random() < 0.25:  # sand or snow
            grass = self._tone(150, 235, 12)
        self._slope(0, far + 0.02, sky, _scaled(sky, 1.1))
        self._slope(far, 1, _scaled(grass, 0.9), grass)
        ground = self.image[round(far * self.height) :]
        mottle = 1 + 0.10 * noise(rng, len(ground), self.width, int(rng.integers(1, 4)))
        ground[:] = np.clip(ground * mottle[:, :, None], 0, 255).astype(np.uint8)
        for _ in range(int(rng.integers(0, 9))):
            self._tree(float(rng.uniform(0, 1)), far + float(rng.uniform(0, 0.12)), float(rng.uniform(0.1, 0.55)))
        if rng.random() < 0.3:
            for x in np.arange(0, 1, float(rng.uniform(0.06, 0.2))):
                self.line((x, far - 0.05), (x, far + 0.12), self._tone(), 0.015)
            self.line((0, far), (1, far), self._tone(), 0.015)

    def _clutter(self) -> None:
        rng = self.rng
        self._slope(0, 1, draw_colour(rng), draw_colour(rng))
        for _ in range(int(rng.integers(15, 60))):
            centre, reach = rng.uniform(0, 1, 2), float(rng.exponential(0.09)) + 0.02
            kind, colour = rng.integers(4), draw_colour(rng)
            if kind == 0:
                angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 7))))
                self.polygon([(float(centre[0] + reach * np.cos(t)), float(centre[1] + reach * np.sin(t)))
                              for t in angles], colour)  # fmt: skip
            elif kind == 1:
                step = rng.normal(0, 2 * reach, 2)
                end = (float(centre[0] + step[0]), float(centre[1] + step[1]))
                self.line((float(centre[0]), float(centre[1])), end, colour, float(rng.uniform(0.004, 0.03)))
            elif kind == 2:
                self.box(centre[0], centre[1], centre[0] + reach, centre[1] + 1.5 * reach * rng.random(), colour)
            else:
                self._ball(float(centre[0]), float(centre[1]), 0.5 * reach, colour)
        self._limbs(int(rng.integers(2, 9)))

    def _blur(self) -> None:
        shape = (int(self.rng.integers(3, 9)), int(self.rng.integers(3, 9)))
        small = self.rng.uniform(40, 210, (*shape, 1)) + self.rng.normal(0, 35, (*shape, 3))
        big = cv2.resize(small.astype(np.float32), (self.width, self.height), interpolation=cv2.INTER_CUBIC)
        self.image[:] = np.clip(big, 0, 255).astype(np.uint8)

    def _limbs(self, count: int) -> None:
        """Draw bent bars and balls in skin and cloth colours: distractors that look like arms and heads."""
        rng = self.rng
        for _ in range(count):
            colour = self._skin() if rng.random() < 0.5 else draw_colour(rng)
            x, y = rng.uniform(0, 1, 2)
            thick = float(rng.uniform(0.015, 0.05))
            joint = (float(x + rng.normal(0, 0.12)), float(y + rng.normal(0, 0.12)))
            end = (float(joint[0] + rng.normal(0, 0.12)), float(joint[1] + rng.normal(0, 0.12)))
            self.line((float(x), float(y)), joint, colour, thick)
            self.line((float(x), float(y)), joint, _scaled(colour, 1.15), thick / 3)
            if rng.random() < 0.5:
                self.line(joint, end, _scaled(colour, 0.85), thick * 0.8)
            if rng.random() < 0.3:
                self._ball(*end, float(rng.uniform(0.02, 0.06)), self._skin())

    def _skin(self) -> Colour:
        tone = float(self.rng.uniform(0.3, 1.0))
        return 170 * tone, 195 * tone, 235 * tone

    def _ball(self, x: float, y: float, radius: float, colour: Colour) -> None:
        at = (round(x * self.width), round(y * self.height))
        size = max(round(radius * self.height), 1)
        cv2.circle(self.image, at, size, _scaled(colour, 0.8), -1, cv2.LINE_AA)
        cv2.circle(
            self.image, (at[0] - size // 5, at[1] - size // 5), max(round(0.7 * size), 1), colour, -1, cv2.LINE_AA
        )

    def _pole(self, x: float, base: float) -> None:
        colour, thick, top = self._tone(), float(self.rng.uniform(0.008, 0.05)), float(self.rng.uniform(-0.3, 0.4))
        for shift, light, share in ((0.0, 0.7, 1.0), (-0.15, 1.0, 0.6), (-0.2, 1.25, 0.2)):
            self.line((x + shift * thick, top), (x + shift * thick, base), _scaled(colour, light), thick * share)
        if self.rng.random() < 0.4:
            self._ball(x, top, float(self.rng.uniform(0.02, 0.06)), draw_colour(self.rng))

    def _tree(self, x: float, base: float, tall: float) -> None:
        rng = self.rng
        bark: Colour = (float(rng.uniform(20, 70)), float(rng.uniform(35, 90)), float(rng.uniform(50, 110)))
        self.line((x, base), (x, base - 0.6 * tall), bark, 0.07 * tall)
        leaf = np.array([rng.uniform(20, 70), rng.uniform(70, 150), rng.uniform(30, 120)])
        for _ in range(int(rng.integers(4, 12))):
            spot = rng.normal(0, 0.15 * tall, 2)
            shade = leaf * rng.uniform(0.6, 1.3)
            self._ball(float(x + spot[0]), float(base - 0.75 * tall + spot[1]), float(rng.uniform(0.08, 0.2) * tall),
                       (float(shade[0]), float(shade[1]), float(shade[2])))  # fmt: skip

    def _car(self, x: float, base: float) -> None:
        colour, w = draw_colour(self.rng), float(self.rng.uniform(0.15, 0.4))
        self.polygon([(x + 0.2 * w, base - 0.38 * w), (x + 0.7 * w, base - 0.38 * w), (x + 0.85 * w, base - 0.2 * w),
                      (x + 0.05 * w, base - 0.2 * w)], _scaled(colour, 0.5))  # fmt: skip
        self.box(x, base - 0.22 * w, x + w, base - 0.06 * w, colour)
        for wheel in (0.2, 0.8):
            self._ball(x + wheel * w, base - 0.05 * w, 0.08 * w, (35, 35, 35))


def foreground(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Array, Array]:
    """A random object in front of the people: a pole, a bar, a box or a ball.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random generator.
    size : (int, int)
        Height and width in pixels.

    Returns
    -------
    colours : array, shape (H, W, 3), float32
        Shaded colours.
    cover : array, shape (H, W), float32
        Opacity, 0 to 1.
    """
    height, width = size
    cover = np.zeros(size, np.uint8)
    kind = choose(rng, {"pole": 0.3, "bar": 0.2, "box": 0.35, "ball": 0.15})
    x, y = float(rng.uniform(0, width)), float(rng.uniform(0.2, 1) * height)
    thick = float(rng.uniform(0.02, 0.06)) * height
    if kind == "pole":
        cv2.line(
            cover, (round(x), -9), (round(x + rng.normal(0, 5)), height + 9), 255, max(round(thick), 2), cv2.LINE_AA
        )
    elif kind == "bar":
        tilt = float(rng.normal(0, 0.06)) * height
        cv2.line(cover, (-9, round(y)), (width + 9, round(y + tilt)), 255, max(round(thick), 2), cv2.LINE_AA)
    elif kind == "box":
        high, wide = rng.uniform(0.12, 0.35) * height, rng.uniform(0.12, 0.4) * width
        top = max(y, 0.55 * height)
        cv2.rectangle(cover, (round(x - wide / 2), round(top)), (round(x + wide / 2), round(top + high)), 255, -1)
    else:
        cv2.circle(cover, (round(x), round(y)), round(rng.uniform(0.04, 0.12) * height), 255, -1, cv2.LINE_AA)
    base = np.asarray(draw_colour(rng), np.float32)
    slope = np.linspace(1.15, 0.7, width, dtype=np.float32) if kind != "bar" else np.ones(width, np.float32)
    texture = (1 + 0.08 * noise(rng, height, width, int(rng.integers(0, 4)))) * slope
    return np.clip(base * texture[:, :, None], 0, 255), cover.astype(np.float32) / 255


def expose(rng: np.random.Generator, image: Array) -> NDArray[np.uint8]:
    """The scene as a camera records it: with blur, exposure, colour cast, noise and sometimes JPEG artefacts.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random generator.
    image : array, shape (H, W, 3), float32
        BGR, 0 to 255.

    Returns
    -------
    array, shape (H, W, 3), uint8
        The recorded image.
    """
    height, width = image.shape[:2]
    unit = height / 256
    pixels = cv2.convertScaleAbs(image)
    if rng.random() < 0.06:  # motion blur
        length = max(round(float(rng.uniform(3, 7)) * unit), 2)
        kernel = np.zeros((length, length), np.float32)
        cv2.line(kernel, (0, int(rng.integers(length))), (length - 1, int(rng.integers(length))), 1.0, 1)
        pixels = cv2.filter2D(pixels, -1, kernel / kernel.sum())
    else:
        pixels = cv2.GaussianBlur(pixels, (0, 0), max(float(rng.gamma(2.0, 0.22)), 0.35) * unit)
    gain = np.exp(rng.normal(0, 0.16)) * np.exp(rng.normal(0, 0.05, 3)) * rng.uniform(0.8, 1.15)
    curve = (np.arange(256)[:, None] - 120) * gain + rng.normal(120, 12)
    exposed = cv2.LUT(pixels, curve.astype(np.float32)[:, None, :])
    grain = noise(rng, height, 3 * width, 0).reshape(height, width, 3)
    result = cv2.addWeighted(exposed, 1, grain, float(rng.exponential(3.5)), 0, dtype=cv2.CV_8U)
    if rng.random() < 0.12:
        done, code = cv2.imencode(".jpg", result, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 80))])
        if done:
            return np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(result, np.uint8)


def _scaled(colour: Colour, factor: float) -> Colour:
    blue, green, red = (min(max(value * factor, 0.0), 255.0) for value in colour)
    return blue, green, red
