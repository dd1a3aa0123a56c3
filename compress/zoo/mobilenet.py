"""MobileNet v2 (Sandler et al. 2018, arXiv:1801.04381) as a backbone at stride 8."""

from __future__ import annotations

from torch import Tensor, nn

from compress.zoo.layers import conv

#: Expansion, output channels, blocks, stride and dilation of each group of blocks: table 2 of the paper up to 96
#: channels. The stride that would lead to 1/16 is removed; dilation 2 preserves the receptive field.
GROUPS = ((1, 16, 1, 1, 1), (6, 24, 2, 2, 1), (6, 32, 3, 2, 1), (6, 64, 4, 1, 2), (6, 96, 3, 1, 2))

#: Expansion, output channels, blocks and stride of each group of blocks of the whole classification network (table 2).
MOBILENET_V2 = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip

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
    activation : module class
        After the expansion and the depthwise convolution.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        *,
        stride: int,
        dilation: int,
        activation: type[nn.Module] = nn.ReLU6,
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        widen = [conv(inputs, wide, 1, bias=False, norm=True, activation=activation)] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            conv(
                wide, wide, stride=stride, dilation=dilation, groups=wide, bias=False, norm=True, activation=activation
            ),
            conv(wide, outputs, 1, bias=False, norm=True, activation=None),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h / stride, w / stride), rounded up."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2(activation: type[nn.Module] = nn.ReLU6) -> nn.Sequential:
    """Images (N, 3, H, W) to features (N, 96, H/8, W/8)."""
    blocks: list[nn.Module] = [conv(3, 32, stride=2, bias=False, norm=True, activation=activation)]
    channels = 32
    for expansion, outputs, count, stride, dilation in GROUPS:
        for index in range(count):
            first = stride if index == 0 else 1
            blocks.append(
                InvertedResidual(channels, outputs, expansion, stride=first, dilation=dilation, activation=activation)
            )
            channels = outputs
    return nn.Sequential(*blocks)
