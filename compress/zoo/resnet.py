"""Residual networks (He et al. 2016, arXiv:1512.03385) as backbones, and their residual blocks.

Parameter names are those of torchvision and of the public pose releases. The stride of a bottleneck is in its 3x3
convolution. Activations are not in place, so that hooks read the unchanged output of a layer.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from compress.zoo.limits import check_choice

#: Bottlenecks of the four stages, by depth.
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

#: Channels after each of the four stages.
STAGE_CHANNELS = (256, 512, 1024, 2048)

#: Ratio of a bottleneck's output channels to its inner channels.
EXPANSION = 4


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch normalisation and a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same shape."""
        y: Tensor = self.relu(x + self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))))
        return y


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch normalisation and a residual connection, projected where shapes differ.

    Parameters
    ----------
    inputs, width : int
        Channels of the input and of the inner layers; the output has four times as many as the latter.
    stride : int
        Stride of the 3x3 convolution.
    """

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = width * EXPANSION
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, 4 width, h / stride, w / stride)."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y = self.relu(y + (x if self.downsample is None else self.downsample(x)))
        return y


def bottlenecks(inputs: int, width: int, count: int, stride: int = 1) -> nn.Sequential:
    """A sequence of bottlenecks; the first has the stride."""
    return nn.Sequential(
        *(Bottleneck(width * EXPANSION if index else inputs, width, 1 if index else stride) for index in range(count))
    )


class ResNet(nn.Module):
    """A residual network without its classifier, the base class of networks that add a head.

    Parameters
    ----------
    depth : int
        Number of layers, one of `DEPTHS`.

    Raises
    ------
    NetworkError
        If the depth is unknown.
    """

    def __init__(self, depth: int) -> None:
        super().__init__()
        check_choice("depth", depth, tuple(DEPTHS))
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs = 64
        for index, (outputs, count) in enumerate(zip(STAGE_CHANNELS, DEPTHS[depth], strict=True)):
            stage = bottlenecks(inputs, outputs // EXPANSION, count, 2 if index else 1)
            self.add_module(f"layer{index + 1}", stage)
            inputs = outputs

    def features(self, x: Tensor, after: Callable[[int, Tensor], Tensor] | None = None) -> Tensor:
        """Images (N, 3, H, W) to features (N, 2048, H/32, W/32).

        Parameters
        ----------
        x : Tensor
            Images.
        after : callable, optional
            Applied to the features after each stage, with the stage's number from 0.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(len(STAGE_CHANNELS)):
            x = self.get_submodule(f"layer{index + 1}")(x)
            if after is not None:
                x = after(index, x)
        return x
