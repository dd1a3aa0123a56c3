"""Lightweight OpenPose (Osokin, "Real-time 2D Multi-Person Pose Estimation on CPU: Lightweight OpenPose", 2018).

A MobileNet v1 without its fourth downsampling extracts features at stride 8; an initial stage predicts heatmaps and
part-affinity fields (PAFs) from them, and refinement stages predict both again from features and maps. There are three
networks: the public PyTorch release, the Open Model Zoo release, and the small default of this project. Parameter names
are those of the public releases, so that their files load without renaming.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.pose.spec import PoseSpec
from compress.zoo.layers import Maps, RefinementBlock, conv, head, initialise, separable
from compress.zoo.registry import NetworkEntry, register

#: 18 joints and a background map; x and y of the fields of 19 limbs.
HEATMAPS, PAFS = 19, 38

#: Output channels, stride and dilation of the MobileNet blocks after the first convolution (3 to 32, stride 2).
BACKBONE = (
    (64, 1, 1), (128, 2, 1), (128, 1, 1), (256, 2, 1), (256, 1, 1), (512, 1, 1), (512, 1, 2),
    (512, 1, 1), (512, 1, 1), (512, 1, 1), (512, 1, 1),
)  # fmt: skip

#: Bounds of the options; a file that exceeds them is refused before anything of that size is built.
LIMITS = {
    "refinements": (0, 16), "width": (8, 1024), "backbone_scale": (0.125, 4.0), "blocks": (1, 16),
    "head_width": (8, 4096),
}  # fmt: skip


class ContextFeatures(nn.Module):
    """Reduction of the backbone's channels: ``conv(a + trunk(a))`` with ``a = align(x)``."""

    def __init__(self, inputs: int, width: int, *, normalize: bool) -> None:
        super().__init__()
        self.align = conv(inputs, width, 1, norm=normalize)
        self.trunk = nn.Sequential(*(separable(width, width) if normalize else _separable_elu(width) for _ in range(3)))
        self.conv = conv(width, width, norm=normalize)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, width, h, w)."""
        aligned = self.align(x)
        return self.conv(aligned + self.trunk(aligned))


class InitialStage(nn.Module):
    """Three 3x3 convolutions and two heads."""

    def __init__(self, width: int, hidden: int, *, normalize: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(*(conv(width, width, norm=normalize) for _ in range(3)))
        self.heatmaps = head(width, hidden, HEATMAPS, norm=normalize)
        self.pafs = head(width, hidden, PAFS, norm=normalize)

    def forward(self, x: Tensor) -> Maps:
        """(N, width, h, w) to maps (N, 19, h, w) and (N, 38, h, w)."""
        features = self.trunk(x)
        return {"heatmaps": self.heatmaps(features), "pafs": self.pafs(features)}


class RefinementStage(nn.Module):
    """Residual blocks and two heads; reads features, heatmaps and PAFs, in this order."""

    def __init__(self, width: int, blocks: int, *, normalize: bool) -> None:
        super().__init__()
        inputs = (width + HEATMAPS + PAFS, *(width for _ in range(blocks - 1)))
        self.trunk = nn.Sequential(*(RefinementBlock(n, width, norm=True, norm_initial=normalize) for n in inputs))
        self.heatmaps = head(width, width, HEATMAPS, norm=normalize)
        self.pafs = head(width, width, PAFS, norm=normalize)

    def forward(self, x: Tensor) -> Maps:
        """(N, width + 57, h, w) to maps (N, 19, h, w) and (N, 38, h, w)."""
        features = self.trunk(x)
        return {"heatmaps": self.heatmaps(features), "pafs": self.pafs(features)}


class LightweightOpenPose(nn.Module):
    """Lightweight OpenPose in the layout of its public PyTorch release.

    Parameters
    ----------
    refinements : int
        Refinement stages after the initial one.
    width : int
        Channels of the stages.
    backbone_scale : float
        Factor of the backbone's channels, which are rounded to multiples of 8.
    blocks : int
        Residual blocks per refinement stage.
    head_width : int
        Hidden channels of the initial stage's heads.
    normalize : bool
        Batch normalisation after every convolution except the heads' last; the public release has it only in the
        backbone and in the 3x3 convolutions of the refinement. Training from scratch needs it.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If an option is not a number within its bounds.
    """

    def __init__(
        self,
        refinements: int = 1,
        *,
        width: int = 128,
        backbone_scale: float = 1.0,
        blocks: int = 5,
        head_width: int = 512,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        _check_options(
            refinements=refinements, width=width, backbone_scale=backbone_scale, blocks=blocks, head_width=head_width
        )
        if not isinstance(normalize, bool):
            raise NetworkError("the network's option normalize must be true or false", found=normalize)
        channels = [8 * max(1, round(c * backbone_scale / 8)) for c in (32, *(c for c, _, _ in BACKBONE))]
        self.model = nn.Sequential(
            conv(3, channels[0], stride=2, bias=False, norm=True),
            *(
                separable(inputs, outputs, stride=stride, dilation=dilation)
                for inputs, outputs, (_, stride, dilation) in zip(channels[:-1], channels[1:], BACKBONE, strict=True)
            ),
        )
        self.cpm = ContextFeatures(channels[-1], width, normalize=normalize)
        self.initial_stage = InitialStage(width, head_width, normalize=normalize)
        self.refinement_stages = nn.ModuleList(
            RefinementStage(width, blocks, normalize=normalize) for _ in range(refinements)
        )
        self.distill_points = (
            "cpm",
            "initial_stage.trunk",
            *(f"refinement_stages.{index}.trunk" for index in range(refinements)),
        )
        stages = [self.initial_stage, *self.refinement_stages]
        initialise(self, tuple(h for stage in stages for h in (stage.heatmaps, stage.pafs)))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the maps of each stage, (N, 19, H/8, W/8) and (N, 38, H/8, W/8)."""
        features = self.cpm(self.model(x))
        stages = [self.initial_stage(features)]
        for refine in self.refinement_stages:
            stages.append(refine(torch.cat([features, stages[-1]["heatmaps"], stages[-1]["pafs"]], dim=1)))
        return stages


class HumanPoseEstimation0001(nn.Module):
    """Lightweight OpenPose as the Open Model Zoo releases it, ``human-pose-estimation-0001``.

    Batch normalisation is folded into the convolutions, the context features have one more 1x1 convolution and use ELU,
    and the refinement stage reads PAFs, heatmaps and features, in this order.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.
    """

    distill_points = ("cpm_conv", "init_trunk", "ref_trunk")

    def __init__(self) -> None:
        super().__init__()
        width, channels = 128, [32, *(c for c, _, _ in BACKBONE)]
        self.model = nn.Sequential(
            conv(3, 32, stride=2),
            *(
                nn.Sequential(
                    conv(inputs, inputs, stride=stride, dilation=dilation, groups=inputs), conv(inputs, outputs, 1)
                )
                for inputs, outputs, (_, stride, dilation) in zip(channels[:-1], channels[1:], BACKBONE, strict=True)
            ),
        )
        self.align = conv(512, width, 1, activation=nn.ELU)
        self.trunk = nn.Sequential(
            conv(width, width, 1, activation=nn.ELU),
            *(
                nn.Sequential(
                    conv(width, width, groups=width, activation=nn.ELU), conv(width, width, 1, activation=nn.ELU)
                )
                for _ in range(3)
            ),
        )
        self.cpm_conv = conv(width, width)
        self.init_trunk = nn.Sequential(*(conv(width, width) for _ in range(3)))
        self.init_pafs = head(width, 512, PAFS)
        self.init_heat = head(width, 512, HEATMAPS)
        self.ref_trunk = nn.Sequential(
            *(RefinementBlock(n, width, norm=False) for n in (width + HEATMAPS + PAFS, *(width,) * 4))
        )
        self.ref_heat = head(width, width, HEATMAPS)
        self.ref_pafs = head(width, width, PAFS)
        initialise(self, (self.init_heat, self.init_pafs, self.ref_heat, self.ref_pafs))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the maps of two stages, (N, 19, H/8, W/8) and (N, 38, H/8, W/8)."""
        aligned = self.align(self.model(x))
        features = self.cpm_conv(aligned + self.trunk(aligned))
        initial = self.init_trunk(features)
        first = {"heatmaps": self.init_heat(initial), "pafs": self.init_pafs(initial)}
        refined = self.ref_trunk(torch.cat([first["pafs"], first["heatmaps"], features], dim=1))
        return [first, {"heatmaps": self.ref_heat(refined), "pafs": self.ref_pafs(refined)}]


def lightweight_openpose(refinements: int = 1) -> LightweightOpenPose:
    """The public network with any number of refinement stages."""
    return LightweightOpenPose(refinements)


def default_network(
    refinements: int = 1,
    width: int = 64,
    backbone_scale: float = 0.5,
    blocks: int = 3,
    head_width: int = 128,
    normalize: bool = True,
) -> LightweightOpenPose:
    """The small network whose trained weights ship with the project; the defaults are the options of those weights."""
    return LightweightOpenPose(
        refinements,
        width=width,
        backbone_scale=backbone_scale,
        blocks=blocks,
        head_width=head_width,
        normalize=normalize,
    )


def _separable_elu(width: int) -> nn.Sequential:
    """The block of the public release's context features: depthwise 3x3 and 1x1, bias-free, each with ELU."""
    depthwise = conv(width, width, groups=width, bias=False, activation=nn.ELU)
    return nn.Sequential(*depthwise, *conv(width, width, 1, bias=False, activation=nn.ELU))


def _check_options(**options: float) -> None:
    for name, value in options.items():
        low, high = LIMITS[name]
        whole = name != "backbone_scale"
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if not number or not low <= value <= high:
            raise NetworkError(
                f"the network's option {name} must be {'an integer' if whole else 'a number'} from {low} to {high}",
                found=value,
            )


def _shipped(name: str) -> Path | None:
    """The checkpoint of that name that ships with the package, if there is one."""
    folder = Path(__file__).parent / "weights"
    return next((path for path in (folder / f"{name}.pt", folder / f"{name}.safetensors") if path.is_file()), None)


register(
    NetworkEntry(
        name="default",
        build=default_network,
        pose=PoseSpec(height=256),
        input_size=(256, 256),
        summary="small lightweight OpenPose with batch normalisation, trained on synthetic (rendered) people",
        source="this project",
        weights=_shipped("default"),
    )
)
register(
    NetworkEntry(
        name="lightweight-openpose",
        build=lightweight_openpose,
        pose=PoseSpec(height=368),
        input_size=(368, 368),
        summary="lightweight OpenPose, MobileNet v1 at stride 8",
        source="Osokin 2018, public PyTorch release",
    )
)
register(
    NetworkEntry(
        name="human-pose-estimation-0001",
        build=HumanPoseEstimation0001,
        pose=PoseSpec(height=368),
        input_size=(256, 456),
        summary="lightweight OpenPose of the Open Model Zoo, batch normalisation folded",
        source="Open Model Zoo",
    )
)
