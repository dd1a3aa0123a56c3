"""Unreadable images: skipped, counted and reported where images are merely looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from holes import Holes

from compress.data.images import ImageFolder
from compress.data.tolerant import readable, spread
from compress.errors import DataError


class Recorded:
    """Progress that keeps its messages."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        yield lambda done, note="": None


def test_unreadable_images_are_left_out_counted_and_reported_once() -> None:
    progress = Recorded()
    samples = list(readable(Holes(5, {0, 3}), progress))
    assert [sample.image_id for sample in samples] == [2, 3, 5]
    (line,) = progress.lines
    assert "2 unreadable images of synthetic:1:5 left out" in line
    assert "0.jpg" in line


def test_a_caller_that_has_enough_is_told_of_what_it_passed() -> None:
    progress = Recorded()
    for _ in readable(Holes(5, {0, 3}), progress):
        break
    assert [line.split(";")[0] for line in progress.lines] == ["1 unreadable image of synthetic:1:5 left out"]


def test_nothing_is_said_where_all_can_be_read() -> None:
    progress = Recorded()
    assert len(list(readable(Holes(3, set()), progress))) == 3
    assert len(spread(Holes(3, set()), 2, progress)) == 2
    assert progress.lines == []


def test_a_data_set_of_nothing_but_unreadable_images_is_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7 no image")
    with pytest.raises(DataError, match=r"none of the 2 images of images:.*does not decode.*\._a\.jpg"):
        list(readable(ImageFolder(tmp_path)))
    with pytest.raises(DataError, match="none of the 4 images"):
        spread(Holes(4, {0, 1, 2, 3}), 2)


@pytest.mark.parametrize(
    ("count", "broken", "ids"),
    [(3, set(), [1, 5, 9]), (3, {0, 4}, [2, 6, 9]), (2, {8}, [1]), (9, {2, 3}, [1, 2, 5, 6, 7, 8, 9]), (20, {0}, [])],
)
def test_samples_are_spread_over_the_data_set_and_none_comes_twice(
    count: int, broken: set[int], ids: list[int]
) -> None:
    found = [sample.image_id for sample in spread(Holes(9, broken), count)]
    assert found == (ids or list(range(2, 10)))
