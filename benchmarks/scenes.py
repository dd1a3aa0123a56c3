"""Heatmaps and fields of synthetic people, and runners that go from an image to people.

Networks with random weights find nobody. Where decoding is timed with a network, the network runs on an image and its
outputs are discarded; maps that are generated for a number of people, of the same size, are decoded instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from compress.evaluation.overlap import in_order
from compress.pose.decoders.paf import PafDecoder
from compress.pose.prepare import prepare
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets

#: x and y of the joints of a standing person, as shares of the height.
PERSON = np.array([
    (0, 0.05), (0, 0.18), (-0.09, 0.19), (-0.13, 0.34), (-0.12, 0.48), (0.09, 0.19), (0.14, 0.33), (0.16, 0.47),
    (-0.06, 0.49), (-0.06, 0.71), (-0.06, 0.93), (0.06, 0.49), (0.07, 0.7), (0.08, 0.93), (-0.03, 0.02), (0.03, 0.02),
    (-0.06, 0.04), (0.06, 0.04),
])  # fmt: skip

#: Height and width of the image: at height 368 an image of 16:9 has 656 columns.
IMAGE = (720, 1280)


def make_fields(count: int, cells: tuple[int, int], seed: int, spec: PoseSpec) -> tuple[np.ndarray, np.ndarray]:
    """Heatmaps and fields (C, h, w) of people standing in rows, with 1 % noise."""
    rng = np.random.default_rng(seed)
    rows = max(1, round((count / 3) ** 0.5))
    columns = max(1, -(-count // rows))
    size = np.array([cells[1] / columns, cells[0] / rows]) * spec.stride
    people = []
    for row, column in list(np.ndindex(rows, columns))[:count]:
        height = min(size[1], 2.5 * size[0]) * rng.uniform(0.8, 0.95)
        points = ((column + 0.5) * size[0], row * size[1] + 4) + height * PERSON + rng.normal(0, 0.01 * height, (18, 2))
        people.append(np.column_stack([points, np.full(18, 2)]).astype(np.float32))
    maps = heatmap_targets(people, cells, spec.stride), paf_targets(people, cells, spec.stride)
    heatmaps, pafs = ((m + rng.normal(0, 0.01, m.shape)).astype(np.float32) for m in maps)
    return (heatmaps if spec.background else heatmaps[: len(spec.joints.joints)]), pafs


class ImageToPeople:
    """A runner that prepares an image, runs a network on it, and decodes generated maps.

    Parameters
    ----------
    runner : Runner
        The network.
    people : int
        Number of people in the maps.
    decoder : callable
        From heatmaps, fields, the prepared image and the pose specification to people.
    height : int
        Height that the image is scaled to.

    Attributes
    ----------
    decode_ms : list of float
        Time of decoding in each run.
    found : int
        Number of people that were decoded last.
    """

    def __init__(self, runner: Any, people: int, decoder: Callable[..., list[Any]], height: int) -> None:
        self._runner, self._decoder, self._height = runner, decoder, height
        self.name, self.device, self.precision = runner.name, runner.device, runner.precision
        self.threads, self.pose = runner.threads, runner.pose
        self._image = np.random.default_rng(0).integers(256, size=(*IMAGE, 3), dtype=np.uint8)
        _, rows, columns = prepare(self._image, self.pose, height).array.shape
        self._maps = make_fields(people, (rows // self.pose.stride, columns // self.pose.stride), people, self.pose)
        self.decode_ms: list[float] = []
        self.found = 0

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """From the image to people; the given images are ignored."""
        self.find(lambda run: run())
        return {}

    def find(self, schedule: Callable[[Callable[[], Any]], None]) -> None:
        """From the image to people, the network being run by ``schedule``."""
        prepared = prepare(self._image, self.pose, self._height)
        schedule(lambda: self._runner.run(prepared.array[None]))
        start = time.perf_counter()
        self.found = len(self._decoder(*self._maps, prepared, self.pose))
        self.decode_ms.append((time.perf_counter() - start) * 1e3)

    def close(self) -> None:
        """Nothing: the runner is closed by the code that opened it."""


class StreamToPeople:
    """A runner that takes several images through the same steps, overlapped as in `compress predict`.

    Parameters
    ----------
    whole : ImageToPeople
        The steps.
    streams : int
        Number of images that its network takes at once.

    Attributes
    ----------
    images : int
        Number of images in one run.
    """

    def __init__(self, whole: ImageToPeople, streams: int, images: int) -> None:
        self.name, self.device, self.precision = whole.name, whole.device, whole.precision
        self.threads, self.pose = whole.threads, whole.pose
        self.images, self._whole = images, whole
        self._workers = streams + 2
        self._network = ThreadPoolExecutor(streams)

    def run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """From all images to people; the given images are ignored."""
        numbers = (number for number in range(self.images))
        for _ in in_order(numbers, lambda _: self._whole.find(self._in_network_thread), workers=self._workers):
            pass
        return {}

    def _in_network_thread(self, run: Callable[[], Any]) -> None:
        self._network.submit(run).result()

    def close(self) -> None:
        """End the threads."""
        self._network.shutdown()


def ours(heatmaps: np.ndarray, pafs: np.ndarray, prepared: Any, spec: PoseSpec) -> list[Any]:
    """Our decoder with its default options."""
    return PafDecoder().people(heatmaps, pafs, prepared, spec)
