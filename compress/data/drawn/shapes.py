"""Rounded shapes rasterised into a buffer of depth, shading and texture coordinates.

A person is a few dozen tubes and ellipsoids. Each is drawn into a small rectangle and kept where it is nearest (a depth
buffer), so that limbs occlude one another pixel by pixel. Colours are looked up once at the end, for the whole person.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor, hypot, pi, sqrt
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

#: Pixels, float32 unless stated otherwise. OpenCV's stubs name no element type.
Array = NDArray[Any]

#: Depth of a pixel that nothing covers.
FAR = np.float32(1e6)
_HALVES = np.arange(4096, dtype=np.float32) / 2


@dataclass(frozen=True)
class Chart:
    """Where a shape finds its colours in the texture.

    Attributes
    ----------
    x, y, width, height : float
        Rectangle of the atlas in texels.
    wrap : bool
        The rectangle wraps once around the shape, its middle at the front; otherwise it is projected from the front,
        one texel per pixel.
    """

    x: float
    y: float
    width: float
    height: float
    wrap: bool = False


@dataclass(frozen=True)
class Light:
    """A distant light.

    Attributes
    ----------
    direction : array, shape (3,)
        Unit vector to the light in camera axes (x right, y down, z away from the camera).
    ambient : float
        Brightness of a surface turned away from the light, 0 to 1.
    """

    direction: NDArray[np.float64]
    ambient: float


@dataclass(frozen=True)
class Profile:
    """Shape of a tube.

    Attributes
    ----------
    radii : tuple of float
        Half widths at equal steps along the axis, in pixels.
    flat : float
        Thickness from front to back as a share of the width.
    caps : (float, float)
        Length of the rounded ends as a share of the radius there.
    """

    radii: tuple[float, ...]
    flat: float = 1.0
    caps: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True)
class _Section:
    """Elliptic section of a tube, seen along its projected axis.

    It is the image of the unit circle under [[ln, fn], [lz, fz]]; rows are across the axis and away from the camera,
    columns the left and front directions of the bone.
    """

    ln: float
    fn: float
    lz: float
    fz: float
    across: float
    skew: float
    deep: float

    @classmethod
    def of(cls, frame: NDArray[np.float64], flat: float, axis: tuple[float, float]) -> _Section:
        ex, ey = axis
        (left_x, _, front_x), (left_y, _, front_y), (lz, _, fz) = frame.tolist()
        ln, fn, fz = ex * left_y - ey * left_x, flat * (ex * front_y - ey * front_x), flat * fz
        across = max(hypot(ln, fn), 0.35)
        skew = (ln * lz + fn * fz) / across**2
        deep = sqrt(max(lz * lz + fz * fz - (skew * across) ** 2, 0.15))
        return cls(ln, fn, lz, fz, across, skew, deep)

    @property
    def determinant(self) -> float:
        """Of the matrix, kept away from 0 where the section is seen edge on."""
        determinant = self.ln * self.fz - self.fn * self.lz
        if abs(determinant) < 0.05:
            return 0.05 if determinant >= 0 else -0.05
        return determinant

    def lateral(self, side: Array, front: Array) -> Array:
        """Coordinate to the bone's left on the unit circle, from those across and towards the camera."""
        determinant = self.determinant
        return ((self.fz - self.fn * self.skew) * self.across / determinant) * side + (
            self.fn * self.deep / determinant
        ) * front

    def forward(self, side: Array, front: Array) -> Array:
        """Coordinate to the bone's front."""
        determinant = self.determinant
        return ((self.ln * self.skew - self.lz) * self.across / determinant) * side - (
            self.ln * self.deep / determinant
        ) * front


class Buffer:
    """What a camera sees of one person, pixel by pixel.

    Parameters
    ----------
    box : (int, int, int, int)
        Left, top, right, bottom of the region in image pixels, right and bottom excluded.
    light : Light
        Where it is lit from.
    """

    def __init__(self, box: tuple[int, int, int, int], light: Light) -> None:
        self.left, self.top, right, bottom = box
        self.height, self.width = bottom - self.top, right - self.left
        self.light = [float(v) for v in light.direction]
        self.ambient = light.ambient
        shape = (self.height, self.width)
        self.depth: Array = np.full(shape, FAR, np.float32)
        self.cover: Array = np.zeros(shape, np.float32)
        self.shade: Array = np.zeros(shape, np.float32)
        self.u: Array = np.zeros(shape, np.float32)
        self.v: Array = np.zeros(shape, np.float32)
        self.part: NDArray[np.uint8] = np.zeros(shape, np.uint8)
        self._xs = np.arange(self.left, right, dtype=np.float32)
        self._ys = np.arange(self.top, bottom, dtype=np.float32)[:, None]

    def tube(
        self,
        part: int,
        start: NDArray[np.float64],
        end: NDArray[np.float64],
        profile: Profile,
        chart: Chart,
        frame: NDArray[np.float64],
    ) -> None:
        """Draw a tube of elliptic section with rounded ends.

        Parameters
        ----------
        part : int
            Number written into ``part``.
        start, end : array, shape (3,)
            Ends of the axis, in pixels.
        profile : Profile
            Its widths, thickness and ends.
        chart : Chart
            Texture.
        frame : array, shape (3, 3)
            Left, up and forward directions of the bone in camera axes, as columns.
        """
        radii, caps = profile.radii, profile.caps
        x0, y0, z0 = (float(value) for value in start)
        ex, ey, ez = float(end[0]) - x0, float(end[1]) - y0, float(end[2]) - z0
        length = max(hypot(ex, ey), 1e-3)
        extent = hypot(length, ez)
        ex, ey = (ex / length, ey / length) if length > 1e-3 else (0.0, 1.0)
        section = _Section.of(frame, profile.flat, (ex, ey))
        across = section.across
        cap0, cap1 = max(caps[0] * radii[0], 0.5), max(caps[1] * radii[-1], 0.5)

        widest = max(radii)
        pad = widest * max(across, 1.0)
        window = self._window(min(x0, x0 + ex * length) - pad, min(y0, y0 + ey * length) - pad,
                              max(x0, x0 + ex * length) + pad, max(y0, y0 + ey * length) + pad)  # fmt: skip
        if window is None:
            return
        rows, columns = window
        dx, dy = self._xs[columns] - x0, self._ys[rows] - y0
        along = ex * dx + (ey * dy + cap0)
        aside = ex * dy - ey * dx

        inside, wide = _widths(radii, length, (cap0, cap1))
        index = (along + along).astype(np.intp)
        np.minimum(np.maximum(index, 0, out=index), len(inside) - 1, out=index)
        width = (wide * across).astype(np.float32).take(index)
        cover = width - np.abs(aside) + 0.5
        side = np.minimum(np.maximum(aside / np.maximum(width, 0.3), -1), 1)
        front = np.sqrt(1 - side * side)
        depth = (z0 + ez * inside).take(index)
        depth += section.skew * aside
        depth -= (section.deep / across) * width * front
        lx, ly, lz_light = self.light
        shade = (ly * ex - lx * ey) * side - lz_light * front

        lateral = section.lateral(side, front)
        if chart.wrap:
            forward = section.forward(side, front)
            u = np.arctan2(lateral, forward) * (chart.width / (2 * pi)) + (chart.x + chart.width / 2)
            high = chart.height - 1
        else:
            # The neighbours of the chart have other colours.
            u = lateral * min(widest, chart.width / 2 - 2)
            u = np.minimum(np.maximum(u, 1 - chart.width / 2), chart.width / 2 - 1) + (chart.x + chart.width / 2)
            high = min(chart.height - 1, extent)
        v = (chart.y + high * inside).take(index)
        self._write(rows, columns, part, depth, cover, shade, u, v)

    def ellipsoid(self, part: int, centre: NDArray[np.float64], axes: NDArray[np.float64], chart: Chart) -> None:
        """Draw an ellipsoid.

        Parameters
        ----------
        part : int
            Number written into ``part``.
        centre : array, shape (3,)
            Centre in pixels.
        axes : array, shape (3, 3)
            Semi-axes to the left, upwards and forward in camera axes, as columns, in pixels.
        chart : Chart
            Texture; a wrapped one holds longitude (middle at the front, left to the right) and height (top first).
        """
        x0, y0, z0 = (float(value) for value in centre)
        (xx, xy, xz), (_, yy, yz), (_, _, zz) = (axes @ axes.T).tolist()
        window = self._window(x0 - sqrt(xx), y0 - sqrt(yy), x0 + sqrt(xx), y0 + sqrt(yy))
        if window is None:
            return
        rows, columns = window
        dx, dy = self._xs[columns] - x0, self._ys[rows] - y0
        xx, yy = xx + 0.05, yy + 0.05  # keeps outlines thinner than a pixel invertible
        area = xx * yy - xy * xy
        # Squared distance from the centre, 1 on the outline.
        square = (yy / area) * dx * dx + (xx / area) * dy * dy - ((2 * xy / area) * dx) * dy
        cover = (1 - np.sqrt(square)) * sqrt(sqrt(area)) + 0.5
        front = np.sqrt(np.maximum(1 - square, 0))
        slope_x, slope_y = (yy * xz - xy * yz) / area, (xx * yz - xy * xz) / area
        deep = sqrt(max(zz - slope_x * xz - slope_y * yz, 1e-6))
        dz = (slope_x * dx + slope_y * dy) - deep * front
        lengths = np.sqrt((axes * axes).sum(axis=0))
        inverse = (axes / lengths**2).T

        def linear(row: NDArray[np.float64]) -> Array:
            a, b, c = row.tolist()
            value: Array = (a * dx + b * dy) + c * dz
            return value

        left, up = linear(inverse[0]), linear(inverse[1])
        # The direction in the ellipsoid's own axes approximates the normal.
        shade = linear((np.asarray(self.light) @ (axes / lengths)) @ inverse)
        if chart.wrap:
            u = np.arctan2(left, linear(inverse[2])) * (chart.width / (2 * pi)) + (chart.x + chart.width / 2)
            v = (chart.y + (chart.height - 1) / 2) - (chart.height - 1) / 2 * np.minimum(np.maximum(up, -1), 1)
        else:
            half = chart.width / 2 - 2
            u = left * min(float(lengths[0]), half) + (chart.x + chart.width / 2)
            v = up * -min(float(lengths[1]), half) + (chart.y + chart.height / 2)
        self._write(rows, columns, part, dz + z0, cover, shade, u, v)

    def colour(self, atlas: NDArray[np.uint8], reach: float) -> Array:
        """Shaded colours of all pixels with soft contact shadows (ambient occlusion), BGR 0 to 255.

        Parameters
        ----------
        atlas : array, shape (h, w, 3), uint8
            The texture.
        reach : float
            Size of the shadows in pixels.
        """
        colours = cv2.remap(atlas, self.u, self.v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        light = np.maximum(self.shade, 0) * (1 - self.ambient) + self.ambient
        depth = np.minimum(self.depth, self.depth.min() + np.float32(6 * reach))
        size = 2 * max(1, round(reach / 2)) + 1
        gap = np.minimum(np.maximum(depth - cv2.blur(depth, (size, size)), 0), reach)
        light *= 1 - (0.45 / reach) * gap
        return cv2.multiply(colours, cv2.merge([light, light, light]), dtype=cv2.CV_32F)

    def _window(self, x0: float, y0: float, x1: float, y1: float) -> tuple[slice, slice] | None:
        left, right = max(floor(x0 - 1) - self.left, 0), min(ceil(x1 + 2) - self.left, self.width)
        top, bottom = max(floor(y0 - 1) - self.top, 0), min(ceil(y1 + 2) - self.top, self.height)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)

    def _write(
        self, rows: slice, columns: slice, part: int, depth: Array, cover: Array, shade: Array, u: Array, v: Array
    ) -> None:
        nearest = self.depth[rows, columns]
        # A pixel that is less than half covered shows only where nothing else is.
        depth += (cover < 0.5) * np.float32(1e4)
        nearer = (depth < nearest) & (cover > 0)
        np.copyto(nearest, depth, where=nearer)
        np.copyto(self.shade[rows, columns], shade, where=nearer)
        np.copyto(self.u[rows, columns], u, where=nearer)
        np.copyto(self.v[rows, columns], v, where=nearer)
        np.copyto(self.part[rows, columns], np.uint8(part), where=nearer)
        cover_here = self.cover[rows, columns]
        np.maximum(cover_here, np.minimum(cover, 1), out=cover_here)


def _widths(radii: tuple[float, ...], length: float, caps: tuple[float, float]) -> tuple[Array, Array]:
    """Position on the axis, 0 to 1, and half width of a tube at steps of half a pixel from end to end with its caps."""
    first, second = caps
    last = int(2 * (length + first + second)) + 1
    steps = _HALVES[: last + 1] - first if last < len(_HALVES) else np.arange(last + 1, dtype=np.float32) / 2 - first
    inside = np.minimum(np.maximum(steps / length, 0), 1)
    over = np.maximum(np.maximum(steps / -first, (steps - length) / second), 0)
    wide = np.interp(inside, _knots(len(radii)), radii) * np.sqrt(np.maximum(1 - over * over, 0))
    wide[over >= 1] = -1  # not even half a pixel beyond the caps
    return inside, wide


@lru_cache(maxsize=16)
def _knots(count: int) -> NDArray[np.float64]:
    return np.linspace(0, 1, count)
