"""Boxes of people from a detector, for top-down networks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from compress.data.listed import read_list
from compress.errors import DataError


@dataclass(frozen=True)
class Box:
    """A detected person.

    Attributes
    ----------
    box : (float, float, float, float)
        x, y, width, height in pixels.
    score : float
        The detector's confidence.
    """

    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Boxes:
    """Boxes of people by image id, and the name of the file that they come from."""

    name: str
    by_image: dict[int, tuple[Box, ...]]


def read_boxes(path: Path) -> Boxes:
    """Detections in COCO results format, such as ``COCO_val2017_detections_AP_H_56_person.json``.

    Parameters
    ----------
    path : Path
        A JSON list of objects with ``image_id``, ``category_id``, ``bbox`` and ``score``. Those of category 1 with a
        score above 0 and a box of positive area are read, in their order.

    Raises
    ------
    DataError
        If the file has another format.
    """
    by_image: dict[int, list[Box]] = {}
    for entry in read_list(path):
        try:
            category, image = int(entry["category_id"]), int(entry["image_id"])
            x, y, width, height = (float(value) for value in entry["bbox"])
            score = float(entry["score"])
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"a detection of {path.name} can't be used: {error!r}",
                found=entry,
                hint="Give image_id, category_id, bbox and score of each",
            ) from error
        finite = all(math.isfinite(value) for value in (x, y, width, height, score))
        if category == 1 and finite and score > 0 and width > 0 and height > 0:
            by_image.setdefault(image, []).append(Box((x, y, width, height), score))
    return Boxes(path.name, {image: tuple(boxes) for image, boxes in by_image.items()})
