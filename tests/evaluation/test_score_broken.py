"""Scores over images of which some can't be read, and what scores say of flips and scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from holes import Holes
from numpy.typing import NDArray

from compress.errors import DataError
from compress.evaluation.score import EvaluationOptions, evaluate_dataset
from compress.pose.spec import PoseSpec
from compress.pose.views import View

T = TypeVar("T")

LENIENT = EvaluationOptions(strict=False)


class Blind:
    """A network whose maps are empty."""

    name, device, precision, threads = "torch", "cpu", "fp32", 1

    def __init__(self, *, one: bool = False) -> None:
        self.pose = PoseSpec(height=64)
        if one:
            self.pose = PoseSpec("coco17", "heatmap", ("heatmaps",), 64, 48, 4, background=False, grid="corner")
        self.runs = 0

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self.runs += 1
        count, (height, width) = len(images), (side // self.pose.stride for side in images.shape[2:])
        if self.pose.decoder == "heatmap":
            return {"heatmaps": np.zeros((count, 17, height, width), np.float32)}
        return {
            "heatmaps": np.zeros((count, 19, height, width), np.float32),
            "pafs": np.zeros((count, 38, height, width), np.float32),
        }

    def close(self) -> None:
        pass


class SecondOfTwo:
    """The second of two processes; the other one found nothing."""

    number, count = 1, 2

    def gather(self, value: T) -> list[T]:
        return [type(value)(), value]

    def from_main(self, compute: Callable[[], T]) -> T:
        return compute()


@pytest.mark.parametrize("one", [False, True])
def test_unreadable_images_are_left_out_and_reported(one: bool) -> None:
    with pytest.raises(DataError, match="does not decode"):
        evaluate_dataset(Holes(4, {1}), Blind(one=one))
    score = evaluate_dataset(Holes(4, {1, 3}), Blind(one=one), LENIENT).score
    assert score.images == 2
    assert [("1.jpg" in score.broken[0]), ("3.jpg" in score.broken[1])] == [True, True]
    assert score.convention.endswith("2 unreadable images left out")
    whole = evaluate_dataset(Holes(2, set()), Blind(one=one), LENIENT).score
    assert whole.broken == ()
    assert "unreadable" not in whole.convention


def test_unreadable_images_of_all_processes_are_counted() -> None:
    score = evaluate_dataset(Holes(4, {1}), Blind(), LENIENT, group=SecondOfTwo()).score
    assert (score.images, len(score.broken)) == (1, 1)


def test_a_data_set_without_a_readable_image_is_refused() -> None:
    with pytest.raises(DataError, match=r"none of the 2 images.*can be read; the first: .*0\.jpg"):
        evaluate_dataset(Holes(2, {0, 1}), Blind(), LENIENT)


@pytest.mark.parametrize(
    ("flip", "scales", "runs", "told"),
    [
        (False, (1.0,), 1, "single scale, no flip"),
        (True, (1.0,), 2, "single scale, flip"),
        (True, (1.5, 1.0, 0.5), 6, "scales 1.5, 1, 0.5, flip"),
    ],
)
def test_a_score_states_the_flip_test_and_the_scales(
    flip: bool, scales: tuple[float, ...], runs: int, told: str
) -> None:
    network = Blind()
    options = EvaluationOptions(view=View(flip=flip, scales=scales))
    score = evaluate_dataset(Holes(1, set()), network, options).score
    assert f"; {told}, decoder" in score.convention
    assert network.runs == runs
    one = evaluate_dataset(
        Holes(1, set()), Blind(one=True), EvaluationOptions(view=View(flip=flip, scales=scales))
    ).score
    assert ("no flip" in one.convention) == (not flip)
    assert ("scales" in one.convention) == (len(scales) > 1)
