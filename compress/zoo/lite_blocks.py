"""The blocks of Lite-HRNet (Yu et al. 2021, arXiv:2104.06403), with the names of its public release."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

#: Channels of the stem.
STEM = 32

#: Reduction ratios of the two weightings.
CROSS_REDUCTION, SPATIAL_REDUCTION = 8, 4


class Unit(nn.Sequential):
    """A convolution named ``conv``, batch normalisation named ``bn``, and an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int = 1,
        *,
        stride: int = 1,
        groups: int = 1,
        norm: bool = True,
        activation: type[nn.Module] | None = nn.ReLU,
    ) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=not norm))
        if norm:
            self.add_module("bn", nn.BatchNorm2d(outputs))
        if activation is not None:
            self.add_module("activate", activation())


def depthwise(channels: int, stride: int = 1) -> Unit:
    """A depthwise 3x3 convolution without activation."""
    return Unit(channels, channels, 3, stride=stride, groups=channels, activation=None)


def shuffle(first: Tensor, second: Tensor) -> Tensor:
    """Channels of two maps, interleaved: equals concatenation followed by a channel shuffle in two groups."""
    return torch.stack([first, second], dim=2).flatten(1, 2)


class Stem(nn.Module):
    """From images to 32 channels at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        half = STEM // 2
        self.conv1 = Unit(3, STEM, 3, stride=2)
        self.branch1 = nn.Sequential(depthwise(half, 2), Unit(half, half))
        self.expand_conv = Unit(half, STEM)
        self.depthwise_conv = depthwise(STEM, 2)
        self.linear_conv = Unit(STEM, half)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, 32, H/4, W/4)."""
        first, second = self.conv1(x).chunk(2, dim=1)
        return shuffle(self.branch1(first), self.linear_conv(self.depthwise_conv(self.expand_conv(second))))


class CrossResolutionWeighting(nn.Module):
    """Weights of all maps, computed from all of them at the size of the smallest."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        total = sum(channels)
        self.channels = list(channels)
        self.conv1 = Unit(total, total // CROSS_REDUCTION)
        self.conv2 = Unit(total // CROSS_REDUCTION, total, activation=nn.Sigmoid)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps, each half the size of the one before, to the weighted maps."""
        steps = [2 ** (len(maps) - 1 - branch) for branch in range(len(maps))]
        pooled = [x if step == 1 else avg_pool2d(x, step) for x, step in zip(maps, steps, strict=True)]
        weights = self.conv2(self.conv1(torch.cat(pooled, dim=1))).split(self.channels, dim=1)
        return [
            x * (weight if step == 1 else interpolate(weight, scale_factor=float(step), mode="nearest"))
            for x, weight, step in zip(maps, weights, steps, strict=True)
        ]


class SpatialWeighting(nn.Module):
    """One weight per channel from its mean (squeeze and excitation)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.conv1 = Unit(channels, channels // SPATIAL_REDUCTION, norm=False)
        self.conv2 = Unit(channels // SPATIAL_REDUCTION, channels, norm=False, activation=nn.Sigmoid)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        y: Tensor = x * self.conv2(self.conv1(self.pool(x)))
        return y


class ConditionalChannelWeighting(nn.Module):
    """Half of each map's channels passes through weightings and a depthwise convolution, the other half is kept."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        halves = [c // 2 for c in channels]
        self.cross_resolution_weighting = CrossResolutionWeighting(halves)
        self.depthwise_convs = nn.ModuleList(depthwise(c) for c in halves)
        self.spatial_weighting = nn.ModuleList(SpatialWeighting(c) for c in halves)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per branch to the same shapes."""
        halves = [x.chunk(2, dim=1) for x in maps]
        weighted = self.cross_resolution_weighting([second for _, second in halves])
        layers = zip(self.depthwise_convs, self.spatial_weighting, strict=True)
        weighted = [weight(conv(x)) for x, (conv, weight) in zip(weighted, layers, strict=True)]
        return [shuffle(first, x) for (first, _), x in zip(halves, weighted, strict=True)]


class ShuffleUnit(nn.Module):
    """The naive block (ShuffleNet v2): half of the channels passes through 1x1, depthwise 3x3 and 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch2 = nn.Sequential(Unit(half, half), depthwise(half), Unit(half, half))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        first, second = x.chunk(2, dim=1)
        return shuffle(first, self.branch2(second))


class SeparableConv(nn.Module):
    """A depthwise 3x3 convolution and a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise_conv = depthwise(inputs)
        self.pointwise_conv = Unit(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h, w)."""
        y: Tensor = self.pointwise_conv(self.depthwise_conv(x))
        return y
