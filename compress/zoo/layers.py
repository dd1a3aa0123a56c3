"""Blocks shared by several networks.

Activations are not in place: hooks that read the output of a layer (statistics, distillation) must see that output
unchanged by the next layer.
"""

from __future__ import annotations

from typing import TypedDict, Unpack

from torch import Tensor, nn

#: Outputs of a stage by name, such as ``heatmaps`` (N, K, h, w).
Maps = dict[str, Tensor]


class ConvSettings(TypedDict, total=False):
    """Arguments of `torch.nn.Conv2d` beside channels, size and padding."""

    stride: int
    dilation: int
    groups: int
    bias: bool


def conv(
    inputs: int,
    outputs: int,
    size: int = 3,
    *,
    norm: bool = False,
    activation: type[nn.Module] | None = nn.ReLU,
    **settings: Unpack[ConvSettings],
) -> nn.Sequential:
    """A convolution with size-preserving padding, then optional batch normalisation and activation.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    size : int
        Kernel size; the padding is ``dilation * (size - 1) / 2``, so that h rows become ``ceil(h / stride)``.
    norm : bool
        Whether batch normalisation follows.
    activation : module class or None
        The activation; None for a linear output.
    **settings
        Stride, dilation, groups and bias of the convolution.

    Returns
    -------
    Sequential
        The convolution is child 0; the normalisation, if any, child 1.
    """
    padding = settings.get("dilation", 1) * (size - 1) // 2
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, size, padding=padding, **settings)]
    if norm:
        layers.append(nn.BatchNorm2d(outputs))
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


def separable(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """A MobileNet block: depthwise 3x3, then 1x1, each without bias and with batch normalisation and ReLU.

    One flat sequence (children 0, 1, 2 and 3, 4, 5).
    """
    depthwise = conv(inputs, inputs, stride=stride, dilation=dilation, groups=inputs, bias=False, norm=True)
    return nn.Sequential(*depthwise, *conv(inputs, outputs, 1, bias=False, norm=True))


class RefinementBlock(nn.Module):
    """A 1x1 convolution followed by a residual pair of 3x3 convolutions: ``i + trunk(i)``.

    The second 3x3 convolution has dilation 2.

    Parameters
    ----------
    inputs, width : int
        Channels of the input, and from the 1x1 convolution on.
    norm : bool
        Batch normalisation after the 3x3 convolutions.
    norm_initial : bool
        Batch normalisation after the 1x1 convolution.
    """

    def __init__(self, inputs: int, width: int, *, norm: bool, norm_initial: bool = False) -> None:
        super().__init__()
        self.initial = conv(inputs, width, 1, norm=norm_initial)
        self.trunk = nn.Sequential(conv(width, width, norm=norm), conv(width, width, dilation=2, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, width, h, w)."""
        initial = self.initial(x)
        return initial + self.trunk(initial)


def head(inputs: int, hidden: int, outputs: int, *, norm: bool = False) -> nn.Sequential:
    """Two 1x1 convolutions from features to maps, the last one linear."""
    return nn.Sequential(conv(inputs, hidden, 1, norm=norm), conv(hidden, outputs, 1, activation=None))


def initialise(module: nn.Module, heads: tuple[nn.Sequential, ...]) -> None:
    """Initialise a network for training.

    Kaiming-normal convolutions preserve the variance of features in networks without normalisation; the last layer of
    each head starts near zero, because the target maps are mostly empty.

    Parameters
    ----------
    module : Module
        The network, changed in place.
    heads : tuple of Sequential
        Its heads as `head` builds them.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    for sequence in heads:
        last = [layer for layer in sequence.modules() if isinstance(layer, nn.Conv2d)][-1]
        nn.init.normal_(last.weight, std=0.01)
