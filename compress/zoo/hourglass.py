"""Stacked hourglass networks (Newell et al. 2016, arXiv:1603.06937), the baseline of several tables.

A stem to stride 4, then stacks: an hourglass of residual blocks over five resolutions, a residual block, a 1x1
convolution and heatmaps, which the next stack gets added to its input. Parameter names are those of the usual public
PyTorch implementation, so that its files load without renaming; as there, one block at each place, biases in all
convolutions, and normalisation before each of them. Upsampling targets the size of the map to add to, so that any input
of at least 64 x 64 works.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d

from compress.zoo.layers import Maps, initialise
from compress.zoo.limits import check_counts
from compress.zoo.topdown import register_top_down

#: Channels of the features; blocks have half as many inside.
WIDTH = 256

#: Halvings of an hourglass.
DEPTH = 4

#: Bounds of the options.
LIMITS = {"stacks": (1, 16)}


class PreBottleneck(nn.Module):
    """Residual block with normalisation and activation before each convolution: 1x1, 3x3, 1x1.

    Parameters
    ----------
    inputs, outputs : int
        Channels; the inner ones are half the outputs. The residual is projected where the two differ.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        inner = outputs // 2
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, inner, 1)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1)
        self.bn3 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1)
        self.relu = nn.ReLU()
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1)) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h, w)."""
        y = self.conv1(self.relu(self.bn1(x)))
        y = self.conv2(self.relu(self.bn2(y)))
        y = self.conv3(self.relu(self.bn3(y)))
        total: Tensor = y + (x if self.downsample is None else self.downsample(x))
        return total


class Hourglass(nn.Module):
    """Blocks over a pyramid of resolutions: down by pooling, up by nearest-neighbour upsampling and addition.

    ``hg.N`` holds the blocks of a resolution, 0 the lowest: beside the halving, before and after the lower resolutions;
    the lowest has one more between the last two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hg = nn.ModuleList(
            nn.ModuleList(_blocks(WIDTH, WIDTH) for _ in range(3 if level else 4)) for level in range(DEPTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, 256, h, w) to the same shape."""
        return self._level(DEPTH - 1, x)

    def _level(self, level: int, x: Tensor) -> Tensor:
        blocks: Any = self.hg[level]
        below = blocks[1](max_pool2d(x, 2))
        below = self._level(level - 1, below) if level else blocks[3](below)
        beside = blocks[0](x)
        y: Tensor = beside + interpolate(blocks[2](below), size=beside.shape[-2:], mode="nearest")
        return y


class StackedHourglass(nn.Module):
    """The stacked hourglass network.

    Parameters
    ----------
    stacks : int
        Number of hourglasses, each of which predicts heatmaps.
    joints : int
        Number of heatmaps.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If the number of stacks is out of its bounds.
    """

    def __init__(self, stacks: int, joints: int) -> None:
        super().__init__()
        check_counts(LIMITS, stacks=stacks)
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.layer1 = _blocks(64, 128)
        self.layer2 = _blocks(128, WIDTH)
        self.layer3 = _blocks(WIDTH, WIDTH)
        self.hg = nn.ModuleList(Hourglass() for _ in range(stacks))
        self.res = nn.ModuleList(_blocks(WIDTH, WIDTH) for _ in range(stacks))
        self.fc = nn.ModuleList(
            nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), nn.BatchNorm2d(WIDTH), nn.ReLU()) for _ in range(stacks)
        )
        self.score = nn.ModuleList(nn.Conv2d(WIDTH, joints, 1) for _ in range(stacks))
        self.fc_ = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(stacks - 1))
        self.score_ = nn.ModuleList(nn.Conv2d(joints, WIDTH, 1) for _ in range(stacks - 1))
        self.distill_points = tuple(f"fc.{index}" for index in range(stacks))
        initialise(self, tuple(nn.Sequential(score) for score in self.score))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the maps of each stack, (N, joints, H/4, W/4)."""
        x = max_pool2d(self.layer1(self.relu(self.bn1(self.conv1(x)))), 2)
        x = self.layer3(self.layer2(x))
        maps: list[Maps] = []
        for index, (hourglass, res, fc, score) in enumerate(zip(self.hg, self.res, self.fc, self.score, strict=True)):
            features = fc(res(hourglass(x)))
            maps.append({"heatmaps": score(features)})
            if index < len(self.fc_):
                x = x + self.fc_[index](features) + self.score_[index](maps[-1]["heatmaps"])
        return maps


def hourglass(stacks: int = 8) -> StackedHourglass:
    """The network with the 17 joints of COCO."""
    return StackedHourglass(stacks, 17)


def hourglass_mpii(stacks: int = 8) -> StackedHourglass:
    """The network with the 16 joints of MPII, which its paper is about."""
    return StackedHourglass(stacks, 16)


def _blocks(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(PreBottleneck(inputs, outputs))


register_top_down("hourglass", hourglass, 17, "stacked hourglass, eight stacks, top-down on COCO", "Newell et al. 2016")
register_top_down("hourglass-mpii", hourglass_mpii, 16, "stacked hourglass for MPII", "Newell et al. 2016")
