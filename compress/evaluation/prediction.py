"""People in a stream of images: reading, network and decoding overlap, and every step is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

from compress.data.frames import Frame, Frames, Unreadable
from compress.evaluation.overlap import in_order
from compress.evaluation.stream import Finder, FramePeople, Item
from compress.progress import Progress

#: Steps that are timed, in the order in which they happen to an image.
STEPS = ("read", "prepare", "network", "decode", "draw", "write")

#: Images that are processed one after the other, to measure what the overlap gains; at most a third of all.
_SEQUENTIAL = 8

#: Takes an image with its people, and returns the seconds of the steps that it adds.
Handle = Callable[[FramePeople], dict[str, float]]


@dataclass
class StepTimes:
    """Seconds of each step and of the wall clock, summed over images."""

    images: int = 0
    wall: float = 0.0
    steps: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STEPS, 0.0))

    def add(self, seconds: dict[str, float]) -> None:
        """Count an image."""
        self.images += 1
        for step, value in seconds.items():
            self.steps[step] += value

    def milliseconds(self) -> dict[str, float]:
        """Mean time per image of each step and, as ``"wall"``, of the wall clock."""
        means = {step: 1e3 * value / self.images for step, value in self.steps.items()}
        return means | {"wall": 1e3 * self.wall / self.images}


@dataclass
class Predicted:
    """What became of a stream of images.

    Attributes
    ----------
    image_ids : list of int
        Images that were read.
    nobody : int
        Number of images without people.
    unreadable : list of Unreadable
        Images that could not be used.
    sequential, overlapped : StepTimes
        Times of the images that were processed one after the other, and of those that overlapped.
    """

    image_ids: list[int] = field(default_factory=list)
    nobody: int = 0
    unreadable: list[Unreadable] = field(default_factory=list)
    sequential: StepTimes = field(default_factory=StepTimes)
    overlapped: StepTimes = field(default_factory=StepTimes)

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def mean(self) -> dict[str, float]:
        """Mean times in milliseconds, of overlapping images where there are any."""
        return (self.overlapped if self.overlapped.images else self.sequential).milliseconds()

    @property
    def mean_sequential(self) -> dict[str, float] | None:
        """Mean times of the images that were processed one after the other, where others can be compared with them."""
        both = self.sequential.images > 0 and self.overlapped.images > 0
        return self.sequential.milliseconds() if both else None


def predict_frames(frames: Frames, find: Finder, handle: Handle, progress: Progress, *, streams: int = 1) -> Predicted:
    """Find people in all images, first in some one after the other, then overlapping.

    A camera's stream is ended by a `KeyboardInterrupt`; what it gave until then is the result.

    Parameters
    ----------
    frames : Frames
        The images.
    find : Finder
        Finds people; runs in several threads at a time.
    handle : callable
        Called in this thread with each image and its people, in the order of the images.
    progress : Progress
        Shows how far the work is.
    streams : int
        Images that the network takes at once.

    Raises
    ------
    CompressError
        The first error of reading, finding or handling.
    """
    run = _Run(find, handle, streams)
    items = _timed(frames.read())
    count = _SEQUENTIAL if frames.total is None else min(_SEQUENTIAL, frames.total // 3)
    if streams > 1:
        count = 0  # alone, an image would have only a part of the threads, and the overlap would look better than it is
    with closing(items), progress.bar("predict", frames.total) as advance:
        try:
            run.go(items, count, advance)
        except KeyboardInterrupt:
            if not frames.live:
                raise
    return run.result


class _Run:
    """The stream as it passes by."""

    def __init__(self, find: Finder, handle: Handle, streams: int) -> None:
        self.result = Predicted()
        self._find, self._handle, self._streams = find, handle, streams

    def go(self, items: Generator[Item, None, None], sequential: int, advance: Callable[..., None]) -> None:
        item = self._warmed_up(items)
        for _ in range(sequential):
            if item is None:
                return
            start = time.perf_counter()
            self._finish(self._find(item), self.result.sequential, advance)
            self.result.sequential.wall += item[1] + time.perf_counter() - start
            item = next(items, None)
        if item is not None:
            self._overlap(_chain(item, items), time.perf_counter() - item[1], advance)

    def _overlap(self, items: Generator[Item, None, None], start: float, advance: Callable[..., None]) -> None:
        try:
            # More workers than the network has streams, so that it never waits for an image.
            with closing(in_order(items, self._find, workers=self._streams + 2)) as stream:
                for found in stream:
                    self._finish(found, self.result.overlapped, advance)
        finally:
            self.result.overlapped.wall = time.perf_counter() - start

    def _finish(self, found: FramePeople | Unreadable, times: StepTimes, advance: Callable[..., None]) -> None:
        if isinstance(found, Unreadable):
            self.result.unreadable.append(found)
            return
        times.add(found.seconds | self._handle(found))
        self.result.nobody += not found.poses
        self.result.image_ids.append(found.frame.image_id)
        advance(1)

    def _warmed_up(self, items: Generator[Item, None, None]) -> Item | None:
        """The first image, after one untimed run on it: a runtime's first run takes many times longer than others."""
        for item in items:
            if isinstance(item[0], Frame):
                self._find(item)
                return item
            self.result.unreadable.append(item[0])
        return None


def _timed(items: Generator[Frame | Unreadable, None, None]) -> Generator[Item, None, None]:
    """Items and the seconds that reading each took."""
    with closing(items):
        while True:
            start = time.perf_counter()
            item = next(items, None)
            if item is None:
                return
            yield item, time.perf_counter() - start


def _chain(first: Item, rest: Generator[Item, None, None]) -> Generator[Item, None, None]:
    yield first
    yield from rest
