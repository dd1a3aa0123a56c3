"""A convolutional pose machine with global context for one person (Osokin, "Global Context for Convolutional Pose
Machines", 2019).

MobileNet v1 and an initial stage as in lightweight OpenPose, but heatmaps only; each refinement stage has a context
module with a large receptive field before its residual blocks. Parameter names are those of the public PyTorch release,
so that its files load without renaming. Upsampling targets the size of the map to concatenate, so that any input size
works, also in exported files.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from compress.pose.spec import PoseSpec
from compress.zoo.layers import Maps, RefinementBlock, conv, head, initialise, separable
from compress.zoo.lightweight_openpose import BACKBONE
from compress.zoo.limits import check_choice, check_counts
from compress.zoo.registry import NetworkEntry, register

#: Channels of the shared features.
WIDTH = 128

#: Maps: 16 joints and a background map (LIP, MPII), or the 17 joints of COCO.
HEATMAPS = 17

#: The kinds of context module.
CONTEXTS = ("u_shaped", "aspp", "pyramid", "none")

#: Where context modules may be.
PLACES = ("refinement", "features")

#: Bounds of the options.
LIMITS = {"stages": (1, 16)}

#: Channels and dilations of the atrous spatial pyramid's branches.
ASPP_WIDTH, ASPP_RATES = 1024, (3, 6, 9, 12)

#: Channels of the pooled maps, and the sides of their grids.
PYRAMID_WIDTH, PYRAMID_GRIDS = 32, (16, 8, 4, 2)


class UShapedContext(nn.Module):
    """A U-shaped module: downsampling by 4 and upsampling with skip connections.

    Parameters
    ----------
    channels : int
        Channels of input and output; the inner layers have twice as many.
    upsampling : str
        ``"bilinear"`` or ``"nearest"``.
    """

    def __init__(self, channels: int, upsampling: str) -> None:
        super().__init__()
        wide = 2 * channels
        self.upsampling = upsampling
        self.encoder1 = nn.Sequential(conv(channels, wide, stride=2, norm=True), conv(wide, wide, norm=True))
        self.encoder2 = nn.Sequential(conv(wide, wide, stride=2, norm=True), conv(wide, wide, norm=True))
        self.decoder2 = nn.Sequential(conv(2 * wide, wide, norm=True), conv(wide, wide, norm=True))
        self.decoder1 = nn.Sequential(conv(channels + wide, wide, norm=True), conv(wide, channels, norm=True))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        half = self.encoder1(x)
        quarter = self.encoder2(half)
        half = self.decoder2(torch.cat([half, resize(quarter, half, self.upsampling)], dim=1))
        y: Tensor = self.decoder1(torch.cat([x, resize(half, x, self.upsampling)], dim=1))
        return y


class AtrousPyramidContext(nn.Module):
    """Atrous spatial pyramid: the sum of parallel bias-free convolutions of different dilations.

    This reading of the paper's "original ASPP with 1024 intermediate channels" has 0.2 % more parameters than printed.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                conv(channels, ASPP_WIDTH, dilation=rate, bias=False), conv(ASPP_WIDTH, ASPP_WIDTH, 1, bias=False)
            )
            for rate in ASPP_RATES
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1024, h, w)."""
        total: Tensor = self.branches[0](x)
        for branch in self.branches[1:]:
            total = total + branch(x)
        return total


class PooledPyramidContext(nn.Module):
    """Pyramid pooling: means over grids of several sizes, each through a convolution, concatenated with the input.

    For pooling, maps are padded to multiples of 16 by replicating their edge.
    """

    def __init__(self, channels: int, upsampling: str) -> None:
        super().__init__()
        self.upsampling = upsampling
        self.levels = nn.ModuleList(conv(channels, PYRAMID_WIDTH) for _ in PYRAMID_GRIDS)
        joined = channels + len(PYRAMID_GRIDS) * PYRAMID_WIDTH
        self.fuse = nn.Sequential(conv(joined, WIDTH, 1), conv(WIDTH, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        height, width = x.shape[-2:]
        side = PYRAMID_GRIDS[0]
        whole = pad(x, (0, -width % side, 0, -height % side), mode="replicate")
        batch, channels, rows, columns = whole.shape
        pooled = whole.reshape(batch, channels, side, rows // side, side, columns // side).mean((3, 5))
        joined = [x]
        for index, level in enumerate(self.levels):
            if index:
                pooled = avg_pool2d(pooled, 2)
            joined.append(resize(level(pooled), whole, self.upsampling)[..., :height, :width])
        y: Tensor = self.fuse(torch.cat(joined, dim=1))
        return y


class InitialStage(nn.Module):
    """Three 3x3 convolutions with batch normalisation, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(conv(WIDTH, WIDTH, norm=True) for _ in range(3)))
        self.heatmaps = head(WIDTH, 512, HEATMAPS)

    def forward(self, x: Tensor) -> Maps:
        """(N, 128, h, w) to maps (N, 17, h, w)."""
        return {"heatmaps": self.heatmaps(self.trunk(x))}


def build_context(kind: str, channels: int, upsampling: str) -> tuple[list[nn.Module], int]:
    """The context module of a kind, or none, and its number of output channels.

    Parameters
    ----------
    kind : str
        One of `CONTEXTS`.
    channels : int
        Channels of the input.
    upsampling : str
        ``"bilinear"`` or ``"nearest"``.
    """
    if kind == "u_shaped":
        return [UShapedContext(channels, upsampling)], channels
    if kind == "aspp":
        return [AtrousPyramidContext(channels)], ASPP_WIDTH
    return [PooledPyramidContext(channels, upsampling)] if kind == "pyramid" else [], channels


class RefinementStage(nn.Module):
    """A context module, three residual blocks and a head; reads features and heatmaps, in this order."""

    def __init__(self, context: str, upsampling: str) -> None:
        super().__init__()
        modules, channels = build_context(context, WIDTH + HEATMAPS, upsampling)
        blocks = (RefinementBlock(n, WIDTH, norm=True) for n in (channels, WIDTH, WIDTH))
        self.trunk = nn.Sequential(*modules, *blocks)
        self.heatmaps = head(WIDTH, WIDTH, HEATMAPS)

    def forward(self, x: Tensor) -> Maps:
        """(N, 145, h, w) to maps (N, 17, h, w)."""
        return {"heatmaps": self.heatmaps(self.trunk(x))}


class ContextCpm(nn.Module):
    """The convolutional pose machine with global context.

    Parameters
    ----------
    stages : int
        Number of stages, including the initial one.
    context : str
        Kind of the context modules, one of `CONTEXTS`.
    context_at : str
        Where they are (figure 4 of the paper): one on the input of each refinement stage (``"refinement"``), as in the
        paper's results, whose count of operations that reproduces; or a single one after the feature extractor
        (``"features"``), which the paper found worse, on its 128 channels. There a 1x1 convolution with ReLU reduces
        the output of ``"aspp"`` to 128 channels.
    upsampling : str
        Upsampling in the context modules, ``"bilinear"`` or ``"nearest"``.
    stride : int
        8, or 4 without the backbone's third downsampling.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If an option is out of its bounds.
    """

    def __init__(
        self,
        stages: int = 6,
        context: str = "u_shaped",
        *,
        context_at: str = "refinement",
        upsampling: str = "bilinear",
        stride: int = 8,
    ) -> None:
        super().__init__()
        check_counts(LIMITS, stages=stages)
        check_choice("context", context, CONTEXTS)
        check_choice("context_at", context_at, PLACES)
        self.model = _backbone(stride)
        self.cpm = nn.Sequential(conv(BACKBONE[-1][0], 256, norm=True), conv(256, WIDTH, norm=True))
        # Only where it is used: an empty sequence would be a child without tensors in public files.
        self.context: nn.Sequential | None = None
        if context_at == "features" and context != "none":
            modules, channels = build_context(context, WIDTH, upsampling)
            reduce = [] if channels == WIDTH else [conv(channels, WIDTH, 1)]
            self.context, context = nn.Sequential(*modules, *reduce), "none"
        self.initial_stage = InitialStage()
        self.refinement_stages = nn.ModuleList(RefinementStage(context, upsampling) for _ in range(stages - 1))
        self.distill_points = (
            "cpm" if self.context is None else "context",
            "initial_stage.trunk",
            *(f"refinement_stages.{index}.trunk" for index in range(stages - 1)),
        )
        initialise(self, tuple(stage.heatmaps for stage in (self.initial_stage, *self.refinement_stages)))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the maps of each stage, (N, 17, H / stride, W / stride)."""
        features = self.cpm(self.model(x))
        if self.context is not None:
            features = self.context(features)
        stages = [self.initial_stage(features)]
        for refine in self.refinement_stages:
            stages.append(refine(torch.cat([features, stages[-1]["heatmaps"]], dim=1)))
        return stages


def context_cpm(stages: int = 6, context: str = "u_shaped", context_at: str = "refinement") -> ContextCpm:
    """The network for the Look Into Person data set: 16 joints and a background map."""
    return ContextCpm(stages, context, context_at=context_at)


def context_cpm_mpii(stages: int = 6, context: str = "u_shaped", context_at: str = "refinement") -> ContextCpm:
    """The same for MPII, at stride 4."""
    return ContextCpm(stages, context, context_at=context_at, stride=4)


def context_cpm_coco(stages: int = 5, context: str = "u_shaped", context_at: str = "refinement") -> ContextCpm:
    """The top-down variant of the Open Model Zoo: 17 joints of COCO, no background map, nearest upsampling."""
    return ContextCpm(stages, context, context_at=context_at, upsampling="nearest")


def resize(x: Tensor, like: Tensor, mode: str) -> Tensor:
    """A map resized to another one, ``"bilinear"`` (pixel centres aligned) or ``"nearest"``."""
    size = like.shape[-2:]
    return interpolate(x, size=size, mode=mode, align_corners=False if mode == "bilinear" else None)


def _backbone(stride: int) -> nn.Sequential:
    """MobileNet v1; at stride 4 without its last downsampling."""
    blocks: list[nn.Module] = [conv(3, 32, stride=2, bias=False, norm=True)]
    channels, reached = 32, 2
    for outputs, step, dilation in BACKBONE:
        step = step if reached * step <= stride else 1
        blocks.append(separable(channels, outputs, stride=step, dilation=dilation))
        channels, reached = outputs, reached * step
    return nn.Sequential(*blocks)


def _pose(skeleton: str, *, refine: str = "cubic", **values: Any) -> PoseSpec:
    return PoseSpec(
        skeleton=skeleton,
        decoder="heatmap",
        outputs=("heatmaps",),
        joint_threshold=0.2,
        decoder_options={"refine": refine},
        **values,
    )


register(
    NetworkEntry(
        name="context-cpm",
        build=context_cpm,
        pose=_pose("lip16", height=256, width=256),
        input_size=(256, 256),
        summary="global context CPM for one person, Look Into Person, six stages",
        source="Osokin 2019, public PyTorch release",
    )
)
register(
    NetworkEntry(
        name="context-cpm-mpii",
        build=context_cpm_mpii,
        pose=_pose("mpii16", height=256, width=256, stride=4),
        input_size=(256, 256),
        summary="global context CPM for one person, MPII, maps at stride 4",
        source="Osokin 2019",
    )
)
register(
    NetworkEntry(
        name="context-cpm-coco",
        build=context_cpm_coco,
        pose=_pose(
            "coco17",
            height=384,
            width=288,
            color="rgb",
            mean=(123.675, 116.28, 103.53),
            scale=(1 / 58.395, 1 / 57.12, 1 / 57.375),
            background=False,
            grid="corner",
            flip_shift=True,
            fill=(0.0, 0.0, 0.0),
            refine="quarter",
        ),
        input_size=(384, 288),
        summary="global context CPM, top-down on COCO, five stages (single-human-pose-estimation-0001)",
        source="Open Model Zoo",
    )
)
