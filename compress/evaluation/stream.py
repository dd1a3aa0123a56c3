"""From images to people, several at a time, on one network."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from compress.data.boxes import Boxes
from compress.data.frames import Frame, Unreadable
from compress.errors import DataError
from compress.evaluation.people import find_people, pose_of
from compress.pose.decoders.base import Decoder, Pose
from compress.pose.decoders.registry import get_decoder
from compress.pose.views import View
from compress.runtime.runner import Array, ArrayInputs, Runner

#: An image or the reason why there is none, and the seconds that reading it took.
Item = tuple[Frame | Unreadable, float]


@dataclass(frozen=True)
class FramePeople:
    """An image, its people, and the seconds that each step took."""

    frame: Frame
    poses: list[Pose]
    seconds: dict[str, float]


class Network:
    """A runner in threads of its own: images take turns, and the runtime keeps one set of threads.

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

    def run(self, inputs: ArrayInputs) -> tuple[dict[str, Array], float]:
        """Outputs, and the seconds that they took without waiting for other images."""
        return self._threads.submit(self._timed, inputs).result()

    def _timed(self, inputs: ArrayInputs) -> tuple[dict[str, Array], float]:
        start = time.perf_counter()
        outputs = self.runner.run(inputs)
        return outputs, time.perf_counter() - start

    def close(self) -> None:
        """Wait for the last run, and close the runner."""
        self._threads.shutdown()
        self.runner.close()


class _Turn:
    """The network for one image: a runner that records when it was first run and how long it took."""

    def __init__(self, network: Network) -> None:
        runner = network.runner
        self.name, self.device, self.precision = runner.name, runner.device, runner.precision
        self.threads, self.pose = runner.threads, runner.pose
        self._network = network
        self._first_run: float | None = None
        self._waited = self._seconds = 0.0
        self._start = time.perf_counter()

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        called = time.perf_counter()
        if self._first_run is None:
            self._first_run = called
        outputs, seconds = self._network.run(inputs)
        self._seconds += seconds
        self._waited += time.perf_counter() - called
        return outputs

    def close(self) -> None:
        """Leave the network open for other images."""

    def times(self) -> dict[str, float]:
        """Seconds until the network was first run, of the network, and of the rest."""
        end = time.perf_counter()
        called = end if self._first_run is None else self._first_run
        decode = end - called - self._waited
        return {"prepare": called - self._start, "network": self._seconds, "decode": decode}


class Finder:
    """From an image to people; runs in several threads at a time.

    Parameters
    ----------
    network : Network
        Runs the network.
    decoder : Decoder, optional
        From outputs to people; that of the network's pose specification by default.
    view : View, optional
        Height that images or crops are scaled to, flip test and scales.
    boxes : Boxes, optional
        Where a top-down network looks for people; the whole image by default.

    Raises
    ------
    DataError
        If the network has no pose specification, or finds people by itself and is given boxes.
    """

    def __init__(
        self, network: Network, decoder: Decoder | None = None, view: View | None = None, boxes: Boxes | None = None
    ) -> None:
        self._network, self._view, self._boxes = network, view, boxes
        self._decoder = decoder or get_decoder(pose_of(network.runner))
        if boxes is not None and not self._decoder.top_down:
            raise DataError("this network finds people by itself and takes no boxes", found=boxes.name)

    def __call__(self, item: Item) -> FramePeople | Unreadable:
        """The people in an image, or why it can't be used."""
        frame, read = item
        if isinstance(frame, Unreadable):
            return frame
        turn = _Turn(self._network)
        try:
            boxes = None if self._boxes is None else self._boxes.by_image.get(frame.image_id, ())
            poses = find_people(turn, frame.image, decoder=self._decoder, view=self._view, boxes=boxes)
        except DataError as error:
            return Unreadable(frame.source.name, str(error))
        # A top-down network always gives one person for each place; without a visible joint there is nobody.
        poses = [person for person in poses if person.score > 0 or not self._decoder.top_down]
        return FramePeople(frame, poses, {"read": read, **turn.times()})
