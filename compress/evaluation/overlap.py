"""Concurrent work on a stream of items, with the results in the order of the items."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Seconds between two checks whether a reader that was told to stop has ended.
_CHECK_S = 0.05


def in_order(
    items: Generator[T, None, None], work: Callable[[T], R], *, workers: int = 3, ahead: int = 2
) -> Generator[R, None, None]:
    """Results of all items in their order: one thread reads items, others work, the caller receives results.

    At most ``workers + ahead + 2`` items are held at once, so a slow step makes the others wait. However it ends,
    after the last item, by an error or by the caller, no thread remains and ``items`` is closed.

    Parameters
    ----------
    items : generator
        Runs in a thread of its own.
    work : callable
        From an item to its result; runs in several threads at a time.
    workers : int, optional
        Number of threads that work.
    ahead : int, optional
        Items that may wait for a worker, and results for the caller.

    Raises
    ------
    Exception
        The first error, in the order of the items, of ``items`` or ``work``; earlier results are yielded first.
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
            reader.join(_CHECK_S)
        _empty(line)
        pool.shutdown(wait=True, cancel_futures=True)


def _empty(line: queue.Queue[Future[R] | None]) -> None:
    """Make room for a waiting reader, and cancel work that has not begun."""
    while True:
        try:
            result = line.get_nowait()
        except queue.Empty:
            return
        if result is not None:
            result.cancel()
