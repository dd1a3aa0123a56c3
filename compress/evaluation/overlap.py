"""Work on a stream of items side by side, the results in the order of the items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Longest pause in seconds between two looks whether a reader that has to stop has noticed.
_LOOK_S = 0.05


def in_order(
    items: Generator[T, None, None], work: Callable[[T], R], *, workers: int = 3, ahead: int = 2
) -> Generator[R, None, None]:
    """Results of all items in their order: one thread reads items, others work, the caller takes results.

    At most ``workers + ahead + 2`` items are held at once, so a slow step makes the others wait. However it ends, by
    the last item, an error or the caller, no thread is left and ``items`` is closed.

    Parameters
    ----------
    items : generator
        Runs in a thread of its own.
    work : callable
        From an item to its result; runs in several threads at a time.
    workers : int, optional
        How many.
    ahead : int, optional
        Items that may wait for a worker, and results for the caller.

    Raises
    ------
    Exception
        The first error, in the order of the items, of ``items`` or ``work``; results before it are given first.
    """
    line: queue.Queue[Future[R] | None] = queue.Queue(workers + ahead)
    stopped = threading.Event()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="work")

    def read() -> None:
        last: Future[R] | None = None
        try:
            with closing(items):
                for item in items:
                    line.put(pool.submit(work, item))
                    if stopped.is_set():
                        return
        except BaseException as error:  # the caller raises it
            last = Future()
            last.set_exception(error)
        line.put(last)
        if last is not None:
            line.put(None)

    reader = threading.Thread(target=read, name="read")
    reader.start()
    try:
        while (result := line.get()) is not None:
            yield result.result()
    finally:
        stopped.set()
        while reader.is_alive():
            _empty(line)
            reader.join(_LOOK_S)
        _empty(line)
        pool.shutdown(wait=True, cancel_futures=True)


def _empty(line: queue.Queue[Future[R] | None]) -> None:
    """Make room for a reader that waits for it, and drop work that has not begun."""
    while True:
        try:
            result = line.get_nowait()
        except queue.Empty:
            return
        if result is not None:
            result.cancel()
