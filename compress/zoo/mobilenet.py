"""MobileNet v2 (Sandler et al. 2018, arXiv:1801.04381) as a backbone at stride 8."""

from __future__ import annotations

from torch import Tensor, nn

from compress.zoo.layers import conv

#: Expansion, output channels, blocks, stride and dilation of each group of blocks: table 2 of the paper up to 96
#: channels. The stride that would lead to 1/16 is removed; dilation 2 preserves the receptive field.
GROUPS = ((1, 16, 1, 1, 1), (6, 24, 2, 2, 1), (6, 32, 3, 2, 1), (6, 64, 4, 1, 2), (6, 96, 3, 1, 2))

#: Output channels of the backbone.
TRUNK_CHANNELS = GROUPS[-1][1]


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise 3x3, linear 1x1 projection; residual where input and output shapes agree.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    expansion : int
        Expansion factor of the middle; 1 omits the first convolution.
    stride, dilation : int
        Of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, expansion: int, *, stride: int, dilation: int) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [conv(inputs, wide, 1, bias=False, norm=True, activation=nn.ReLU6)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            conv(wide, wide, stride=stride, dilation=dilation, groups=wide, bias=False, norm=True, activation=nn.ReLU6),
            conv(wide, outputs, 1, bias=False, norm=True, activation=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride), rounded up."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2() -> nn.Sequential:
    """Images (N, 3, H, W) to features (N, 96, H/8, W/8)."""
    blocks: list[nn.Module] = [conv(3, 32, stride=2, bias=False, norm=True, activation=nn.ReLU6)]
    channels = 32
    for expansion, outputs, count, stride, dilation in GROUPS:
        for index in range(count):
            first = stride if index == 0 else 1
            blocks.append(InvertedResidual(channels, outputs, expansion, stride=first, dilation=dilation))
            channels = outputs
    return nn.Sequential(*blocks)
