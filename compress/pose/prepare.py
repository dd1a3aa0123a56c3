"""From an image to a network's input, and from points in that input back to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError
from compress.pose.spec import PoseSpec


@dataclass(frozen=True)
class Prepared:
    """A network input and how it came from an image.

    Attributes
    ----------
    array : array, shape (3, H, W), float32
        Normalised channels; H and W are multiples of the stride.
    scale : float
        Input pixels per image pixel, the same along both axes.
    pad : (int, int)
        Columns of padding left of the scaled image and rows above it.
    size : (int, int)
        Height and width of the original image.
    """

    array: NDArray[np.float32]
    scale: float
    pad: tuple[int, int]
    size: tuple[int, int]

    @property
    def scaled_size(self) -> tuple[int, int]:
        """Height and width in pixels of the scaled image without its padding."""
        return round(self.size[0] * self.scale), round(self.size[1] * self.scale)


def prepare(image: NDArray[np.uint8], spec: PoseSpec, height: int | None = None) -> Prepared:
    """Normalise, scale and pad an image as the public evaluation of lightweight OpenPose does.

    The channels become ``(pixel - mean) * scale``, the image is scaled to the height with cubic interpolation, and
    padded with zeros, the scaled image in the middle: its width to at least ``height``, both sides to multiples of
    the stride. Where the padding can't be split evenly, the extra row is below and the extra column on the right.

    Parameters
    ----------
    image : array, shape (h, w, 3), uint8
        Pixels in BGR order.
    spec : PoseSpec
        Channel order, mean, scale, stride and, unless given, height.
    height : int, optional
        Height in pixels that the image is scaled to.

    Raises
    ------
    DataError
        If the array is not such an image, the height is not positive, or nothing of the width would remain.
    """
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        found = (image.shape, image.dtype.name) if isinstance(image, np.ndarray) else type(image).__name__
        raise DataError("an image must be an array of bytes (height, width, 3)", found=found)
    if 0 in image.shape:
        raise DataError("an image without pixels", found=image.shape)
    height = spec.height if height is None else height
    if height < 1:
        raise DataError("images can't be scaled to that height", found=height, hint="Give 1 or more pixels")
    rows, columns = image.shape[:2]
    scale = height / rows
    if round(columns * scale) < 1:
        raise DataError(
            f"at a height of {height} nothing is left of the image's width",
            found=image.shape,
            hint="Give a larger height, or crop the image",
        )
    # Given a factor and no size, OpenCV samples at exactly that scale even where the width is rounded. Weights of an
    # interpolation add up to 1, so the few scaled pixels can be normalised instead of all there were.
    scaled = cv2.resize(image.astype(np.float32), (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    inner = scaled.shape[:2]
    outer = [math.ceil(side / spec.stride) * spec.stride for side in (height, max(inner[1], height))]
    top, left = ((whole - part) // 2 for whole, part in zip(outer, inner, strict=True))
    array = np.zeros((3, *outer), dtype=np.float32)
    inside = array[:, top : top + inner[0], left : left + inner[1]]
    order = (2, 1, 0) if spec.color == "rgb" else (0, 1, 2)
    # One channel after the other and in place: whole images in between would take half as long again.
    for plane, channel, mean, factor in zip(inside, order, spec.mean, spec.scale, strict=True):
        np.subtract(scaled[..., channel], np.float32(mean), out=plane)
        plane *= np.float32(factor)
    return Prepared(array=array, scale=scale, pad=(left, top), size=(rows, columns))


def to_image(points: ArrayLike, prepared: Prepared) -> NDArray[np.float64]:
    """Points of the network's input in pixels of the original image.

    Parameters
    ----------
    points : array, shape (..., 2)
        x and y in pixels of the input; the centre of its top-left pixel is (0, 0).
    prepared : Prepared
        The input they belong to.

    Returns
    -------
    array, shape (..., 2)
        ``(point - pad + 0.5) / scale - 0.5``: x and y in pixels of the image, the centre of whose top-left pixel is
        (0, 0). Points in the padding lie outside the image.
    """
    return (np.asarray(points, dtype=np.float64) - prepared.pad + 0.5) / prepared.scale - 0.5
