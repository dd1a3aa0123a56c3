"""A decoder outside the package: the brightest cell of each of three channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.pose.decoders.base import Arrays, CropDecoder
from compress.pose.spec import PoseSpec

CALLED: list[object] = []


@dataclass(frozen=True)
class Brightest(CropDecoder):
    gain: float = 1.0

    def keypoints(self, outputs: Arrays, size: tuple[int, int], pose: PoseSpec) -> NDArray[np.floating]:
        cells = outputs["cells"]
        rows, columns = np.divmod(cells.reshape(*cells.shape[:2], -1).argmax(axis=2), cells.shape[3])
        return np.stack([columns * pose.stride, rows * pose.stride, np.full(rows.shape, self.gain)], axis=-1)


class NeedsOption(Brightest):
    def __init__(self, size: int) -> None:
        super().__init__()


READY = Brightest(gain=3.0)


def harmful(**options: object) -> None:
    CALLED.append(options)
