"""Bootstrap intervals of OKS AP over images: people are matched once, and images are reweighted in each draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError, UsageError
from compress.pose.metrics.oks import oks

#: Resamples of a bootstrap: with this number the ends of a 95 % interval vary with the seed by about 1 % of its width.
DRAWS = 4000

#: Share of intervals that contain the true value.
LEVEL = 0.95

#: COCO's OKS thresholds and recalls of AP, and the number of people of an image that count.
_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0, 1, 101)
_MAX_PEOPLE = 20


@dataclass(frozen=True)
class Matches:
    """Detected people matched with annotated ones, the detection with the highest score of all images first.

    Attributes
    ----------
    images : array, shape (D,)
        Index of each detection's image.
    hits : array, shape (10, D)
        Whether it matches a person at each OKS threshold, 0.50 to 0.95.
    counted : array, shape (10, D)
        False where an annotation that is not scored (a crowd, a person without labelled joints) excuses the detection.
    people : array, shape (I,)
        Number of scored people in each image.
    """

    images: NDArray[np.intp]
    hits: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    people: NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its bootstrap interval."""

    value: float
    low: float
    high: float


def match_people(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Iterable[int] | None = None
) -> Matches:
    """Match detected people with annotated ones as COCO's keypoint evaluation does, image by image.

    Parameters
    ----------
    ground_truth, results, image_ids
        As of `compress.pose.metrics.oks.keypoint_ap`.

    Raises
    ------
    DataError
        If there is no image to score.
    """
    ids = sorted({image["id"] for image in ground_truth["images"]} if image_ids is None else set(image_ids))
    if not ids:
        raise DataError("there are no images to score")
    detections, annotations = _by_image(results), _by_image(ground_truth["annotations"])
    scores, images, parts, people = [], [], [], []
    for index, image in enumerate(ids):
        best = sorted(detections.get(image, []), key=lambda one: -one["score"])[:_MAX_PEOPLE]
        # Scored people come first, in their order: a detection is excused only if it matches none of them.
        truth = sorted(annotations.get(image, []), key=_unscored)
        scores += [one["score"] for one in best]
        images += [index] * len(best)
        parts.append(_match(best, truth))
        people.append(sum(not _unscored(one) for one in truth))
    order = np.argsort(-np.asarray(scores), kind="stable")
    hits, counted = np.concatenate(parts, axis=-1)[..., order]
    return Matches(np.asarray(images, dtype=np.intp)[order], hits, counted, np.asarray(people, dtype=np.int64))


def _by_image(entries: Iterable[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
    listed: dict[int, list[Mapping[str, Any]]] = {}
    for entry in entries:
        listed.setdefault(entry["image_id"], []).append(entry)
    return listed


def _unscored(annotation: Mapping[str, Any]) -> bool:
    return bool(annotation.get("iscrowd")) or annotation["num_keypoints"] == 0


def _match(found: Sequence[Mapping[str, Any]], people: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Hits and counted detections, (2, 10, D), of one image; both lists are in the order of matching."""
    hits, counted = np.zeros((2, len(_THRESHOLDS), len(found)), dtype=bool)
    counted[:] = True
    if not found or not people:
        return np.stack([hits, counted])
    similarity = oks(
        np.reshape([one["keypoints"] for one in found], (len(found), -1, 3)),
        np.reshape([one["keypoints"] for one in people], (len(people), -1, 3)),
        [one["area"] for one in people],
        [one["bbox"] for one in people],
    )
    unscored = np.array([_unscored(one) for one in people])
    crowd = np.array([bool(one.get("iscrowd")) for one in people])
    for row, threshold in enumerate(_THRESHOLDS):
        free = np.ones(len(people), dtype=bool)
        for column, similar in enumerate(similarity):
            able = (free | crowd) & (similar >= threshold)
            choice = able & ~unscored if (able & ~unscored).any() else able
            if choice.any():
                # Of equally similar people COCO's loop takes the last.
                best = int(np.flatnonzero(choice & (similar == similar[choice].max()))[-1])
                free[best] = False
                hits[row, column], counted[row, column] = not unscored[best], not unscored[best]
    return np.stack([hits, counted])


def average_precision(matches: Matches, counts: ArrayLike | None = None) -> float:
    """COCO's AP with each image counted a number of times; NaN without people.

    An image that is counted twice is two images with the same people and detections.

    Parameters
    ----------
    matches : Matches
        From `match_people`.
    counts : array, shape (I,), optional
        How often each image counts; once by default.
    """
    times = np.ones(len(matches.people), dtype=np.int64) if counts is None else np.asarray(counts)
    people = int(times @ matches.people)
    if not people:
        return float("nan")
    if not len(matches.images):
        return 0.0
    weights = times[matches.images]  # [D]
    hits = np.cumsum(weights * matches.hits, axis=1)  # [T, D]
    found = np.cumsum(weights * matches.counted, axis=1)
    precision = hits / (found + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    total = 0.0
    for reached, best in zip(hits / people, envelope, strict=True):
        places = np.searchsorted(reached, _RECALLS)
        total += float(best[places[places < len(best)]].sum())
    return total / (len(_THRESHOLDS) * len(_RECALLS))


def ap_interval(matches: Matches, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0) -> Interval:
    """AP with the percentile bootstrap interval over images; people are matched once, images reweighted in each draw.

    Parameters
    ----------
    matches : Matches
        From `match_people`.
    level, draws, seed
        Share of such intervals that contain the true value, number of resamples, and seed.
    """
    return _interval(average_precision(matches), _resampled(matches, draws, seed), level)


def ap_difference(
    first: Matches, second: Matches, *, level: float = LEVEL, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """AP of the second minus AP of the first on the same images, with the interval from the same draws of images.

    Images that are hard for one are hard for both, so this interval is narrower than one from two separate APs.

    Parameters
    ----------
    first, second : Matches
        From `match_people` with the same annotations and images.
    level, draws, seed
        Share of such intervals that contain the true value, number of resamples, and seed.

    Raises
    ------
    UsageError
        If the two are not of the same images.
    """
    if not np.array_equal(first.people, second.people):
        raise UsageError("a paired difference needs the same images for both", found=(first.people, second.people))
    value = average_precision(second) - average_precision(first)
    return _interval(value, _resampled(second, draws, seed) - _resampled(first, draws, seed), level)


def _resampled(matches: Matches, draws: int, seed: int) -> NDArray[np.float64]:
    """AP of each draw of as many images with replacement."""
    images = len(matches.people)
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    return np.array([average_precision(matches, drawn) for drawn in counts])


def _interval(value: float, values: NDArray[np.float64], level: float) -> Interval:
    """The value and the percentiles of its draws; draws without people are dropped."""
    known = values[~np.isnan(values)]
    if not len(known):
        raise DataError("there are no people to score")
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))
