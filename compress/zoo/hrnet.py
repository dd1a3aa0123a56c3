"""High-resolution networks (Sun et al. 2019, arXiv:1902.09212).

Parallel branches at 1/4 to 1/32 of the input size are fused after every module; the heatmaps are predicted from the
first branch. Parameter names are those of the public release, so that its files load without renaming. Height and width
of the input must be multiples of 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from compress.zoo.layers import Maps, conv, initialise
from compress.zoo.limits import check_choice
from compress.zoo.resnet import BasicBlock, bottlenecks
from compress.zoo.topdown import register_top_down

#: Channels of the first branch; each following branch has twice as many.
WIDTHS = (32, 48)

#: Modules of stages 2, 3 and 4, with two, three and four branches.
MODULES = (1, 4, 3)

#: Basic blocks per branch.
BLOCKS = 4

#: Channels of the stem's output.
STEM = 256


class HighResolutionModule(nn.Module):
    """Basic blocks in each branch, followed by fusion of all branches.

    Parameters
    ----------
    channels : sequence of int
        Channels of the branches, the largest map first.
    outputs : int
        Number of fused outputs; the last module of the network has only the first.
    """

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*(BasicBlock(c) for _ in range(BLOCKS))) for c in channels)
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fusion(channels, source, target) for source in range(len(channels)))
            for target in range(outputs)
        )
        self.relu = nn.ReLU()

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per branch to one map per fused branch."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        row: Any
        for row in self.fuse_layers:
            total: Tensor = row[0](maps[0])
            for layer, x in zip(row[1:], maps[1:], strict=True):
                total = total + layer(x)
            fused.append(self.relu(total))
        return fused


class HRNet(nn.Module):
    """The high-resolution network.

    Parameters
    ----------
    width : int
        Channels of the first branch, 32 or 48.
    joints : int
        Number of heatmaps.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If the width is unknown.
    """

    distill_points = ("layer1", "stage4.2.relu")

    def __init__(self, width: int, joints: int) -> None:
        super().__init__()
        check_choice("width", width, WIDTHS)
        self.conv1 = nn.Conv2d(3, 64, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 64, 3, 2, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = bottlenecks(64, STEM // 4, 4)
        before: list[int] = [STEM]
        for index, modules in enumerate(MODULES, start=1):
            channels = [width * 2**branch for branch in range(index + 1)]
            self.add_module(f"transition{index}", _transition(before, channels))
            last = index == len(MODULES)
            stage = (
                HighResolutionModule(channels, 1 if last and number == modules - 1 else len(channels))
                for number in range(modules)
            )
            self.add_module(f"stage{index + 1}", nn.Sequential(*stage))
            before = channels
        self.final_layer = nn.Conv2d(width, joints, 1)
        initialise(self, (nn.Sequential(self.final_layer),))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to maps (N, joints, H/4, W/4)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for index in range(1, len(MODULES) + 1):
            transition: Any = self.get_submodule(f"transition{index}")
            # Existing branches continue; a new one starts from the smallest map.
            maps = [layer(maps[min(branch, len(maps) - 1)]) for branch, layer in enumerate(transition)]
            maps = self.get_submodule(f"stage{index + 1}")(maps)
        return [{"heatmaps": self.final_layer(maps[0])}]


def hrnet(width: int = 32) -> HRNet:
    """The network with the 17 joints of COCO."""
    return HRNet(width, 17)


def hrnet_mpii(width: int = 32) -> HRNet:
    """The network with the 16 joints of MPII."""
    return HRNet(width, 16)


def _fusion(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Converts the map of one branch to the size and channels of another."""
    inputs, outputs = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:
        return nn.Sequential(
            *conv(inputs, outputs, 1, bias=False, norm=True, activation=None),
            nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest"),
        )
    steps = target - source
    return nn.Sequential(
        *(conv(inputs, inputs, stride=2, bias=False, norm=True) for _ in range(steps - 1)),
        conv(inputs, outputs, stride=2, bias=False, norm=True, activation=None),
    )


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """From the branches of a stage to those of the next, which has one more."""
    layers: list[nn.Module] = []
    for branch, channels in enumerate(after):
        if branch >= len(before):
            layers.append(nn.Sequential(conv(before[-1], channels, stride=2, bias=False, norm=True)))
        elif channels == before[branch]:
            layers.append(nn.Identity())
        else:
            layers.append(conv(before[branch], channels, bias=False, norm=True))
    return nn.ModuleList(layers)


register_top_down("hrnet", hrnet, 17, "high-resolution network, top-down on COCO", "Sun et al. 2019")
register_top_down("hrnet-mpii", hrnet_mpii, 16, "high-resolution network for MPII", "Sun et al. 2019")
