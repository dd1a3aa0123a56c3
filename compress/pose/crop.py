"""Inputs of fixed size: a region of an image, cut out for a network, and the way back to the image."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError
from compress.pose.prepare import arrange_channels
from compress.pose.spec import PoseSpec

Matrix = NDArray[np.float64]

#: How much larger than a person's box the region is along both axes, as in the public top-down code. That code also
#: measures regions in units of 200 pixels (``pixel_std``), which cancels out.
PADDING = 1.25


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, possibly rotated, that becomes a network's input.

    Attributes
    ----------
    centre : (float, float)
        x and y in pixels; the centre of the image's top-left pixel is (0, 0).
    size : (float, float)
        Width and height in pixels.
    rotation : float
        Degrees by which the content is rotated clockwise.
    mirrored : bool
        Whether the content is mirrored left to right.
    """

    centre: tuple[float, float]
    size: tuple[float, float]
    rotation: float = 0.0
    mirrored: bool = False

    @property
    def area(self) -> float:
        """Square pixels."""
        return self.size[0] * self.size[1]


def box_region(box: ArrayLike, size: tuple[int, int], padding: float = PADDING) -> Region:
    """The region for a box: its shorter side is extended to the aspect ratio of the input, then both are padded.

    Parameters
    ----------
    box : array, shape (4,)
        x, y, width, height in pixels; x and y are the left and upper edge, half a pixel before the first centre.
    size : (int, int)
        Height and width of the input.
    padding : float, optional
        Factor of both sides; 1 for a box that includes its margins, such as a whole image.

    Raises
    ------
    DataError
        If the box is not four finite numbers, or is empty.
    """
    values = np.asarray(box, dtype=np.float64)
    if values.shape != (4,) or not np.isfinite(values).all() or values[2:].min() <= 0:
        raise DataError("a person's box must be x, y, width and height, the last two above 0", found=values.tolist())
    x, y, width, height = values.tolist()
    aspect = size[1] / size[0]
    centre = (x + width / 2 - 0.5, y + height / 2 - 0.5)
    width, height = max(width, aspect * height), max(height, width / aspect)
    return Region(centre, (width * padding, height * padding))


def image_region(shape: tuple[int, ...], size: tuple[int, int]) -> Region:
    """The smallest region with a whole image in its middle: its longer side fills the input, the other is padded.

    Parameters
    ----------
    shape : tuple of int
        Height and width of the image first.
    size : (int, int)
        Height and width of the input.
    """
    return box_region((0, 0, shape[1], shape[0]), size, padding=1.0)


def region_matrix(region: Region, size: tuple[int, int], *, corner_grid: bool) -> Matrix:
    """The affine map (2, 3) from pixels of the image to pixels of the input.

    Parameters
    ----------
    region : Region
        Has the aspect ratio of the input.
    size : (int, int)
        Height and width of the input.
    corner_grid : bool
        Whether the region's centre becomes ``(width, height) / 2``, as in the public top-down code, rather than the
        middle of the input, ``(width - 1, height - 1) / 2``.
    """
    goal = (np.array([size[1], size[0]], dtype=np.float64) - (0 if corner_grid else 1)) / 2
    scale = size[1] / region.size[0]
    angle = np.deg2rad(region.rotation)
    cosine, sine = scale * np.cos(angle), scale * np.sin(angle)
    linear = np.array([[cosine, -sine], [sine, cosine]]) @ np.diag([-1.0 if region.mirrored else 1.0, 1.0])
    return np.column_stack([linear, goal - linear @ np.array(region.centre)])


def transform(points: ArrayLike, matrix: Matrix) -> NDArray[np.float64]:
    """Points (..., 2) under an affine map (2, 3)."""
    return np.asarray(points, dtype=np.float64) @ matrix[:, :2].T + matrix[:, 2]


def invert(matrix: Matrix) -> Matrix:
    """The inverse of an affine map (2, 3)."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def crop_size(pose: PoseSpec, height: int | None = None) -> tuple[int, int]:
    """Height and width of inputs of fixed size; at another height in the same proportions."""
    own = pose.size
    if height is None or height == own[0]:
        return own
    return height, max(1, round(height * own[1] / own[0] / pose.stride)) * pose.stride


def scaled_size(size: tuple[int, int], pose: PoseSpec, scale: float) -> tuple[int, int]:
    """A size times a factor, rounded to multiples of the stride; unchanged at scale 1."""
    height, width = (max(1, round(n * scale / pose.stride)) * pose.stride if scale != 1 else n for n in size)
    return height, width


@dataclass(frozen=True)
class Crop:
    """A network input of fixed size and where it lies in an image.

    Attributes
    ----------
    array : array, shape (C, H, W), float32
        Normalised channels.
    matrix : array, shape (2, 3)
        From pixels of the image to pixels of the input.
    """

    array: NDArray[np.float32]
    matrix: Matrix

    def to_image(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points (..., 2) in pixels of the input as pixels of the image."""
        return transform(points, invert(self.matrix))

    def pixels_to(self, other: Crop) -> Matrix:
        """The affine map (2, 3) from pixels of this input to those of another input of the same region."""
        return (np.vstack([other.matrix, [0, 0, 1]]) @ np.vstack([invert(self.matrix), [0, 0, 1]]))[:2]


def crop_image(image: NDArray[np.uint8], region: Region, pose: PoseSpec, size: tuple[int, int]) -> Crop:
    """A region of an image as a network's input.

    Parameters
    ----------
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    region : Region
        Has the aspect ratio of the input.
    pose : PoseSpec
        Grid, border colour and normalisation.
    size : (int, int)
        Height and width of the input.
    """
    matrix = region_matrix(region, size, corner_grid=pose.corner_grid)
    return Crop(normalise_crop(cut(image, matrix, size, pose.fill), pose), matrix)


def cut(image: NDArray[np.uint8], matrix: Matrix, size: tuple[int, int], fill: tuple[float, ...]) -> NDArray[np.uint8]:
    """The crop of an image, bilinear: (H, W, 3) uint8 in the channel order of the image.

    There is no antialiasing where the image gets smaller: the public networks were trained and are scored without it.
    """
    height, width = size
    return np.asarray(
        cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        ),
        dtype=np.uint8,
    )


def normalise_crop(crop: NDArray[np.uint8], pose: PoseSpec) -> NDArray[np.float32]:
    """A BGR crop (H, W, 3) as the network reads it: (C, H, W) float32, ``(pixel - mean) * scale``."""
    mean, scale = np.array(pose.mean, dtype=np.float32), np.array(pose.scale, dtype=np.float32)
    ordered = arrange_channels(crop, pose)
    return np.ascontiguousarray(((ordered.astype(np.float32) - mean) * scale).transpose(2, 0, 1))
