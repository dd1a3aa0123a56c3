"""From a whole image to a network's input, and from points in that input back to the image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    array : array, shape (C, H, W), float32
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

    def to_image(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points (..., 2) in pixels of the input as pixels of the image; points in the padding lie outside it.

        ``(point - pad + 0.5) / scale - 0.5``: the centre of the top-left pixel is (0, 0) in both.
        """
        return (np.asarray(points, dtype=np.float64) - self.pad + 0.5) / self.scale - 0.5

    def pixels_to(self, other: Prepared) -> NDArray[np.float64]:
        """The affine map (2, 3) from pixels of this input to those of another input of the same image."""
        ratio = other.scale / self.scale
        # Pixels are counted from their centres; half a pixel further they are proportional.
        offset = [(0.5 - self.pad[axis]) * ratio - 0.5 + other.pad[axis] for axis in (0, 1)]
        return np.column_stack([np.eye(2) * ratio, offset])


def arrange_channels(image: NDArray[Any], pose: PoseSpec) -> NDArray[Any]:
    """A BGR image (H, W, 3) with the channels that a network reads, (H, W, C); a view where that is possible.

    Raises
    ------
    DataError
        If images do not have the channels that the network reads.
    """
    if pose.channels != (1 if pose.color == "gray" else 3):
        raise DataError(
            f"images can't be given to a network that reads {pose.channels} channels of color {pose.color}",
            hint="Give it ready tensors, or a pose specification with color='gray' or three values of mean and scale",
        )
    if pose.color == "gray":
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY))[..., None]
    return image if pose.color == "bgr" else image[..., ::-1]


def batch_inputs(arrays: Sequence[NDArray[np.float32]], pose: PoseSpec) -> NDArray[np.float32]:
    """Inputs (C, H, W) of one size as the batch that the network reads, (N, C, H, W) or (N, H, W, C)."""
    batch = np.stack(arrays)
    return batch if pose.layout == "nchw" else np.ascontiguousarray(batch.transpose(0, 2, 3, 1))


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
        If the array is not such an image, the height is not positive, no column would remain, or the network reads
        other channels.
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
    # interpolation sum to 1, so the scaled image can be normalised, which is smaller.
    scaled = cv2.resize(image.astype(np.float32), (0, 0), fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    inner = scaled.shape[:2]
    outer = [math.ceil(side / spec.stride) * spec.stride for side in (height, max(inner[1], height))]
    top, left = ((whole - part) // 2 for whole, part in zip(outer, inner, strict=True))
    array = np.zeros((spec.channels, *outer), dtype=np.float32)
    inside = array[:, top : top + inner[0], left : left + inner[1]]
    arranged = arrange_channels(scaled, spec)
    # Channel by channel and in place: intermediate images would take half as long again.
    for plane, channel, mean, factor in zip(inside, range(spec.channels), spec.mean, spec.scale, strict=True):
        np.subtract(arranged[..., channel], np.float32(mean), out=plane)
        plane *= np.float32(factor)
    return Prepared(array=array, scale=scale, pad=(left, top), size=(rows, columns))
