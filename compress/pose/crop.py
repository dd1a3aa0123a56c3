"""One person as a network of a fixed input size sees it: the region of an image, cut out, and the way back."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError
from compress.pose.spec import PoseSpec

Matrix = NDArray[np.float64]

#: How much larger than a person's box the region is along both axes, as in the public top-down code. That code also
#: measures regions in units of 200 pixels (``pixel_std``), which cancels out.
PADDING = 1.25


@dataclass(frozen=True)
class Region:
    """A rectangle of an image, maybe turned, that becomes a network's input.

    Attributes
    ----------
    centre : (float, float)
        x and y in pixels; the centre of the image's top-left pixel is (0, 0).
    size : (float, float)
        Width and height in pixels.
    rotation : float
        Degrees by which the content is turned clockwise on its way to the input.
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
        Factor of both sides; 1 for a box that has its margins, such as a whole image.

    Raises
    ------
    DataError
        If the box is not made of four numbers, or is empty.
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
        Whether the region's centre becomes ``(width, height) / 2``, as in the public top-down code, which the trained
        weights and the way back share, and not the middle of the input, ``(width - 1, height - 1) / 2``.
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
    """The affine map that leads back."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def fill_colour(pose: PoseSpec) -> tuple[float, float, float]:
    """Blue, green and red of what a crop shows beyond the image.

    Black, as in the public top-down code, or the network's mean (grey 128) for the networks with a background map.
    """
    if not pose.background:
        return (0.0, 0.0, 0.0)
    return pose.mean if pose.color == "bgr" else pose.mean[::-1]


def cut(
    image: NDArray[np.uint8], matrix: Matrix, size: tuple[int, int], fill: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The crop of an image, bilinear: (H, W, 3) uint8 in the channel order of the image.

    Pixels are not averaged where the image gets smaller: the public networks were trained and are scored without that.
    """
    height, width = size
    return np.asarray(
        cv2.warpAffine(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT, borderValue=fill
        ),
        dtype=np.uint8,
    )


def normalise_crop(crop: NDArray[np.uint8], pose: PoseSpec) -> NDArray[np.float32]:
    """A BGR crop (H, W, 3) as the network reads it: (3, H, W) float32, ``(pixel - mean) * scale``."""
    ordered = crop if pose.color == "bgr" else crop[..., ::-1]
    mean, scale = np.array(pose.mean, dtype=np.float32), np.array(pose.scale, dtype=np.float32)
    return np.ascontiguousarray(((ordered.astype(np.float32) - mean) * scale).transpose(2, 0, 1))
