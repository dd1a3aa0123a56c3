"""Cached samples equal those of the data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compress.data.cache import Cached
from compress.data.sample import Person, Sample
from compress.errors import DataError


class Counted:
    """Random samples, among them a crowd and an image without people; counts how many were produced."""

    name, annotated = "counted", True

    def __init__(self) -> None:
        self.made = 0

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < 3:
            raise IndexError(index)
        self.made += 1
        rng = np.random.default_rng(index)
        people = [Person(rng.random((17, 3), np.float32), rng.random(4, np.float32), 7.25) for _ in range(index)]
        if index == 2:
            people[0] = replace(people[0], view=rng.random(4, np.float32))
            people.insert(1, Person(np.zeros((0, 3), np.float32), rng.random(4, np.float32), 1.5, crowd=True))
        image = rng.integers(0, 256, (13, 21, 3), dtype=np.uint8)
        return Sample(image, tuple(people), rng.random((13, 21)) < 0.5, 40 + index, f"{index}.png")

    def ground_truth(self) -> dict[str, Any]:
        return {"images": []}


def equal(a: Sample, b: Sample) -> bool:
    return (
        (a.image_id, a.name, a.skeleton, len(a.people)) == (b.image_id, b.name, b.skeleton, len(b.people))
        and np.array_equal(a.image, b.image)
        and np.array_equal(a.mask, b.mask)
        and a.mask.dtype == b.mask.dtype
        and all(
            np.array_equal(p.keypoints, q.keypoints)
            and p.keypoints.dtype == q.keypoints.dtype
            and np.array_equal(p.box, q.box)
            and (p.area, p.crowd) == (q.area, q.crowd)
            and (p.view is None) == (q.view is None)
            and (p.view is None or np.array_equal(p.view, q.view))
            for p, q in zip(a.people, b.people, strict=True)
        )
    )


def test_samples_are_produced_once_and_read_back_unchanged(tmp_path: Path) -> None:
    data = Counted()
    cached = Cached(data, tmp_path / "new" / "folder")
    first = [cached[index] for index in range(3)]
    again = [Cached(data, tmp_path / "new" / "folder")[index] for index in range(3)]
    assert data.made == 3
    assert all(equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(equal(sample, Counted()[index]) for index, sample in enumerate(again))
    assert (cached.name, cached.annotated, len(cached), cached.ground_truth()) == ("counted", True, 3, {"images": []})


def test_an_index_beyond_the_end_raises_the_error_of_the_data_set(tmp_path: Path) -> None:
    with pytest.raises(IndexError):
        Cached(Counted(), tmp_path)[3]
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_another_data_set_is_refused(tmp_path: Path) -> None:
    Cached(Counted(), tmp_path)[0]
    other = Counted()
    other.name = "other"
    with pytest.raises(DataError, match=r"another data set than other.*'counted'"):
        Cached(other, tmp_path)[0]


@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"PK\x03\x04 cut short"])
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "0000001.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"can't be read.*0000001\.npz.*Remove it"):
        Cached(Counted(), tmp_path)[1]
