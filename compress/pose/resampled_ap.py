"""OKS average precision of resampled images: matches are made once an image, then any selection is summed up.

The rules are those of COCO's evaluation for one area range (all) and 20 detections an image; `compress.pose.oks` runs
the reference implementation for published numbers, this is for bootstrap intervals over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.pose.oks import oks

THRESHOLDS = np.arange(0.5, 0.96, 0.05)
RECALLS = np.linspace(0, 1, 101)
DETECTIONS = 20


@dataclass(frozen=True)
class ImageMatches:
    """What the detections of one image are worth.

    Attributes
    ----------
    scores : array, shape (D,)
        Falling.
    hit, ignored : array, shape (thresholds, D)
        Whether a detection found somebody, and whether it counts for nothing.
    people : int
        Annotated people to be found.
    """

    scores: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    people: int


def match_images(truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[int, ImageMatches]:
    """Matches of all images of a COCO annotation.

    Parameters
    ----------
    truth : mapping
        COCO annotations with ``images`` and ``annotations``.
    results : sequence of mapping
        COCO keypoint results.
    """
    found: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    people: dict[int, list[Mapping[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for result in results:
        found[result["image_id"]].append(result)
    for annotation in truth["annotations"]:
        people[annotation["image_id"]].append(annotation)
    return {image: _match(found[image], people[image]) for image in found}


def average_precision(matches: Sequence[ImageMatches]) -> float:
    """AP over the thresholds, of images that may be there more than once; NaN without people."""
    people = sum(image.people for image in matches)
    if people == 0:
        return float("nan")
    order = np.argsort(-np.concatenate([image.scores for image in matches]), kind="mergesort")
    hit = np.concatenate([image.hit for image in matches], axis=1)[:, order]
    counted = ~np.concatenate([image.ignored for image in matches], axis=1)[:, order]
    right, wrong = np.cumsum(hit & counted, axis=1), np.cumsum(~hit & counted, axis=1)
    total = 0.0
    for good, bad in zip(right, wrong, strict=True):
        precision = good / np.maximum(good + bad, np.spacing(1))
        envelope = np.maximum.accumulate(precision[::-1])[::-1]
        places = np.searchsorted(good / people, RECALLS, side="left")
        total += float(np.append(envelope, 0.0)[np.minimum(places, len(envelope))].mean())
    return total / len(THRESHOLDS)


def _match(found: Sequence[Mapping[str, Any]], people: Sequence[Mapping[str, Any]]) -> ImageMatches:
    ranked = sorted(found, key=lambda x: -x["score"])[:DETECTIONS]
    excused = [bool(x.get("iscrowd", 0)) or x["num_keypoints"] == 0 for x in people]
    order = sorted(range(len(people)), key=lambda i: excused[i])
    ordered, ignorable = [people[i] for i in order], [excused[i] for i in order]
    hit = np.zeros((len(THRESHOLDS), len(ranked)), dtype=bool)
    ignored = np.zeros_like(hit)
    if ranked and ordered:
        similarity = oks(
            [np.reshape(x["keypoints"], (-1, 3)) for x in ranked],
            [np.reshape(x["keypoints"], (-1, 3)) for x in ordered],
            [x["area"] for x in ordered],
            [x["bbox"] for x in ordered],
        )
        crowd = [bool(x.get("iscrowd", 0)) for x in ordered]
        for row, threshold in enumerate(THRESHOLDS):
            taken = [False] * len(ordered)
            for column in range(len(ranked)):
                best, match = min(threshold, 1 - 1e-10), -1
                for index, value in enumerate(similarity[column]):
                    if taken[index] and not crowd[index]:
                        continue
                    if match >= 0 and not ignorable[match] and ignorable[index]:
                        break  # somebody who counts goes before all who do not
                    if value >= best:
                        best, match = value, index
                if match >= 0:
                    taken[match] = True
                    hit[row, column], ignored[row, column] = True, ignorable[match]
    scores = np.array([x["score"] for x in ranked], dtype=np.float64)
    return ImageMatches(scores, hit, ignored, len(people) - sum(excused))
