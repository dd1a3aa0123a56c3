"""From images to people, several at a time, on one network."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from compress.data.boxes import Boxes
from compress.data.frames import Frame, Unreadable
from compress.errors import DataError
from compress.evaluation.score import crop_size, detect
from compress.pose.crop import box_region
from compress.pose.decoders.paf import Pose
from compress.pose.metrics.oks import without_doubles
from compress.runtime.runner import Array, Runner

#: An image or the reason why there is none, and the seconds that it took to come.
Item = tuple[Frame | Unreadable, float]


@dataclass(frozen=True)
class Seen:
    """An image, its people, and the seconds that each step took."""

    frame: Frame
    poses: list[Pose]
    seconds: dict[str, float]


class Network:
    """A runner in threads of its own, so that images take turns and the runtime keeps one set of threads.

    Parameters
    ----------
    runner : Runner
        The network.
    streams : int
        How many images it takes at once.
    """

    def __init__(self, runner: Runner, streams: int = 1) -> None:
        self.runner = runner
        self._threads = ThreadPoolExecutor(streams, thread_name_prefix="network")

    def run(self, images: Array) -> tuple[dict[str, Array], float]:
        """Maps, and the seconds that they took without waiting for the turn."""
        return self._threads.submit(self._timed, images).result()

    def _timed(self, images: Array) -> tuple[dict[str, Array], float]:
        start = time.perf_counter()
        maps = self.runner.run(images)
        return maps, time.perf_counter() - start

    def close(self) -> None:
        """Let the last run end and give the network up."""
        self._threads.shutdown()
        self.runner.close()


class _Turn:
    """A network as one image meets it: a runner that notes when it was asked and how long it took."""

    def __init__(self, network: Network) -> None:
        runner = network.runner
        self.name, self.device, self.precision = runner.name, runner.device, runner.precision
        self.threads, self.pose = runner.threads, runner.pose
        self._network = network
        self._asked: float | None = None
        self._away = self._seconds = 0.0
        self._start = time.perf_counter()

    def run(self, images: Array) -> dict[str, Array]:
        asked = time.perf_counter()
        if self._asked is None:
            self._asked = asked
        maps, seconds = self._network.run(images)
        self._seconds += seconds
        self._away += time.perf_counter() - asked
        return maps

    def close(self) -> None:
        """The network is not this image's to close."""

    def times(self) -> dict[str, float]:
        """Seconds until the network was first asked, of the network, and of the rest."""
        end = time.perf_counter()
        asked = end if self._asked is None else self._asked
        decode = end - asked - self._away
        return {"prepare": asked - self._start, "network": self._seconds, "decode": decode}


class Finder:
    """From an image to people; runs in several threads at a time."""

    def __init__(self, network: Network, options: Any, boxes: Boxes | None) -> None:
        self._network, self._options, self._boxes = network, options, boxes

    def __call__(self, item: Item) -> Seen | Unreadable:
        """The people in an image, or why it can't be used."""
        frame, read = item
        if isinstance(frame, Unreadable):
            return frame
        turn = _Turn(self._network)
        try:
            poses = self._find(turn, frame)
        except DataError as error:
            return Unreadable(frame.source.name, str(error))
        return Seen(frame, poses, {"read": read, **turn.times()})

    def _find(self, turn: _Turn, frame: Frame) -> list[Pose]:
        options, pose = self._options, turn.pose
        places = None
        if self._boxes is not None:
            size = crop_size(pose, options.height)
            places = [(box_region(b.box, size), b.score) for b in self._boxes.by_image.get(frame.image_id, ())]
        poses = detect(
            turn,
            frame.image,
            height=options.height,
            options=options.paf,
            heatmap=options.heatmap,
            regions=None if places is None else [region for region, _ in places],
        )
        if places is not None:
            poses = [Pose(p.keypoints, p.score * sure) for p, (_, sure) in zip(poses, places, strict=True)]
            poses = without_doubles(poses, [region.area for region, _ in places], pose.joints)
        # A network that sees one person always gives one; without a visible joint there is nobody.
        return [found for found in poses if found.score > 0 or pose.decoder != "heatmap"]
