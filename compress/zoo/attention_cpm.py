"""An attention-based convolutional pose machine for several people.

A MobileNet v2 at stride 8, then six stages. A stage has three blocks of two convolutions, whose outputs are
concatenated and weighted by attention (a spatial gate, then squeeze and excitation), and two branches in sequence:
part-affinity fields first, then heatmaps from the features and the fields. There is no batch normalisation in the
stages.

The paper uses "as activation function LeakyRelu instead of Relu" (section III.C.2). Here all activations after the
MobileNet are leaky ReLUs; those of the MobileNet itself are its own, ReLU6, so that its published weights fit, or leaky
ReLUs with the option ``trunk_activation``. Neither has parameters, so no count tells which the authors have.

In the paper the stages are factorized by Tucker-2 at about a third of the channels. Here a dense network is factorized
by the toolkit, or, with the option ``ratio``, built factorized: both have the same tensors by name and shape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.pose.spec import PoseSpec
from compress.zoo.attention import KINDS, MAX_REDUCTION, ChannelGate, SpatialGate, build_attention
from compress.zoo.layers import Maps, conv, initialise
from compress.zoo.limits import check_choice, check_counts
from compress.zoo.mobilenet import TRUNK_CHANNELS, mobilenet_v2
from compress.zoo.registry import NetworkEntry, register

#: 18 joints; x and y of the fields of 19 limbs.
JOINTS, PAFS = 18, 38

#: Blocks per stage.
BLOCKS = 3

#: Bounds of the options.
LIMITS = {"stages": (1, 16), "width": (8, 1024), "reduction": (1, MAX_REDUCTION)}

#: Initial scores of the gates, whose sigmoid is 0.88.
OPEN = 2.0

#: Kernel sizes of the branches' hidden layers.
HEAD_SIZES = (1, 3)

#: Activations of the MobileNet.
TRUNK_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu6": nn.ReLU6, "leaky_relu": nn.LeakyReLU}


@dataclass(frozen=True)
class StageOptions:
    """How stages are built.

    Attributes
    ----------
    width : int
        Channels of a convolution; blocks output twice as many.
    attention : str
        Kind of the attention blocks (`compress.zoo.attention`).
    reduction : int
        Their reduction ratio.
    head_size : int
        Kernel size of the two hidden layers of each branch, 3 or 1.
    ratio : str or None
        A share such as ``"1/3"``: every 3x3 convolution of the stages is built factorized.

    Raises
    ------
    NetworkError
        If an option is out of its bounds.
    """

    width: int = 128
    attention: str = "se_spatial"
    reduction: int = 16
    head_size: int = 3
    ratio: str | None = None

    def __post_init__(self) -> None:
        check_counts(LIMITS, width=self.width, reduction=self.reduction)
        check_choice("attention", self.attention, KINDS)
        check_choice("head_size", self.head_size, HEAD_SIZES)
        if self.ratio is not None:
            _read_ratio(self.ratio)

    @property
    def share(self) -> Fraction | None:
        """The ratio as a number."""
        return None if self.ratio is None else _read_ratio(self.ratio)


class FactorizedConv(nn.Module):
    """A 3x3 convolution as 1x1, 3x3, 1x1, with the names and shapes of the form ``tucker2``.

    Kim et al. (2016, arXiv:1511.06530), section 3.1, equations 5 to 7.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    ratio : Fraction
        Share of the input and output channels that the core keeps, halves rounded up.
    """

    def __init__(self, inputs: int, outputs: int, ratio: Fraction) -> None:
        super().__init__()
        # A rank can't exceed 9 times the other: the unfolded 3x3 core has no more independent rows.
        first, last = _rank(inputs, ratio), _rank(outputs, ratio)
        first = min(first, last * 9)
        last = min(last, first * 9)
        self.reduce = nn.Conv2d(inputs, first, 1, bias=False)
        self.core = nn.Conv2d(first, last, 3, padding=1, bias=False)
        self.expand = nn.Conv2d(last, outputs, 1)

    def initialise(self) -> None:
        """Variance-preserving weights: no activation follows the first two convolutions."""
        for layer in (self.reduce, self.core):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, outputs, h, w)."""
        y: Tensor = self.expand(self.core(self.reduce(x)))
        return y


class AttentionBlock(nn.Module):
    """Two convolutions, and attention on the concatenation of their outputs."""

    def __init__(self, inputs: int, options: StageOptions) -> None:
        super().__init__()
        self.first = _conv(inputs, options.width, options.share)
        self.second = _conv(options.width, options.width, options.share)
        self.attention = build_attention(options.attention, 2 * options.width, options.reduction)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, h, w) to (N, 2 width, h, w)."""
        first = self.first(x)
        y: Tensor = self.attention(torch.cat([first, self.second(first)], dim=1))
        return y


class Stage(nn.Module):
    """Three attention blocks, the branch of the fields, and that of the heatmaps, which also reads the fields."""

    def __init__(self, inputs: int, heatmaps: int, options: StageOptions) -> None:
        super().__init__()
        features = 2 * options.width
        self.trunk = nn.Sequential(*(AttentionBlock(features if i else inputs, options) for i in range(BLOCKS)))
        self.pafs = _branch(features, PAFS, options)
        self.heatmaps = _branch(features + PAFS, heatmaps, options)

    def forward(self, x: Tensor) -> Maps:
        """(N, inputs, h, w) to maps (N, 18 or 19, h, w) and (N, 38, h, w)."""
        features = self.trunk(x)
        pafs = self.pafs(features)
        return {"heatmaps": self.heatmaps(torch.cat([features, pafs], dim=1)), "pafs": pafs}


class AttentionCpm(nn.Module):
    """The attention-based convolutional pose machine.

    The paper leaves open where the backbone is cut, the width of the 3x3 convolutions (128 channels here), and that
    attention acts on the concatenation.

    Parameters
    ----------
    stages : int
        Number of stages, each of which predicts maps.
    options : StageOptions
        How they are built.
    background : bool
        Whether a background map follows the joints' heatmaps; the paper has none.
    trunk_activation : str
        Activation of the MobileNet, one of `TRUNK_ACTIVATIONS`.

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
        options: StageOptions | None = None,
        *,
        background: bool = False,
        trunk_activation: str = "relu6",
    ) -> None:
        super().__init__()
        options = options or StageOptions()
        check_counts(LIMITS, stages=stages)
        check_choice("trunk_activation", trunk_activation, tuple(TRUNK_ACTIVATIONS))
        heatmaps, width = JOINTS + background, options.width
        self.backbone = mobilenet_v2(TRUNK_ACTIVATIONS[trunk_activation])
        self.reduce = conv(TRUNK_CHANNELS, width, 1, bias=False, norm=True, activation=nn.LeakyReLU)
        built = [Stage(width + (heatmaps + PAFS if index else 0), heatmaps, options) for index in range(stages)]
        self.stages = nn.ModuleList(built)
        self.distill_points = ("reduce", *(f"stages.{index}.trunk" for index in range(stages)))
        initialise(self, tuple(head for stage in built for head in (stage.heatmaps, stage.pafs)))
        for part in self.modules():
            if isinstance(part, FactorizedConv):
                part.initialise()
            elif isinstance(part, ChannelGate | SpatialGate):
                # Gates of 1/2 would scale features by 1/64 after three blocks, and no normalisation corrects that.
                last = part.expand if isinstance(part, ChannelGate) else part.score
                if last.bias is not None:
                    nn.init.constant_(last.bias, OPEN)

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to the maps of each stage, (N, 18 or 19, H/8, W/8) and (N, 38, H/8, W/8)."""
        features = self.reduce(self.backbone(x))
        maps = [self.stages[0](features)]
        for stage in self.stages[1:]:
            maps.append(stage(torch.cat([features, maps[-1]["heatmaps"], maps[-1]["pafs"]], dim=1)))
        return maps


def _builder(*, background: bool) -> Callable[..., AttentionCpm]:
    def build(
        stages: int = 6,
        width: int = 128,
        attention: str = "se_spatial",
        reduction: int = 16,
        head_size: int = 3,
        ratio: str | None = None,
        trunk_activation: str = "relu6",
    ) -> AttentionCpm:
        options = StageOptions(width, attention, reduction, head_size, ratio)
        return AttentionCpm(stages, options, background=background, trunk_activation=trunk_activation)

    return build


#: The paper's network, without a background map.
attention_cpm = _builder(background=False)

#: The same with a background map, so that it can be distilled from networks that have one.
attention_cpm_background = _builder(background=True)


def _conv(inputs: int, outputs: int, ratio: Fraction | None, size: int = 3) -> nn.Sequential:
    if ratio is None or size == 1:
        return conv(inputs, outputs, size, activation=nn.LeakyReLU)
    return nn.Sequential(FactorizedConv(inputs, outputs, ratio), nn.LeakyReLU())


def _branch(inputs: int, maps: int, options: StageOptions) -> nn.Sequential:
    width, size, share = options.width, options.head_size, options.share
    return nn.Sequential(
        _conv(inputs, width, share, size), _conv(width, width, share, size), conv(width, maps, 1, activation=None)
    )


def _rank(channels: int, ratio: Fraction) -> int:
    return max(1, math.floor(ratio * channels + Fraction(1, 2)))


def _read_ratio(text: object) -> Fraction:
    """A share of channels, given as text so that a third is exact in every file."""
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,4}/0*[1-9][0-9]{0,3}|[01]?\.[0-9]{1,9}|1", text):
        ratio = Fraction(text)
        if 0 < ratio <= 1:
            return ratio
    raise NetworkError(
        "the network's option ratio must be a share of channels, above 0 and at most 1",
        found=text,
        hint='Write it as text such as "1/3"',
    )


register(
    NetworkEntry(
        name="attention-cpm",
        build=attention_cpm,
        pose=PoseSpec(height=368, background=False),
        input_size=(368, 656),
        summary="attention CPM, MobileNet v2 at stride 8, six stages; built factorized with ratio",
        source="attention and tensor-decomposed CPM",
    )
)
register(
    NetworkEntry(
        name="attention-cpm-background",
        build=attention_cpm_background,
        pose=PoseSpec(height=368),
        input_size=(368, 656),
        summary="attention CPM with a background map",
        source="attention and tensor-decomposed CPM",
    )
)
