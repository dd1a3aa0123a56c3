"""Attention blocks: gates that weight the channels and positions of a feature map.

All kinds come from one factory and are interchangeable: they map (N, C, h, w) to the same shape. Sources: squeeze and
excitation (Hu et al. 2018, arXiv:1709.01507), with the activation and the spatial gate
of the attention CPM; CBAM (Woo et al. 2018, arXiv:1807.06521); efficient spatial attention on SimpleBaseline, in its
three forms; coordinate attention (Hou et al. 2021, arXiv:2103.02907).

Pooling is a mean or maximum over axes, never adaptive, so that exported networks run at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.errors import NetworkError

#: The kinds that `build_attention` knows.
KINDS = ("none", "se", "se_spatial", "cbam", "esa_seq", "esa_par", "esa_7", "coord")

#: Bounds of a block; a file that exceeds them is refused before anything of that size is built.
MAX_CHANNELS, MAX_REDUCTION = 8192, 1024

#: What lies between or after the two 3x3 convolutions of an ESA gate.
BETWEEN = ("none", "relu")


@dataclass(frozen=True)
class SpatialOptions:
    """Readings of the spatial gates of efficient spatial attention (``esa_*``); other kinds have none.

    Attributes
    ----------
    between : str
        ``"relu"`` puts a ReLU between the two 3x3 convolutions in sequence, or after each of the two in parallel. The
        paper names no activation: ``"none"``.
    width : int
        Channels of the convolutions, a divisor of the block's channels: the mean of as many groups of channels goes in,
        and the mean of the maps that come out is the score. 1 in the paper's text, which pools all channels to one map.

    Raises
    ------
    NetworkError
        If a value is unknown or not positive.
    """

    between: str = "none"
    width: int = 1

    def __post_init__(self) -> None:
        if self.between not in BETWEEN:
            raise NetworkError(
                "unknown activation of a spatial gate", found=self.between, hint=f"Known: {', '.join(BETWEEN)}"
            )
        if type(self.width) is not int or not 1 <= self.width <= MAX_CHANNELS:
            raise NetworkError(f"a spatial gate's width must be an integer from 1 to {MAX_CHANNELS}", found=self.width)


class Gate(nn.Module):
    """Multiplicative weights of a feature map.

    A gate with a resting value starts there and is learnt from there: it computes ``rest + blend (gate - rest)`` with
    a learnt scalar ``blend`` that is initialised to 0; at 1 it is the gate of the paper. The scalar multiplies the
    small gate, not the feature map, so that its cost is negligible.

    Parameters
    ----------
    rest : float or None
        Value of the gate before training: 1 passes everything, 0 nothing. None for the plain gate.
    """

    blend: nn.Parameter | None

    def __init__(self, rest: float | None) -> None:
        super().__init__()
        self.rest = rest or 0.0
        self.register_parameter("blend", None if rest is None else nn.Parameter(torch.zeros(())))

    def activate(self, scores: Tensor) -> Tensor:
        """The gate of scores: their sigmoid, blended with the resting value if there is one."""
        gate = scores.sigmoid()
        return gate if self.blend is None else self.rest + self.blend * (gate - self.rest)

    def same_function(self, other: Gate) -> bool:
        """Whether another gate with the same weights computes the same scores."""
        return type(other) is type(self)


class ChannelGate(Gate):
    """One weight per channel, from its mean (and maximum) through two layers with a bottleneck.

    Parameters
    ----------
    channels, middle : int
        Channels of the feature map and of the bottleneck.
    rest : float or None
        As of `Gate`.
    bias, maximum : bool
        Whether the layers have biases, and whether the maxima go through them too; the results are added.
    activation : module class
        Activation between the layers.
    """

    def __init__(
        self,
        channels: int,
        middle: int,
        rest: float | None,
        *,
        bias: bool = True,
        maximum: bool = False,
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__(rest)
        self.reduce = nn.Conv2d(channels, middle, 1, bias=bias)
        self.activation = activation()
        self.expand = nn.Conv2d(middle, channels, 1, bias=bias)
        self.maximum = maximum

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, C, 1, 1)."""
        scores = self._scores(x.mean((2, 3), keepdim=True))
        if self.maximum:
            scores = scores + self._scores(x.amax((2, 3), keepdim=True))
        return self.activate(scores)

    def _scores(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.expand(self.activation(self.reduce(pooled)))
        return scores


class SpatialGate(Gate):
    """One weight per position, by a 1x1 convolution over all channels."""

    def __init__(self, channels: int, rest: float | None) -> None:
        super().__init__(rest)
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        return self.activate(self.score(x))


class PooledSpatialGate(Gate):
    """One weight per position, by a 7x7 convolution of the maximum and mean over the channels (CBAM)."""

    def __init__(self, rest: float | None) -> None:
        super().__init__(rest)
        self.score = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return self.activate(self.norm(self.score(pooled)))


class MeanSpatialGate(Gate):
    """One weight per position, by bias-free convolutions of the mean over the channels (ESA).

    Without an activation the two 3x3 convolutions collapse: in parallel they are one 3x3 convolution with the sum of
    the kernels, and in sequence one of 5x5 with their convolution, except in the outermost cells, where the map between
    them is padded with zeros.

    Parameters
    ----------
    form : str
        ``"chain"``: two 3x3 convolutions in sequence; ``"sum"``: two in parallel, added; ``"wide"``: one of 7x7.
    rest : float or None
        As of `Gate`.
    options : SpatialOptions, optional
        Activation and width.
    """

    def __init__(self, form: str, rest: float | None, options: SpatialOptions | None = None) -> None:
        super().__init__(rest)
        self.options = options or SpatialOptions()
        count, size, width = *((1, 7) if form == "wide" else (2, 3)), self.options.width
        # The form is part of the tensor names, so that weights of one form are never loaded into another.
        self.form = form
        layers = (nn.Conv2d(width, width, size, padding=size // 2, bias=False) for _ in range(count))
        setattr(self, form, nn.ModuleList(layers))
        self.between = nn.ReLU() if self.options.between == "relu" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        width = self.options.width
        maps = x.mean(1, keepdim=True) if width == 1 else x.unflatten(1, (width, -1)).mean(2)
        layers: Any = getattr(self, self.form)
        if self.form == "sum":
            maps = self.between(layers[0](maps)) + self.between(layers[1](maps))
        else:
            for index, layer in enumerate(layers):
                maps = layer(self.between(maps) if index else maps)
        return self.activate(maps if width == 1 else maps.mean(1, keepdim=True))

    def same_function(self, other: Gate) -> bool:
        """Also the activation between the convolutions must be the same."""
        return super().same_function(other) and getattr(other, "options", None) == self.options


class CoordinateGate(Gate):
    """One weight per channel and row, and one per channel and column.

    Parameters
    ----------
    channels, middle : int
        Channels of the feature map, and of the layer that rows and columns share.
    rest : float or None
        As of `Gate`.
    """

    def __init__(self, channels: int, middle: int, rest: float | None) -> None:
        super().__init__(rest)
        self.reduce = nn.Conv2d(channels, middle, 1)
        self.norm = nn.BatchNorm2d(middle)
        self.activation = nn.Hardswish()
        self.rows = nn.Conv2d(middle, channels, 1)
        self.columns = nn.Conv2d(middle, channels, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, h, w) to (N, C, h, 1) and (N, C, 1, w)."""
        height = x.shape[2]
        strips = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], dim=2)
        shared = self.activation(self.norm(self.reduce(strips)))
        rows, columns = shared[:, :, :height], shared[:, :, height:].transpose(2, 3)
        return self.activate(self.rows(rows)), self.activate(self.columns(columns))


class Attention(nn.Module):
    """Base class of all attention blocks, by which they are found and swapped.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    channels : int
        Channels of the feature map.
    reduction : int
        Reduction ratio of the channel gate's bottleneck.
    spatial : SpatialOptions
        Reading of the spatial gate; the default for kinds other than ``esa_*``.
    """

    def __init__(self, kind: str, channels: int, reduction: int) -> None:
        super().__init__()
        self.kind, self.channels, self.reduction = kind, channels, reduction
        self.spatial = SpatialOptions()

    def extra_repr(self) -> str:
        """Kind and width, for ``print``."""
        return f"kind={self.kind!r}, channels={self.channels}, reduction={self.reduction}"


class NoAttention(Attention):
    """The identity: a placeholder that can be swapped for another kind."""

    def forward(self, x: Tensor) -> Tensor:
        """The feature map itself."""
        return x


class SqueezeExcitation(Attention):
    """A channel gate, preceded by a spatial gate in the kind ``se_spatial``: the block of the attention CPM.

    The activation is a leaky ReLU, as in that network; Hu et al. use a ReLU.
    """

    def __init__(self, kind: str, channels: int, reduction: int, identity: bool) -> None:
        super().__init__(kind, channels, reduction)
        rest = 1.0 if identity else None
        self.place = SpatialGate(channels, rest) if kind == "se_spatial" else None
        self.channel = ChannelGate(channels, _middle(channels, reduction), rest, activation=nn.LeakyReLU)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        if self.place is not None:
            x = x * self.place(x)
        return x * self.channel(x)


class Cbam(Attention):
    """A channel gate from means and maxima, then a spatial gate."""

    def __init__(self, kind: str, channels: int, reduction: int, identity: bool) -> None:
        super().__init__(kind, channels, reduction)
        rest = 1.0 if identity else None
        self.channel = ChannelGate(channels, _middle(channels, reduction), rest, maximum=True)
        self.place = PooledSpatialGate(rest)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        x = x * self.channel(x)
        return x * self.place(x)


class EfficientSpatialAttention(Attention):
    """``x + m p(m)`` with ``m = x c(x)``: a channel gate c, then a spatial gate p, added to the input.

    Identity-initialised, only the spatial gate has a resting value, 0.
    """

    FORMS: ClassVar = {"esa_seq": "chain", "esa_par": "sum", "esa_7": "wide"}

    def __init__(
        self, kind: str, channels: int, reduction: int, identity: bool, spatial: SpatialOptions | None = None
    ) -> None:
        super().__init__(kind, channels, reduction)
        self.spatial = spatial or SpatialOptions()
        self.channel = ChannelGate(channels, _middle(channels, reduction), None, bias=False)
        self.place = MeanSpatialGate(self.FORMS[kind], 0.0 if identity else None, self.spatial)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        weighted = x * self.channel(x)
        return x + weighted * self.place(weighted)


class CoordinateAttention(Attention):
    """A gate for the rows and one for the columns of every channel."""

    def __init__(self, kind: str, channels: int, reduction: int, identity: bool) -> None:
        super().__init__(kind, channels, reduction)
        self.coordinate = CoordinateGate(channels, max(8, channels // reduction), 1.0 if identity else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        rows, columns = self.coordinate(x)
        return x * rows * columns


_BLOCKS: dict[str, Callable[[str, int, int, bool], Attention]] = {
    "none": lambda kind, channels, reduction, identity: NoAttention(kind, channels, reduction),
    "se": SqueezeExcitation,
    "se_spatial": SqueezeExcitation,
    "cbam": Cbam,
    **dict.fromkeys(EfficientSpatialAttention.FORMS, EfficientSpatialAttention),
    "coord": CoordinateAttention,
}


def build_attention(
    kind: str,
    channels: int,
    reduction: int | None = None,
    *,
    identity: bool = False,
    spatial: SpatialOptions | None = None,
) -> Attention:
    """A fresh attention block.

    Parameters
    ----------
    kind : str
        One of `KINDS`:

        ==============  =================================================================  ==========================
        kind            definition                                                         parameters at C, r
        ==============  =================================================================  ==========================
        ``none``        the identity                                                       0
        ``se``          channel gate from means                                            2C²/r + C/r + C
        ``se_spatial``  spatial gate by a 1x1 convolution, then ``se``                     C + 1 more than ``se``
        ``cbam``        channel gate from means and maxima, then 7x7 on maximum and mean   2C²/r + C/r + C + 98 + 2
        ``esa_seq``     ``x + SAM(CAM(x))``; SAM of the mean: two 3x3 in sequence          2C²/r + 18
        ``esa_par``     the same, the two 3x3 in parallel and added                        2C²/r + 18
        ``esa_7``       the same with one 7x7                                              2C²/r + 49
        ``coord``       gates of rows and columns; bottleneck m = max(8, C/r)              3Cm + 3m + 2C
        ==============  =================================================================  ==========================
    channels : int
        C.
    reduction : int, optional
        r; by default 16, and 32 for ``coord``, as in the papers.
    identity : bool
        Identity initialisation: the block starts exactly as the identity, by the resting values of `Gate`. It adds one
        scalar per gate (one for ``esa_*`` and ``coord``), through which the first gradients flow.
    spatial : SpatialOptions, optional
        Reading of the spatial gate of ``esa_*``; a width w multiplies the parameters of its convolutions by w².

    Raises
    ------
    NetworkError
        If the kind is unknown, a number is not an integer within its bounds, or the spatial options do not fit the kind
        or the channels.
    """
    if not isinstance(kind, str) or kind not in _BLOCKS:
        raise NetworkError("unknown kind of attention", found=kind, hint=f"Known: {', '.join(KINDS)}")
    if reduction is None:
        reduction = default_reduction(kind)
    for name, value, limit in (("channels", channels, MAX_CHANNELS), ("reduction", reduction, MAX_REDUCTION)):
        if type(value) is not int or not 1 <= value <= limit:
            raise NetworkError(f"an attention block's {name} must be an integer from 1 to {limit}", found=value)
    if spatial is None or spatial == SpatialOptions():
        return _BLOCKS[kind](kind, channels, reduction, identity)
    check_spatial(kind, channels, spatial)
    return EfficientSpatialAttention(kind, channels, reduction, identity, spatial)


def check_spatial(kind: str, channels: int, spatial: SpatialOptions) -> None:
    """Refuse options of a spatial gate that a block can't have.

    Raises
    ------
    NetworkError
        If they are not the defaults and the kind is not one of ESA's, the width is not a divisor of the channels, or
        there is nothing for an activation to be between.
    """
    if spatial != SpatialOptions() and kind not in EfficientSpatialAttention.FORMS:
        raise NetworkError("only the esa kinds have options of the spatial gate", found=kind)
    if spatial.between != "none" and kind == "esa_7":
        raise NetworkError("a single 7x7 convolution has no activation between", found=spatial.between)
    if channels % spatial.width:
        raise NetworkError(
            "a spatial gate's width must be a divisor of the block's channels", found=f"{spatial.width} of {channels}"
        )


def default_reduction(kind: str) -> int:
    """The reduction ratio of the kind's paper."""
    return 32 if kind == "coord" else 16


def _middle(channels: int, reduction: int) -> int:
    return max(1, channels // reduction)
