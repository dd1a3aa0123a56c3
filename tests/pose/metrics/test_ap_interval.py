"""Bootstrap of OKS AP: the weighed form against a full evaluation of the drawn images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError, UsageError
from compress.pose.metrics.ap_interval import Matches, ap_difference, ap_interval, average_precision, match_people
from compress.pose.metrics.oks import keypoint_ap

Record = dict[str, Any]


def crowded(seed: int, images: int, noise: float) -> tuple[Record, list[Record]]:
    """People, crowds and people without joints, found more or less well, some twice, some made up."""
    rng = np.random.default_rng(seed)
    annotations: list[Record] = []
    results: list[Record] = []

    def find(image: int, points: np.ndarray) -> None:
        keypoints = np.column_stack([points, np.ones(17)])
        results.append(
            {"image_id": image, "category_id": 1, "keypoints": keypoints.ravel().tolist(), "score": rng.random()}
        )

    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 5)):
            size = rng.uniform(20, 200)
            points = rng.uniform(0, 300, 2) + size * rng.random((17, 2))
            crowd = rng.random() < 0.15
            seen = rng.integers(0, 3, 17) * (not crowd) * (rng.random() > 0.15)
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 1, "iscrowd": int(crowd),
                    "keypoints": np.column_stack([points, seen]).ravel().tolist(),
                    "num_keypoints": int((seen > 0).sum()), "area": 0.5 * size**2,
                    "bbox": [*points.min(axis=0), *np.ptp(points, axis=0)],
                }
            )  # fmt: skip
            for _ in range(rng.integers(0, 3)):
                find(image, points + rng.normal(0, noise * size, (17, 2)))
        for _ in range(rng.integers(0, 3) + 25 * (rng.random() < 0.05)):
            find(image, rng.uniform(0, 300, (17, 2)))
    listed = [{"id": image, "height": 600, "width": 600} for image in range(1, images + 1)]
    return {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}, results


def drawn(truth: Record, results: list[Record], counts: np.ndarray) -> tuple[Record, list[Record]]:
    """The record in which each image is there so many times, as images of their own."""
    images: list[Record] = []
    annotations: list[Record] = []
    found: list[Record] = []
    for image, count in zip(truth["images"], counts, strict=True):
        for _ in range(count):
            new = {"image_id": len(images) + 1}
            images.append(image | {"id": len(images) + 1})
            annotations += [x | new for x in truth["annotations"] if x["image_id"] == image["id"]]
            found += [x | new for x in results if x["image_id"] == image["id"]]
    annotations = [x | {"id": index + 1} for index, x in enumerate(annotations)]
    return truth | {"images": images, "annotations": annotations}, found


@given(st.integers(0, 10**6), st.integers(1, 8), st.sampled_from([0.01, 0.05, 0.15]))
@settings(max_examples=40, deadline=None)
def test_ap_of_weighed_images_is_that_of_a_full_evaluation(seed: int, images: int, noise: float) -> None:
    truth, results = crowded(seed, images, noise)
    counts = np.random.default_rng(seed).integers(0, 4, images)
    counts[0] = max(1, counts[0])
    whole = average_precision(match_people(truth, results), counts)
    record, found = drawn(truth, results, counts)
    reference = keypoint_ap(record, found)["AP"]
    assert (np.isnan(whole) and reference == -1) or whole == pytest.approx(reference, abs=1e-12)


def test_only_the_named_images_are_scored() -> None:
    truth, results = crowded(3, 12, 0.05)
    some = [2, 3, 5, 7, 11]
    value = average_precision(match_people(truth, results, some))
    assert value == pytest.approx(keypoint_ap(truth, results, some)["AP"], abs=1e-12)
    assert value != average_precision(match_people(truth, results))


def test_the_interval_contains_its_value_and_depends_on_the_seed_alone() -> None:
    matches = match_people(*crowded(0, 30, 0.05))
    found = ap_interval(matches, draws=300)
    assert found.low < found.value < found.high
    assert found == ap_interval(matches, draws=300)
    assert found != ap_interval(matches, draws=300, seed=1)


def test_intervals_contain_the_true_ap_about_as_often_as_their_level_says() -> None:
    everything = match_people(*crowded(1, 400, 0.05))
    true = average_precision(everything)
    rng = np.random.default_rng(2)
    covered = 0
    for trial in range(40):
        chosen = np.sort(rng.choice(400, 40, replace=False))
        inside = np.isin(everything.images, chosen)
        part = Matches(
            np.searchsorted(chosen, everything.images[inside]),
            everything.hits[:, inside],
            everything.counted[:, inside],
            everything.people[chosen],
        )
        interval = ap_interval(part, draws=100, seed=trial)
        covered += interval.low <= true <= interval.high
    assert 0.8 <= covered / 40 <= 1


def test_the_paired_interval_is_narrower_than_that_of_two_separate_aps() -> None:
    truth, results = crowded(4, 40, 0.04)
    rng = np.random.default_rng(0)
    worse = [x for x in results if rng.random() > 0.05]
    first, second = match_people(truth, results), match_people(truth, worse)
    difference = ap_difference(first, second, draws=400)
    alone = [ap_interval(one, draws=400) for one in (first, second)]
    assert difference.value == alone[1].value - alone[0].value < 0
    assert difference.high - difference.low < 0.6 * np.hypot(*(one.high - one.low for one in alone))


def test_a_network_does_not_differ_from_itself() -> None:
    matches = match_people(*crowded(5, 10, 0.05))
    difference = ap_difference(matches, matches, draws=50)
    assert (difference.value, difference.low, difference.high) == (0, 0, 0)


def test_ap_is_zero_without_detections_and_nan_without_people() -> None:
    truth, _ = crowded(6, 5, 0.05)
    assert average_precision(match_people(truth, [])) == 0
    empty = match_people(truth | {"annotations": []}, [])
    assert np.isnan(average_precision(empty))
    with pytest.raises(DataError, match="no people"):
        ap_interval(empty, draws=10)


def test_differences_of_other_images_and_no_images_are_refused() -> None:
    matches = match_people(*crowded(7, 6, 0.05))
    with pytest.raises(UsageError, match="same images"):
        ap_difference(matches, replace(matches, people=matches.people[:-1]))
    with pytest.raises(DataError, match="no images"):
        match_people({"images": [], "annotations": [], "categories": []}, [])
