"""Appearance of a drawn person: an outfit and its texture of skin, face, hair, cloth and shoes.

Colours are BGR, 0 to 255.
"""

from __future__ import annotations

from colorsys import hsv_to_rgb
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.data.drawn.shapes import Array, Chart

Colour = tuple[float, float, float]

#: Cloth patterns and their probabilities.
PATTERNS = {
    "plain": 0.40, "rows": 0.13, "columns": 0.09, "checks": 0.11, "dots": 0.07, "blocks": 0.08, "print": 0.12,
}  # fmt: skip
_SKINS: tuple[Colour, ...] = (
    (180, 205, 240), (160, 190, 232), (135, 170, 222), (115, 150, 205), (90, 125, 185), (65, 95, 150), (48, 70, 115),
    (35, 50, 85),
)  # fmt: skip
_HAIRS: tuple[Colour, ...] = (
    (20, 18, 16), (24, 28, 36), (28, 40, 60), (40, 62, 95), (70, 120, 170), (110, 180, 215), (35, 70, 150),
    (140, 140, 140), (215, 220, 222),
)  # fmt: skip
_NOISE_SIZE = 1024


@dataclass(frozen=True)
class Outfit:
    """Appearance of one person.

    Attributes
    ----------
    skin, hair, top, bottom, second, shoe : tuple of float
        Colours; ``second`` is for patterns and trimmings.
    top_pattern, bottom_pattern : str
        Keys of `PATTERNS`.
    sleeves : str
        ``none``, ``short`` or ``long``.
    legs : str
        ``trousers``, ``shorts``, ``skirt`` or ``dress``.
    front : str
        Trimming of the chest: ``plain``, ``buttons``, ``logo``, ``tie``, ``open`` (a jacket) or ``vneck``.
    hair_style : str
        ``bald``, ``short``, ``long``, ``tail`` or ``cap``.
    beard, glasses, tucked, pack : bool
        Whether there are a beard, glasses, a tucked-in shirt and a backpack.
    """

    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    second: Colour
    shoe: Colour
    top_pattern: str
    bottom_pattern: str
    sleeves: str
    legs: str
    front: str
    hair_style: str
    beard: bool
    glasses: bool
    tucked: bool
    pack: bool


def choose(rng: np.random.Generator, weights: dict[str, float]) -> str:
    """A random key, with probabilities in proportion to the weights."""
    point = rng.random() * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return next(iter(weights))


def draw_colour(rng: np.random.Generator) -> Colour:
    """A random cloth colour: often grey, black or white, as clothes are."""
    if rng.random() < 0.4:
        grey = float(rng.choice([28, 50, 85, 130, 190, 228]))
        tint = rng.normal(0, 6, 3)
        return float(grey + tint[0]), float(grey + tint[1]), float(grey + tint[2])
    red, green, blue = hsv_to_rgb(rng.random(), rng.uniform(0.24, 0.9), rng.uniform(60, 245))
    return blue, green, red


def draw_outfit(rng: np.random.Generator) -> Outfit:
    """A random outfit."""
    skin = np.array(_SKINS[rng.integers(len(_SKINS))]) * rng.uniform(0.93, 1.05) + rng.normal(0, 4, 3)
    hair = np.array(_HAIRS[min(int(rng.exponential(2.4)), len(_HAIRS) - 1)]) * rng.uniform(0.85, 1.2)
    legs = choose(rng, {"trousers": 0.62, "shorts": 0.18, "skirt": 0.10, "dress": 0.10})
    style = choose(rng, {"bald": 0.07, "short": 0.45, "long": 0.24, "tail": 0.12, "cap": 0.12})
    long_hair = style in ("long", "tail") or legs in ("skirt", "dress")
    denim = legs == "trousers" and rng.random() < 0.35
    bottom = (float(rng.uniform(85, 150)), float(rng.uniform(55, 95)), float(rng.uniform(35, 70)))
    return Outfit(
        skin=_colour(skin),
        hair=_colour(hair),
        top=draw_colour(rng),
        bottom=bottom if denim else draw_colour(rng),
        second=draw_colour(rng),
        shoe=draw_colour(rng),
        top_pattern=choose(rng, PATTERNS),
        bottom_pattern="plain" if denim or rng.random() < 0.75 else choose(rng, PATTERNS),
        sleeves=choose(rng, {"none": 0.12, "short": 0.43, "long": 0.45}),
        legs=legs,
        front=choose(rng, {"plain": 0.24, "buttons": 0.2, "logo": 0.22, "tie": 0.06, "open": 0.14, "vneck": 0.14}),
        hair_style=style,
        beard=not long_hair and bool(rng.random() < 0.3),
        glasses=bool(rng.random() < 0.18),
        tucked=bool(rng.random() < 0.45),
        pack=bool(rng.random() < 0.08),
    )


def make_atlas(rng: np.random.Generator, outfit: Outfit, scale: float) -> tuple[NDArray[np.uint8], dict[str, Chart]]:
    """Paint the texture of a person.

    Parameters
    ----------
    rng : numpy.random.Generator
        Random generator.
    outfit : Outfit
        What it shows.
    scale : float
        Pixels per stature: a texel is about a pixel, or larger in close views.

    Returns
    -------
    atlas : array, shape (h, w, 3), uint8
        The texture.
    charts : dict of str to Chart
        Where ``skin, hair, shoe, top, bottom, second`` (projected) and ``chest, belly, hips, head`` (wrapped) lie in
        it.
    """
    cell = int(min(max(0.30 * scale, 24), 80))
    atlas = np.empty((cell, 11 * cell, 3), np.float32)
    atlas[:, :cell] = outfit.skin
    atlas[:, cell : 2 * cell] = outfit.hair
    atlas[:, 2 * cell : 3 * cell] = outfit.shoe
    atlas[cell // 2 + max(cell // 30, 1) :, 2 * cell : 3 * cell] = outfit.second  # the sole
    atlas[:, 3 * cell : 6 * cell] = _cloth(rng, outfit.top_pattern, outfit.top, outfit.second, 3 * cell, cell, scale)
    atlas[:, 6 * cell : 8 * cell] = _cloth(
        rng, outfit.bottom_pattern, outfit.bottom, outfit.second, 2 * cell, cell, scale
    )
    atlas[:, 8 * cell :] = outfit.second
    atlas *= 1 + 0.07 * noise(rng, cell, 11 * cell, 2)[:, :, None]
    atlas[:, cell : 2 * cell] *= 1 + 0.16 * noise(rng, cell, cell, 0)[:, :, None]
    head = _head(rng, outfit, max(cell, 48))
    atlas[:, 8 * cell : 10 * cell] = head if len(head) == cell else cv2.resize(head, (2 * cell, cell))

    charts = {name: Chart(x * cell, 0, cell, cell) for name, x in (("skin", 0), ("hair", 1), ("shoe", 2), ("top", 3))}
    charts["second"] = Chart(10 * cell, 0, cell, cell)
    charts["bottom"] = Chart(6 * cell, 0, cell, cell)
    charts["chest"] = Chart(4 * cell, 0, 2 * cell - 1, 0.55 * cell, wrap=True)
    charts["belly"] = Chart(4 * cell, 0.55 * cell, 2 * cell - 1, 0.45 * cell, wrap=True)
    charts["hips"] = Chart(6 * cell, 0, 2 * cell - 1, cell, wrap=True)
    charts["head"] = Chart(8 * cell, 0, 2 * cell - 1, cell, wrap=True)
    pixels = np.minimum(atlas, 255, out=atlas).astype(np.uint8)
    _trim(pixels[:, 4 * cell : 6 * cell], outfit)
    return pixels, charts


def noise(rng: np.random.Generator, height: int, width: int, octave: int) -> Array:
    """A random cut-out (H, W) of stored noise of unit variance; its grain is about ``2 ** octave`` pixels (0 to 5)."""
    bank = _bank(octave)
    if height <= _NOISE_SIZE and width <= _NOISE_SIZE:
        y, x = int(rng.integers(_NOISE_SIZE - height + 1)), int(rng.integers(_NOISE_SIZE - width + 1))
        return bank[y : y + height, x : x + width]
    y, x = int(rng.integers(_NOISE_SIZE)), int(rng.integers(_NOISE_SIZE))
    return np.take(np.take(bank, (y + np.arange(height)) % _NOISE_SIZE, 0), (x + np.arange(width)) % _NOISE_SIZE, 1)


@lru_cache(maxsize=6)
def _bank(octave: int) -> Array:
    # New noise for each image would cost more than drawing its people.
    values: Array = np.random.default_rng(20 + octave).standard_normal((_NOISE_SIZE, _NOISE_SIZE)).astype(np.float32)
    if octave:
        values = cv2.GaussianBlur(values, (0, 0), 2.0**octave / 2, borderType=cv2.BORDER_REFLECT_101)
    values /= values.std()
    values.setflags(write=False)
    return values


def _colour(values: NDArray[np.float64]) -> Colour:
    blue, green, red = np.clip(values, 8, 250)
    return float(blue), float(green), float(red)


def _cloth(
    rng: np.random.Generator, pattern: str, first: Colour, second: Colour, width: int, height: int, scale: float
) -> Array:
    period = max(scale * float(rng.uniform(0.018, 0.06)), 3.0)
    xs = np.arange(width, dtype=np.float32)[None, :]
    ys = np.arange(height, dtype=np.float32)[:, None]
    amount: Array
    if pattern == "rows":
        amount = _wave(ys, period) + 0 * xs
    elif pattern == "columns":
        amount = _wave(xs, period) + 0 * ys
    elif pattern == "checks":
        amount = (_wave(xs, period) + _wave(ys, period)) / 2
    elif pattern == "dots":
        period *= 1.3
        across = (xs + (ys // period % 2) * period / 2) % period - period / 2
        amount = np.clip(0.35 * period - np.hypot(across, ys % period - period / 2) + 0.5, 0, 1)
    elif pattern == "blocks":
        amount = np.clip(ys - height * float(rng.uniform(0.3, 0.7)) + 0.5, 0, 1) + 0 * xs
    elif pattern == "print":
        octave = 1 + int(rng.integers(3))
        amount = np.clip(2.5 * noise(rng, height, width, octave), 0, 1)
    else:
        return np.full((height, width, 3), first, np.float32)
    return cv2.merge([amount * (b - a) + a for a, b in zip(first, second, strict=True)])


def _wave(positions: Array, period: float) -> Array:
    phase = positions % np.float32(period)
    return np.clip(np.minimum(phase, period - phase) - 0.25 * period + 0.5, 0, 1)


def _trim(wrap: NDArray[np.uint8], outfit: Outfit) -> None:
    """Draw collar, buttons and the like on the front of the shirt, in the middle of the texture."""
    height, width = wrap.shape[:2]
    middle, unit = width / 2, height / 16
    canvas = np.ascontiguousarray(wrap)

    def polygon(points: list[tuple[float, float]], colour: Colour) -> None:
        corners = np.array([[(middle + x * unit) * 16, y * unit * 16] for x, y in points])
        cv2.fillPoly(canvas, [corners.astype(np.int32)], colour, cv2.LINE_AA, 4)

    light = sum(outfit.top) > 380
    contrast: Colour = (40, 40, 40) if light else (225, 225, 225)
    if outfit.front == "open":
        polygon([(-2.2, 0), (2.2, 0), (2.6, 16), (-2.6, 16)], outfit.second)
        polygon([(-2.0, 0), (2.0, 0), (0, 3)], outfit.skin)
    elif outfit.front == "vneck":
        polygon([(-2.6, 0), (2.6, 0), (0, 4.5)], outfit.skin)
    elif outfit.front == "buttons":
        polygon([(-0.25, 0), (0.25, 0), (0.25, 16), (-0.25, 16)], _colour(0.8 * np.array(outfit.top)))
        for y in range(2, 16, 3):
            polygon([(-0.3, y), (0.3, y), (0.3, y + 0.6), (-0.3, y + 0.6)], contrast)
        polygon([(-2.6, 0), (2.6, 0), (0, 2.4)], outfit.skin)
        polygon([(-3.2, 0), (-1.9, 0), (0, 2.4), (-1.2, 3)], contrast)
        polygon([(3.2, 0), (1.9, 0), (0, 2.4), (1.2, 3)], contrast)
    elif outfit.front == "logo":
        polygon([(-2.2, 4), (2.2, 4), (2.2, 7), (-2.2, 7)], outfit.second)
        polygon([(-1.6, 4.7), (1.6, 4.7), (1.6, 5.1), (-1.6, 5.1)], contrast)
        polygon([(-1.6, 5.8), (0.9, 5.8), (0.9, 6.2), (-1.6, 6.2)], contrast)
    elif outfit.front == "tie":
        polygon([(-2.4, 0), (2.4, 0), (0, 3)], (230, 230, 230))
        polygon([(-0.6, 1), (0.6, 1), (1.0, 9), (0, 10.5), (-1.0, 9)], outfit.second)
    else:
        polygon([(-2.2, 0), (2.2, 0), (1.2, 1.4), (-1.2, 1.4)], outfit.skin)
    if outfit.pack:
        for x in (-3.6, 2.5):
            polygon([(x, 0), (x + 1.1, 0), (x + 1.1, 9), (x, 9)], outfit.second)
    wrap[:] = canvas


def _head(rng: np.random.Generator, outfit: Outfit, height: int) -> Array:
    """Face, hair and nape over longitude (front in the middle, the person's left to the right) and height.

    Features are placed on a grid of 256 by 128 that is scaled to the size.
    """
    width, unit = 2 * height, height / 128
    longitude = np.abs(np.linspace(-180, 180, width, dtype=np.float32))
    level = np.linspace(1, -1, height, dtype=np.float32)[:, None]
    skin = np.array(outfit.skin, np.float32)
    face = np.empty((height, width, 3), np.uint8)
    face[:] = skin.astype(np.uint8)
    dark = _colour(0.35 * skin.astype(np.float64))
    brow = outfit.hair if sum(outfit.hair) < 350 else _colour(0.6 * np.array(outfit.hair))

    def spot(x: float, y: float, half: tuple[float, float], colour: Colour, thick: float = 0, arc: int = 0) -> None:
        """Draw an ellipse, filled or as an outline, or with ``arc`` its upper half without that many degrees."""
        line = max(round(thick * unit), 1) if thick else -1
        centre, axes = (
            (round(x * unit * 16), round(y * unit * 16)),
            (round(half[0] * unit * 16), round(half[1] * unit * 16)),
        )
        begin, end = (180 + arc // 2, 360 - arc // 2) if arc else (0, 360)
        cv2.ellipse(face, centre, axes, 0, begin, end, colour, line, cv2.LINE_AA, 4)

    for side in (-1, 1):
        spot(128 + side * 30, 82, (14, 10), _colour(skin * np.array([0.90, 0.91, 1.0])))
    if outfit.beard:
        edge = np.interp(longitude, [0, 25, 60, 85, 100], [-0.34, -0.42, -0.40, -0.05, -2]).astype(np.float32)
        _mix(face, (edge - level) * 10 * unit, outfit.hair)
    spot(128, 94, (11, 4), _colour(skin * np.array([0.62, 0.55, 0.85])))
    spot(128, 92, (11, 2), dark, 1.5)
    for side in (-1, 1):
        x = 128 + side * 18
        spot(x, 60, (10, 6), _colour(0.75 * skin.astype(np.float64)))
        spot(x, 60, (8, 4.5), (235, 238, 240))
        spot(x, 60, (4, 4.5), (30, 35, 45))
        spot(x, 60, (9, 5), dark, 1.5, arc=20)
        spot(x, 55, (12, 7), brow, 3, arc=40)
        spot(128 + side * 5, 80, (3, 2), dark)
    if outfit.glasses:
        shaded = rng.random() < 0.4
        for side in (-1, 1):
            spot(128 + side * 18, 61, (13, 10), (25, 25, 25), 0 if shaded else 2)
            spot(128 + side * 47, 59, (17, 1.2), (25, 25, 25))
        spot(128, 59, (6, 1.2), (25, 25, 25))

    if outfit.hair_style == "cap":
        line = np.interp(longitude, [0, 60, 180], [0.42, 0.36, 0.05]).astype(np.float32)
        nape = np.interp(longitude, [0, 70, 80, 105, 180], [2, 2, -0.05, -0.35, -0.5]).astype(np.float32)
        _mix(face, (level - nape) * 25 * unit, outfit.hair)
        _mix(face, (level - line) * 25 * unit, outfit.second)
    elif outfit.hair_style != "bald":
        fringe = float(rng.uniform(0.30, 0.62))
        edges = [fringe, fringe - 0.05, 0.2, -0.1, -0.45, -0.62]
        line = np.interp(longitude, [0, 35, 58, 74, 105, 180], edges).astype(np.float32)
        _mix(face, (level - line) * 25 * unit, outfit.hair)
    return face.astype(np.float32)


def _mix(image: NDArray[np.uint8], amount: Array, colour: Colour) -> None:
    """Blend a colour into an image with the opacity ``amount``, clipped to 0 to 1."""
    share = np.minimum(np.maximum(amount, 0), 1)[:, :, None]
    rows = np.flatnonzero(share.any(axis=(1, 2)))
    if len(rows):
        part = image[rows[0] : rows[-1] + 1]
        part[:] = part + share[rows[0] : rows[-1] + 1] * (np.asarray(colour, np.float32) - part)
