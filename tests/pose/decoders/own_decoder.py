"""A decoder outside the package: the brightest cell of each of three channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from compress.pose.decoders.base import Array, Decoder, NetworkInput, Pose
from compress.pose.spec import PoseSpec

CALLED: list[object] = []


@dataclass(frozen=True)
class Brightest(Decoder):
    gain: float = 1.0

    top_down: ClassVar[bool] = True

    def decode(self, outputs: Mapping[str, Array], inputs: Sequence[NetworkInput], pose: PoseSpec) -> list[list[Pose]]:
        people = []
        for maps, network_input in zip(outputs["cells"], inputs, strict=True):
            rows, columns = np.unravel_index(maps.reshape(len(maps), -1).argmax(axis=1), maps.shape[1:])
            places = network_input.to_image(np.stack([columns, rows], axis=-1) * pose.stride)
            keypoints = np.column_stack([places, np.ones(len(maps))]).astype(np.float32)
            people.append([Pose(keypoints, self.gain)])
        return people


class NeedsOption(Brightest):
    def __init__(self, size: int) -> None:
        super().__init__()


READY = Brightest(gain=3.0)


def harmful(**options: object) -> None:
    CALLED.append(options)
