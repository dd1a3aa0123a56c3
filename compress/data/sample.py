"""Samples, images with annotated people, and the protocol of all data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Person:
    """One annotated person.

    Attributes
    ----------
    keypoints : array, shape (K, 3)
        x, y in pixels (the centre of the top-left pixel is (0, 0)) and COCO visibility: 0 not labelled, 1 labelled
        but occluded, 2 visible.
    box : array, shape (4,)
        x, y, width, height in pixels.
    area : float
        Area of the person in square pixels: the scale of OKS.
    crowd : bool
        Whether this is a region with several people that are not annotated one by one; its keypoints are empty.
    view : array, shape (4,), optional
        x, y, width, height of the crop for a top-down network, padding included, where the data set defines it (MPII by
        a centre and a scale; LSP and LIP by the whole image). Otherwise it follows from ``box``.
    """

    keypoints: NDArray[np.float32]
    box: NDArray[np.float32]
    area: float
    crowd: bool = False
    view: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Sample:
    """An image with its people.

    Attributes
    ----------
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    people : tuple of Person
        Annotated people; empty for an image without annotations.
    mask : array, shape (H, W), bool
        True where the annotation is complete, false over crowds and people without keypoints, where a loss must not
        penalise a detection.
    image_id : int
        The id that scores and detections refer to.
    name : str
        File name, or a generated name.
    skeleton : str
        Skeleton of the keypoints.
    """

    image: Image
    people: tuple[Person, ...]
    mask: NDArray[np.bool_]
    image_id: int
    name: str
    skeleton: str = "coco17"


class Dataset(Protocol):
    """A finite, indexable, deterministic set of samples.

    ``dataset[i]`` is the same sample each time and in every process. ``annotated`` says whether scores can be
    computed.
    """

    name: str
    annotated: bool

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images as a COCO keypoint record (``images``, ``annotations``, ``categories``).

        Raises `DataError` where the data set has none.
        """
        ...


def unannotated(image: Image, index: int, name: str) -> Sample:
    """The image at an index of a data set without annotations; its id is the index plus one."""
    return Sample(image, (), np.ones(image.shape[:2], dtype=np.bool_), index + 1, name)


def iterate(dataset: Dataset) -> Iterator[Sample]:
    """All samples in order."""
    for index in range(len(dataset)):
        yield dataset[index]
