"""Work side by side: order, bounds, errors, and that nothing is left running."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from compress.evaluation.overlap import in_order


class Items:
    """Counts what was asked of it, and whether it was closed."""

    def __init__(self, count: int, fails_at: int | None = None) -> None:
        self.count, self.fails_at = count, fails_at
        self.given, self.closed = 0, False

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise OSError("the reader fails")
                self.given += 1
                yield number
        finally:
            self.closed = True


def no_threads_left() -> bool:
    return not [t for t in threading.enumerate() if t.name == "read" or t.name.startswith("work")]


def test_results_keep_the_order_of_the_items_even_if_later_ones_finish_first() -> None:
    gate = [threading.Event() for _ in range(12)]

    def work(number: int) -> int:
        if number % 3 == 0 and number + 1 < len(gate):
            assert gate[number + 1].wait(5)  # the next one ends before this one
        gate[number].set()
        return 10 * number

    items = Items(12)
    assert list(in_order(items(), work)) == [10 * number for number in range(12)]
    assert items.closed
    assert no_threads_left()


def test_items_are_worked_on_concurrently() -> None:
    both = threading.Barrier(2, timeout=5)
    assert list(in_order(Items(4)(), lambda number: (both.wait(), number)[1], workers=2)) == [0, 1, 2, 3]


def test_a_slow_consumer_blocks_the_reader() -> None:
    items = Items(1000)
    with closing(in_order(items(), lambda number: number, workers=2, ahead=1)) as stream:
        assert [next(stream), next(stream)] == [0, 1]
        time.sleep(0.2)
        assert items.given <= 2 + 2 + 1 + 2
    assert items.closed
    assert no_threads_left()


def test_an_error_in_the_work_is_raised_in_order_and_ends_all_threads() -> None:
    def work(number: int) -> int:
        if number == 4:
            raise ZeroDivisionError
        return number

    items = Items(1000)
    found: list[int] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(in_order(items(), work))
    assert found == [0, 1, 2, 3]
    assert items.given < 50
    assert items.closed
    assert no_threads_left()


@pytest.mark.parametrize("fails_at", [0, 3, 20])
def test_an_error_of_the_reader_is_raised_after_earlier_results(fails_at: int) -> None:
    items = Items(1000, fails_at)
    found: list[int] = []
    with pytest.raises(OSError, match="the reader fails"):
        found.extend(in_order(items(), lambda number: number))
    assert found == list(range(fails_at))
    assert no_threads_left()


def test_no_items_give_no_results() -> None:
    assert list(in_order(Items(0)(), lambda number: number)) == []
    assert no_threads_left()
