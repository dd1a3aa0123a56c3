"""OpenPose (Cao et al. 2017, arXiv:1611.08050) on the first ten convolutions of VGG-19: the COCO model.

Each stage has two branches, for heatmaps and part-affinity fields, with separate convolutions; from the second stage
on, five of 7x7. The costs are those of the released network. Tensor names are this project's own; files with the names
of the Caffe release or of its PyTorch conversions load too (`compress.zoo.openpose_names`). As in the release, images
are BGR and normalised as ``pixel / 256 - 0.5``, and a stage reads fields, heatmaps and features, in this order.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compress.pose.spec import PoseSpec
from compress.zoo.layers import Maps, conv, head, initialise
from compress.zoo.limits import check_counts
from compress.zoo.registry import NetworkEntry, register
from compress.zoo.vgg import VGG

#: 18 joints and a background map; x and y of the fields of 19 limbs.
HEATMAPS, PAFS = 19, 38

#: Channels of the shared features.
WIDTH = 128

#: Bounds of the options.
LIMITS = {"stages": (1, 16)}


class Branch(nn.Module):
    """The convolutions and the head of one kind of maps."""

    def __init__(self, trunk: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, maps, h, w)."""
        maps: Tensor = self.head(self.trunk(x))
        return maps


class Stage(nn.Module):
    """Both branches on the same input: three 3x3 convolutions in the first stage, five 7x7 ones in the others."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.pafs, self.heatmaps = self._branch(first, PAFS), self._branch(first, HEATMAPS)

    def forward(self, x: Tensor) -> Maps:
        """(N, 128 or 185, h, w) to maps (N, 19, h, w) and (N, 38, h, w)."""
        return {"heatmaps": self.heatmaps(x), "pafs": self.pafs(x)}

    @staticmethod
    def _branch(first: bool, maps: int) -> Branch:
        if first:
            return Branch(nn.Sequential(*(conv(WIDTH, WIDTH) for _ in range(3))), head(WIDTH, 512, maps))
        inputs = (WIDTH + HEATMAPS + PAFS, *(WIDTH,) * 4)
        return Branch(nn.Sequential(*(conv(n, WIDTH, 7) for n in inputs)), head(WIDTH, WIDTH, maps))


class OpenPose(nn.Module):
    """OpenPose's COCO network.

    Parameters
    ----------
    stages : int
        Number of stages; the release has 6.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If the number of stages is out of its bounds.
    """

    def __init__(self, stages: int = 6) -> None:
        super().__init__()
        check_counts(LIMITS, stages=stages)
        layers: list[nn.Module] = []
        channels = 3
        for outputs in VGG:
            if outputs is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers.append(conv(channels, outputs))
                channels = outputs
        self.backbone = nn.Sequential(*layers)
        self.reduce = nn.Sequential(conv(channels, 256), conv(256, WIDTH))
        built = [Stage(first=index == 0) for index in range(stages)]
        self.stages = nn.ModuleList(built)
        self.distill_points = (
            "reduce",
            *(f"stages.{index}.{branch}.trunk" for index in range(stages) for branch in ("pafs", "heatmaps")),
        )
        initialise(self, tuple(b.head for stage in built for b in (stage.pafs, stage.heatmaps)))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the maps of each stage, (N, 19, H/8, W/8) and (N, 38, H/8, W/8)."""
        features = self.reduce(self.backbone(x))
        maps = [self.stages[0](features)]
        for stage in self.stages[1:]:
            maps.append(stage(torch.cat([maps[-1]["pafs"], maps[-1]["heatmaps"], features], dim=1)))
        return maps


def openpose_vgg19(stages: int = 6) -> OpenPose:
    """OpenPose's COCO network with any number of stages."""
    return OpenPose(stages)


register(
    NetworkEntry(
        name="openpose-vgg19",
        build=openpose_vgg19,
        pose=PoseSpec(height=368),
        input_size=(368, 368),
        summary="OpenPose, VGG-19 at stride 8, COCO model of six stages",
        source="Cao et al. 2017",
    )
)
