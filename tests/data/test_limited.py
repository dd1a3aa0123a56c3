"""The first images of a data set."""

from __future__ import annotations

import numpy as np
import pytest
from holes import Holes

from compress.data.limited import Limited
from compress.data.sample import iterate
from compress.data.synthetic import DrawnPeople
from compress.errors import UsageError


def test_the_first_images_come_with_their_annotations() -> None:
    data = DrawnPeople(1, 5, (64, 64))
    limited = Limited(data, 2)
    assert (limited.name, limited.annotated, len(limited)) == ("synthetic:1:5 (first 2)", True, 2)
    for index, sample in enumerate(iterate(limited)):
        assert np.array_equal(sample.image, data[index].image)
    truth, whole = limited.ground_truth(), data.ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert truth["annotations"] == [entry for entry in whole["annotations"] if entry["image_id"] <= 2]
    with pytest.raises(IndexError):
        limited[2]


def test_a_limit_beyond_the_end_changes_nothing_and_unreadable_images_keep_their_annotations() -> None:
    data = Holes(3, {0})
    assert Limited(data, 9).ground_truth()["images"] == data.ground_truth()["images"]
    assert len(Limited(data, 9)) == 3


@pytest.mark.parametrize("count", [0, -1])
def test_a_limit_below_one_is_refused(count: int) -> None:
    with pytest.raises(UsageError, match="must be at least 1"):
        Limited(DrawnPeople(1, 2), count)
