"""A tiny network and a tiny data set, also for the programs that tests start."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from compress.data.sample import Person, Sample
from compress.errors import DataError
from compress.model import Model
from compress.network.inputs import image_input
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.training.loop import Hooks, StateFile, train
from compress.training.options import FineTuneOptions
from compress.training.processes import ProcessGroup
from compress.training.results import FineTuneResult


class TinyPose(nn.Module):
    """Two stages at stride 8 with the maps of the OpenPose family, batch normalisation and dropout."""

    distill_points = ("features", "refine")

    def __init__(self, joints: int = 19, width: int = 8) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, width, 3, 4, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, 2, 1), nn.ReLU(),
        )  # fmt: skip
        self.heatmaps = nn.Conv2d(width, joints, 1)
        self.pafs = nn.Conv2d(width, 38, 1)
        self.refine = nn.Sequential(nn.Conv2d(width + joints + 38, width, 3, 1, 1), nn.ReLU(), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        features = self.features(x)
        first = {"heatmaps": self.heatmaps(features), "pafs": self.pafs(features)}
        refined = self.refine(torch.cat([features, *first.values()], 1))
        return [first, {"heatmaps": self.heatmaps(refined), "pafs": self.pafs(refined)}]


class Stickmen:
    """People drawn as polylines: enough data to lower a loss."""

    def __init__(self, count: int = 12, annotated: bool = True, broken: int | None = None) -> None:
        self.name, self.count, self.annotated, self.broken = f"stickmen:{count}", count, annotated, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if index == self.broken:
            raise DataError("the image does not decode", found=f"{index}.jpg", hint="Fetch it again")
        rng = np.random.default_rng(index)
        image = np.full((64, 64, 3), 90, np.uint8)
        low, size = rng.uniform(2, 20, 2), rng.uniform(30, 40, 2)
        keypoints = np.full((17, 3), 2, np.float32)
        keypoints[:, :2] = low + size * rng.random((17, 2))
        for (x0, y0, _), (x1, y1, _) in itertools.pairwise(keypoints):
            cv2.line(image, (int(x0), int(y0)), (int(x1), int(y1)), (255, 200, 150), 2)
        people = (Person(keypoints, np.array([*low, *size], np.float32), float(size.prod())),) if self.annotated else ()
        mask = np.ones((64, 64), bool)
        mask[:16, : 8 * (index % 3)] = False
        return Sample(image, people, mask, index, f"{index}.png")

    def ground_truth(self) -> dict[str, Any]:
        raise DataError("never asked for in these tests")


def model_of(module: nn.Module, pose: PoseSpec | None = None, size: tuple[int, int] = (64, 64)) -> Model:
    """A test network as a model, with the default pose unless another is given."""
    return Model(module, NetworkSpec("tests:network"), image_input(size), pose=pose or PoseSpec(), label="network")


def train_network(
    module: nn.Module,
    data: Any,
    options: FineTuneOptions,
    *,
    pose: PoseSpec | None = None,
    teacher: nn.Module | None = None,
    state: StateFile | None = None,
    group: ProcessGroup | None = None,
    **hooks: Any,
) -> FineTuneResult:
    """Train a bare test network; ``hooks`` are those of `compress.training.loop.Hooks`."""
    return train(
        model_of(module, pose),
        data,
        options,
        teacher=None if teacher is None else model_of(teacher, pose),
        hooks=Hooks(**hooks),
        state=state,
        group=group,
    )
