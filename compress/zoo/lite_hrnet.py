"""Lite-HRNet (Yu et al. 2021, arXiv:2104.06403), and CBAM-Lite-HRNet, which extends it.

A high-resolution network of depthwise convolutions, whose 1x1 convolutions are replaced by weights computed across
resolutions and positions. Parameter names are those of the public release, so that its files load without renaming.
Height and width of the input must be multiples of 32.

The fusion of the public release, which its weights are trained for, is unusual. With o the outputs of a module's
branches and f_ij the conversion of branch j to branch i, it computes

    y_0 = 2 o_0 + sum_{j>0} f_0j(o_j),      y_i = 2 f_i0(y_0) + o_i + sum_{j>0, j!=i} f_ij(o_j)   (i > 0),

where the standard fusion has no factors 2, and o_0 in place of y_0. The second 2 comes from running f_i0 twice; with
the option ``single_fuse`` it runs once, with the same output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, relu

from compress.zoo.attention import build_attention
from compress.zoo.layers import Maps, initialise
from compress.zoo.limits import check_choice
from compress.zoo.lite_blocks import (
    STEM,
    ConditionalChannelWeighting,
    SeparableConv,
    ShuffleUnit,
    Stem,
    Unit,
    depthwise,
)
from compress.zoo.topdown import register_top_down

#: Modules of the three stages, by depth.
MODULES = {18: (2, 4, 2), 30: (3, 8, 3)}

#: Channels of the first branch of the published network.
PUBLIC_CHANNELS = 40

#: Channels of the first branch; each following branch has twice as many. CBAM-Lite-HRNet's text names 32 and 48, which
#: are the widths of HRNet; its largest network has 48 and inputs of 384 x 288.
WIDTHS = (32, PUBLIC_CHANNELS, 48)

#: Branches; the stages have two, three and four of them.
BRANCHES = 4

#: Channels of the first branch with naive blocks, by the value of the option ``blocks``.
NAIVE_WIDTHS = {"naive": 30, "naive_wide": PUBLIC_CHANNELS}

#: Blocks per module.
BLOCKS = 2


class LiteModule(nn.Module):
    """Blocks, then the fusion of all branches described at the top of this file.

    Parameters
    ----------
    channels : sequence of int
        Channels of the branches, the largest map first.
    naive : bool
        Use shuffle units instead of channel weighting.
    single_fuse : bool
        Run each fusion layer once.
    """

    def __init__(self, channels: Sequence[int], *, naive: bool, single_fuse: bool) -> None:
        super().__init__()
        self.single_fuse = single_fuse
        self.naive = naive
        self.layers: Any
        if naive:
            self.layers = nn.ModuleList(nn.Sequential(*(ShuffleUnit(c) for _ in range(BLOCKS))) for c in channels)
        else:
            self.layers = nn.Sequential(*(ConditionalChannelWeighting(channels) for _ in range(BLOCKS)))
        branches = range(len(channels))
        self.fuse_layers = nn.ModuleList(
            nn.ModuleList(_fusion(channels, source, target) for source in branches) for target in branches
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per branch to the same shapes."""
        maps = [layer(x) for layer, x in zip(self.layers, maps, strict=True)] if self.naive else self.layers(maps)
        fused: list[Tensor] = []
        row: Any
        for row in self.fuse_layers:
            # The first branch reads its own output, all others the fused map of the first.
            source = fused[0] if fused else maps[0]
            once = row[0](source)
            total = once + (once if self.single_fuse or not fused else row[0](source))
            for layer, x in zip(row[1:], maps[1:], strict=True):
                total = total + layer(x)
            fused.append(total)
        return [relu(x) for x in fused]


class IterativeHead(nn.Module):
    """From the smallest map to the largest: upsample and add the previous result, then reduce the channels."""

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        wide = list(reversed(channels))
        self.projects = nn.ModuleList(
            SeparableConv(inputs, outputs) for inputs, outputs in zip(wide, [*wide[1:], wide[-1]], strict=True)
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """One map per branch to maps of the same sizes with the channels of the next larger branch."""
        results: list[Tensor] = []
        for x, project in zip(reversed(maps), self.projects, strict=True):
            below = [enlarge(results[0], 2)] if results else []
            results.insert(0, project(sum(below, start=x)))
        return results


class LiteBackbone(nn.Module):
    """Stem, three stages, each after a transition, and the iterative head."""

    def __init__(self, modules: Sequence[int], channels: Sequence[int], *, naive: bool, single_fuse: bool) -> None:
        super().__init__()
        self.stem = Stem()
        before: Sequence[int] = [STEM]
        for index, count in enumerate(modules):
            widths = channels[: index + 2]
            self.add_module(f"transition{index}", _transition(before, widths))
            stage = (LiteModule(widths, naive=naive, single_fuse=single_fuse) for _ in range(count))
            self.add_module(f"stage{index}", nn.Sequential(*stage))
            before = widths
        self.head_layer = IterativeHead(channels)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to maps at 1/4 to 1/32 of their size."""
        maps = [self.stem(x)]
        for index in range(BRANCHES - 1):
            transition: Any = self.get_submodule(f"transition{index}")
            # Existing branches continue; a new one starts from the smallest map.
            maps = [layer(maps[min(branch, len(maps) - 1)]) for branch, layer in enumerate(transition)]
            maps = self.get_submodule(f"stage{index}")(maps)
        results: list[Tensor] = self.head_layer(maps)
        return results


class KeypointHead(nn.Module):
    """A 1x1 convolution of the largest map."""

    def __init__(self, channels: Sequence[int], joints: int) -> None:
        super().__init__()
        self.final_layer = nn.Conv2d(channels[0], joints, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps at 1/4 and less to heatmaps (N, joints, H/4, W/4)."""
        heatmaps: Tensor = self.final_layer(maps[0])
        return heatmaps


class AttentionHead(nn.Module):
    """The head of CBAM-Lite-HRNet: all maps upsampled, each through attention, concatenated, and a 1x1 convolution.

    Parameters
    ----------
    channels : sequence of int
        Channels of the maps.
    joints : int
        Number of heatmaps.
    attention : str
        Kind of the attention blocks (`compress.zoo.attention`).
    """

    def __init__(self, channels: Sequence[int], joints: int, attention: str) -> None:
        super().__init__()
        self.attention = nn.ModuleList(build_attention(attention, c) for c in channels)
        self.final_layer = nn.Conv2d(sum(channels), joints, 1)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Maps at 1/4, 1/8, ... to heatmaps (N, joints, H/4, W/4)."""
        large = [enlarge(x, 2**branch) if branch else x for branch, x in enumerate(maps)]
        weighted = [block(x) for block, x in zip(self.attention, large, strict=True)]
        heatmaps: Tensor = self.final_layer(torch.cat(weighted, dim=1))
        return heatmaps


class LiteHRNet(nn.Module):
    """Lite-HRNet.

    Parameters
    ----------
    depth : int
        18 or 30.
    joints : int
        Number of heatmaps.
    blocks : str
        ``"weighted"``, or a key of `NAIVE_WIDTHS`.
    channels : int
        Channels of the first branch, one of `WIDTHS`; naive blocks have their own.
    single_fuse : bool
        Run each fusion layer once: fewer operations, same parameters and output.
    attention : str or None
        Kind of attention in the head of CBAM-Lite-HRNet; None for the plain head.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If an option has an unknown value.
    """

    distill_points = ("backbone.stem", "backbone.head_layer.projects.3")

    def __init__(
        self,
        depth: int,
        joints: int,
        *,
        blocks: str = "weighted",
        channels: int = PUBLIC_CHANNELS,
        single_fuse: bool = False,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(MODULES))
        check_choice("blocks", blocks, ("weighted", *NAIVE_WIDTHS))
        check_choice("channels", channels, WIDTHS if blocks == "weighted" else (PUBLIC_CHANNELS,))
        check_choice("single_fuse", single_fuse, (False, True))
        first = NAIVE_WIDTHS.get(blocks, channels)
        widths = tuple(first * 2**branch for branch in range(BRANCHES))
        self.backbone = LiteBackbone(MODULES[depth], widths, naive=blocks in NAIVE_WIDTHS, single_fuse=single_fuse)
        narrow = (widths[0], *widths[:-1])
        head: nn.Module
        head = KeypointHead(narrow, joints) if attention is None else AttentionHead(narrow, joints, attention)
        self.keypoint_head = head
        initialise(self, (nn.Sequential(head),))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to maps (N, joints, H/4, W/4)."""
        return [{"heatmaps": self.keypoint_head(self.backbone(x))}]


def enlarge(x: Tensor, factor: int) -> Tensor:
    """A map upsampled bilinearly with aligned corners."""
    return interpolate(x, scale_factor=float(factor), mode="bilinear", align_corners=True)


def lite_hrnet(
    depth: int = 18, single_fuse: bool = False, blocks: str = "weighted", channels: int = PUBLIC_CHANNELS
) -> LiteHRNet:
    """Lite-HRNet with the 17 joints of COCO."""
    return LiteHRNet(depth, 17, single_fuse=single_fuse, blocks=blocks, channels=channels)


def lite_hrnet_mpii(
    depth: int = 18, single_fuse: bool = False, blocks: str = "weighted", channels: int = PUBLIC_CHANNELS
) -> LiteHRNet:
    """Lite-HRNet with the 16 joints of MPII."""
    return LiteHRNet(depth, 16, single_fuse=single_fuse, blocks=blocks, channels=channels)


def cbam_lite_hrnet(
    depth: int = 18, single_fuse: bool = False, attention: str = "cbam", channels: int = PUBLIC_CHANNELS
) -> LiteHRNet:
    """CBAM-Lite-HRNet with the 17 joints of COCO."""
    return LiteHRNet(depth, 17, single_fuse=single_fuse, attention=attention, channels=channels)


def cbam_lite_hrnet_mpii(
    depth: int = 18, single_fuse: bool = False, attention: str = "cbam", channels: int = PUBLIC_CHANNELS
) -> LiteHRNet:
    """CBAM-Lite-HRNet with the 16 joints of MPII."""
    return LiteHRNet(depth, 16, single_fuse=single_fuse, attention=attention, channels=channels)


def _separable(inputs: int, outputs: int, stride: int, *, last: type[nn.Module] | None = nn.ReLU) -> nn.Sequential:
    """A depthwise 3x3 convolution and a 1x1 convolution, both normalised, as one flat sequence."""
    layers = [*depthwise(inputs, stride), *Unit(inputs, outputs, activation=last)]
    return nn.Sequential(*layers)


def _fusion(channels: Sequence[int], source: int, target: int) -> nn.Module:
    """Converts the map of one branch to the size and channels of another."""
    inputs, outputs = channels[source], channels[target]
    if source == target:
        return nn.Identity()
    if source > target:
        up = nn.Upsample(scale_factor=float(2 ** (source - target)), mode="nearest")
        return nn.Sequential(*Unit(inputs, outputs, activation=None), up)
    return nn.Sequential(
        *(_separable(inputs, inputs, 2) for _ in range(target - source - 1)), _separable(inputs, outputs, 2, last=None)
    )


def _transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleList:
    """From the branches of a stage to those of the next, which has one more."""
    layers: list[nn.Module] = []
    for branch, channels in enumerate(after):
        if branch >= len(before):
            layers.append(nn.Sequential(_separable(before[-1], channels, 2)))
        elif channels == before[branch]:
            layers.append(nn.Identity())
        else:
            layers.append(_separable(before[branch], channels, 1))
    return nn.ModuleList(layers)


register_top_down("lite-hrnet", lite_hrnet, 17, "Lite-HRNet, top-down on COCO", "Yu et al. 2021")
register_top_down("lite-hrnet-mpii", lite_hrnet_mpii, 16, "Lite-HRNet for MPII", "Yu et al. 2021")
register_top_down("cbam-lite-hrnet", cbam_lite_hrnet, 17, "Lite-HRNet with CBAM, top-down on COCO", "CBAM-Lite-HRNet")
register_top_down("cbam-lite-hrnet-mpii", cbam_lite_hrnet_mpii, 16, "Lite-HRNet with CBAM for MPII", "CBAM-Lite-HRNet")
