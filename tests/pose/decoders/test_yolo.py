"""Boxes with keypoints: suppression against brute force, and people in the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError, UsageError
from compress.pose.decoders.yolo import YoloDecoder, suppress
from compress.pose.spec import PoseSpec

POSE = PoseSpec(
    skeleton="coco17", decoder="yolo", height=320, width=320, stride=32, color="rgb", mean=(0.0,) * 3,
    scale=(1 / 255,) * 3, fill=(114.0,) * 3,
)  # fmt: skip


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two boxes (centre, extent), side by side."""
    shared = 1.0
    for axis in (0, 1):
        low = max(box[axis] - box[axis + 2] / 2 for box in (first, second))
        high = min(box[axis] + box[axis + 2] / 2 for box in (first, second))
        shared *= max(0.0, high - low)
    return shared / (first[2] * first[3] + second[2] * second[3] - shared)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.floats(0, 1), st.integers(1, 30))
def test_suppression_is_that_of_brute_force(seed: int, count: int, limit: float, most: int) -> None:
    rng = np.random.default_rng(seed)
    boxes = np.concatenate([rng.uniform(0, 40, (count, 2)), rng.uniform(1, 30, (count, 2))], axis=1)
    scores = rng.integers(0, 5, count) / 4  # ties
    kept = suppress(boxes, scores, limit, most)
    expected: list[int] = []
    for index in sorted(range(count), key=lambda k: (-scores[k], k)):
        if all(overlap(boxes[index], boxes[other]) <= limit for other in expected):
            expected.append(index)
    assert kept == expected[:most]


def candidates(people: list[np.ndarray], scores: list[float]) -> np.ndarray:
    columns = []
    for person, score in zip(people, scores, strict=True):
        low, high = person[:, :2].min(axis=0), person[:, :2].max(axis=0)
        columns.append(np.concatenate([(low + high) / 2, high - low, [score], person.ravel()]))
    return np.array(columns, np.float32).T[None]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(60, 700), st.integers(60, 700))
def test_people_are_found_once_and_in_their_place(seed: int, height: int, width: int) -> None:
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    decoder = YoloDecoder()
    frame = decoder.whole_image(image, POSE)
    assert frame.array.shape == (3, 320, 320)
    scale = 320 / max(height, width)
    truth = [rng.uniform(0, 1, (17, 3)) * (width / 3, height, 0.5) + (start, 0, 0.5) for start in (0, width / 2)]
    inside = []
    for person in truth:
        moved = person.copy()
        # Pixels count from their centres, and the image lies in the middle.
        moved[:, :2] = (person[:, :2] - ((width - 1) / 2, (height - 1) / 2)) * scale + 159.5
        inside.append(moved)
    # Each person twice, the second time a little worse; and one that is too unsure.
    output = candidates([*inside, *inside, inside[0]], [0.9, 0.8, 0.7, 0.6, 0.1])
    (found,) = decoder.decode({"people": output}, [frame], POSE)
    assert [person.score for person in found] == pytest.approx([0.9, 0.8])
    for person, expected in zip(found, truth, strict=True):
        np.testing.assert_allclose(person.keypoints[:, :2], expected[:, :2], atol=1e-2)
        np.testing.assert_allclose(person.keypoints[:, 2], expected[:, 2], atol=1e-5)


def test_a_letterbox_is_filled_around_the_image() -> None:
    frame = YoloDecoder().whole_image(np.full((100, 200, 3), 255, np.uint8), POSE)
    assert frame.array[:, 0, 0].tolist() == pytest.approx([114 / 255] * 3)
    assert frame.array[:, 160, 160].tolist() == pytest.approx([1] * 3)
    assert YoloDecoder().whole_image(np.zeros((100, 200, 3), np.uint8), POSE, 640).array.shape == (3, 640, 640)


def test_nobody_is_an_empty_list() -> None:
    frame = YoloDecoder().whole_image(np.zeros((32, 32, 3), np.uint8), POSE)
    assert YoloDecoder().decode({"people": np.zeros((1, 56, 8400), np.float32)}, [frame], POSE) == [[]]


def test_outputs_and_options_that_do_not_fit_are_refused() -> None:
    frame = YoloDecoder().whole_image(np.zeros((32, 32, 3), np.uint8), POSE)
    with pytest.raises(DataError, match=r"wrong shape.*56"):
        YoloDecoder().decode({"people": np.zeros((1, 84, 100), np.float32)}, [frame], POSE)
    broken: dict[str, Any]
    for broken in ({"min_score": -1}, {"max_overlap": 1.5}, {"max_people": 0}):
        with pytest.raises(UsageError, match="YOLO"):
            YoloDecoder(**broken)
    with pytest.raises(UsageError, match=r"no training targets.*distillation"):
        YoloDecoder().targets([], (320, 320), POSE)
    with pytest.raises(UsageError, match="flip"):
        YoloDecoder().merge_mirrored({}, {}, POSE, (320, 320))
