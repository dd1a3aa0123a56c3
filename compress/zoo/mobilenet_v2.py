"""MobileNet v2 with transposed convolutions, the small baseline of Lite-HRNet's and CBAM-Lite-HRNet's tables.

The whole classification network without its classifier (Sandler et al. 2018, arXiv:1801.04381, table 2), at stride 32
with 1280 channels, and the head of the simple baseline (Xiao et al. 2018, arXiv:1804.06208). Parameter names are those
of its public release in MMPose. Width 1 is the "1x" of the tables.
"""

from __future__ import annotations

from torch import Tensor, nn

from compress.zoo.layers import Maps, initialise
from compress.zoo.lite_blocks import Unit
from compress.zoo.mobilenet import MOBILENET_V2
from compress.zoo.simple_baseline import upsampling_layers
from compress.zoo.topdown import register_top_down

#: Channels after the first and the last convolution.
FIRST, LAST = 32, 1280


class InvertedResidual(nn.Module):
    """1x1 expansion (none at expansion 1), depthwise 3x3, linear 1x1 projection; a residual where shapes agree."""

    def __init__(self, inputs: int, outputs: int, *, expansion: int, stride: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [Unit(inputs, wide, activation=nn.ReLU6)] if expansion > 1 else []
        depthwise = Unit(wide, wide, 3, stride=stride, groups=wide, activation=nn.ReLU6)
        self.conv = nn.Sequential(*widen, depthwise, Unit(wide, outputs, activation=None))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride), rounded up."""
        y: Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """The classification network without its classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = Unit(3, FIRST, 3, stride=2, activation=nn.ReLU6)
        inputs = FIRST
        for index, (expansion, outputs, count, stride) in enumerate(MOBILENET_V2):
            blocks = [
                InvertedResidual(outputs if n else inputs, outputs, expansion=expansion, stride=1 if n else stride)
                for n in range(count)
            ]
            self.add_module(f"layer{index + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.conv2 = Unit(inputs, LAST, activation=nn.ReLU6)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to features (N, 1280, H/32, W/32)."""
        x = self.conv1(x)
        for index in range(len(MOBILENET_V2)):
            x = self.get_submodule(f"layer{index + 1}")(x)
        y: Tensor = self.conv2(x)
        return y


class DeconvolutionHead(nn.Module):
    """Three transposed convolutions and a 1x1 convolution."""

    def __init__(self, inputs: int, joints: int) -> None:
        super().__init__()
        self.deconv_layers, channels = upsampling_layers(inputs)
        self.final_layer = nn.Conv2d(channels, joints, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to heatmaps (N, joints, 8 h, 8 w)."""
        heatmaps: Tensor = self.final_layer(self.deconv_layers(x))
        return heatmaps


class MobileNetV2Baseline(nn.Module):
    """MobileNet v2 and three transposed convolutions.

    Parameters
    ----------
    joints : int
        Number of heatmaps.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.
    """

    distill_points = ("backbone", "keypoint_head.deconv_layers")

    def __init__(self, joints: int) -> None:
        super().__init__()
        self.backbone = MobileNetV2()
        self.keypoint_head = DeconvolutionHead(LAST, joints)
        initialise(self, (nn.Sequential(self.keypoint_head),))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to maps (N, joints, H/4, W/4)."""
        return [{"heatmaps": self.keypoint_head(self.backbone(x))}]


def mobilenet_v2_baseline() -> MobileNetV2Baseline:
    """The baseline with the 17 joints of COCO."""
    return MobileNetV2Baseline(17)


def mobilenet_v2_baseline_mpii() -> MobileNetV2Baseline:
    """The baseline with the 16 joints of MPII."""
    return MobileNetV2Baseline(16)


register_top_down(
    "mobilenet-v2", mobilenet_v2_baseline, 17, "MobileNet v2 1x with transposed convolutions", "Sandler et al. 2018"
)
register_top_down(
    "mobilenet-v2-mpii", mobilenet_v2_baseline_mpii, 16, "MobileNet v2 1x, for MPII", "Sandler et al. 2018"
)
