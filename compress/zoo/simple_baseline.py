"""Simple baselines (Xiao et al. 2018, arXiv:1804.06208), and efficient spatial attention on them.

A residual network and three upsampling layers. The baseline upsamples by transposed convolutions, with the parameter
names of its public release. The attention networks (ESA) add attention blocks after stages of the backbone and upsample
bilinearly, with 3x3 convolutions of 256 channels; the paper leaves the number of convolutions open, and these readings
reproduce its parameter counts.
"""

from __future__ import annotations

from torch import Tensor, nn

from compress.zoo.attention import BETWEEN, KINDS, SpatialOptions, build_attention
from compress.zoo.layers import Maps, conv, initialise
from compress.zoo.limits import check_choice, check_counts
from compress.zoo.resnet import STAGE_CHANNELS, ResNet
from compress.zoo.topdown import register_top_down

#: Channels of the head.
WIDTH = 256

#: Upsampling layers from stride 32 to stride 4.
UPSAMPLINGS = 3

#: Bounds of the options.
LIMITS = {"attended": (0, 4), "spatial_width": (1, STAGE_CHANNELS[0])}


class SimpleBaseline(ResNet):
    """A residual network, three transposed convolutions and a 1x1 convolution.

    Parameters
    ----------
    depth : int
        Layers of the backbone: 50, 101 or 152.
    joints : int
        Number of heatmaps.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If the depth is unknown.
    """

    distill_points = ("layer4", "deconv_layers")

    def __init__(self, depth: int, joints: int) -> None:
        super().__init__(depth)
        self.deconv_layers, channels = upsampling_layers(STAGE_CHANNELS[-1])
        self.final_layer = nn.Conv2d(channels, joints, 1)
        initialise(self, (nn.Sequential(self.final_layer),))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to maps (N, joints, H/4, W/4)."""
        return [{"heatmaps": self.final_layer(self.deconv_layers(self.features(x)))}]


class SpatialAttentionBaseline(ResNet):
    """A residual network with attention after its stages, and bilinear upsampling with 3x3 convolutions.

    Parameters
    ----------
    depth : int
        Layers of the backbone: 50, 101 or 152.
    attention : str
        Kind of the attention blocks (`compress.zoo.attention`).
    attended : int
        Number of backbone stages, from the first on, that have one.
    double : bool
        Two convolutions after each upsampling, instead of one before all and one after each.
    spatial : SpatialOptions, optional
        Reading of the blocks' spatial gates.

    Attributes
    ----------
    distill_points : tuple of str
        Names of the modules whose outputs are the features of each stage.

    Raises
    ------
    NetworkError
        If an option is out of its bounds.
    """

    distill_points = ("layer4", "upsampling")

    def __init__(
        self, depth: int, attention: str, *, attended: int, double: bool, spatial: SpatialOptions | None = None
    ) -> None:
        super().__init__(depth)
        check_choice("attention", attention, KINDS)
        check_counts(LIMITS, attended=attended)
        self.attention = nn.ModuleList(
            build_attention(attention, c, spatial=spatial) for c in STAGE_CHANNELS[:attended]
        )
        layers: list[nn.Module] = []
        inputs = STAGE_CHANNELS[-1]
        if not double:
            layers.append(_conv(inputs))
            inputs = WIDTH
        for _ in range(UPSAMPLINGS):
            layers += [nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False), _conv(inputs)]
            inputs = WIDTH
            if double:
                layers.append(_conv(inputs))
        self.upsampling = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(WIDTH, 17, 1)
        initialise(self, (nn.Sequential(self.final_layer),))

    def forward(self, x: Tensor) -> list[Maps]:
        """Images (N, 3, H, W) to maps (N, 17, H/4, W/4)."""
        return [{"heatmaps": self.final_layer(self.upsampling(self.features(x, self._attend)))}]

    def _attend(self, index: int, x: Tensor) -> Tensor:
        y: Tensor = self.attention[index](x) if index < len(self.attention) else x
        return y


def upsampling_layers(inputs: int) -> tuple[nn.Sequential, int]:
    """Transposed 4x4 convolutions of 256 channels from stride 32 to stride 4, and their output channels."""
    layers: list[nn.Module] = []
    for _ in range(UPSAMPLINGS):
        layers += [nn.ConvTranspose2d(inputs, WIDTH, 4, 2, 1, bias=False), nn.BatchNorm2d(WIDTH), nn.ReLU()]
        inputs = WIDTH
    return nn.Sequential(*layers), WIDTH


def simple_baseline(depth: int = 50) -> SimpleBaseline:
    """The baseline with the 17 joints of COCO."""
    return SimpleBaseline(depth, 17)


def simple_baseline_mpii(depth: int = 50) -> SimpleBaseline:
    """The baseline with the 16 joints of MPII."""
    return SimpleBaseline(depth, 16)


def esa(
    depth: int = 50, attention: str = "esa_seq", between: str = "none", spatial_width: int = 1
) -> SpatialAttentionBaseline:
    """Efficient spatial attention after all four stages: 3x3 to 256 channels, then three upsamplings with a 3x3.

    ``between`` and ``spatial_width`` are the fields of `compress.zoo.attention.SpatialOptions`.
    """
    check_choice("between", between, BETWEEN)
    check_counts(LIMITS, spatial_width=spatial_width)
    spatial = SpatialOptions(between, spatial_width)
    return SpatialAttentionBaseline(depth, attention, attended=len(STAGE_CHANNELS), double=False, spatial=spatial)


def esa_prev(depth: int = 50, attention: str = "esa_7", attended: int = 1) -> SpatialAttentionBaseline:
    """The authors' earlier network: attention after one or two stages, three upsamplings, each with two 3x3."""
    return SpatialAttentionBaseline(depth, attention, attended=attended, double=True)


def _conv(inputs: int) -> nn.Sequential:
    return conv(inputs, WIDTH, bias=False, norm=True)


register_top_down(
    "simple-baseline", simple_baseline, 17, "simple baseline, ResNet, top-down on COCO", "Xiao et al. 2018"
)
register_top_down(
    "simple-baseline-mpii", simple_baseline_mpii, 16, "simple baseline, ResNet, for MPII", "Xiao et al. 2018"
)
register_top_down("esa", esa, 17, "efficient spatial attention on a ResNet, top-down on COCO", "ESA, spatial attention")
register_top_down(
    "esa-prev", esa_prev, 17, "the earlier network of ESA's authors", "ESA, fine-tuning attention modules"
)
