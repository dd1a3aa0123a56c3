"""Attention blocks: gates that weigh the channels and the places of a feature map.

All kinds come from one factory and take the place of each other: a map (N, C, h, w) goes in and one of the same size
comes out. Sources: squeeze and excitation (Hu et al. 2018, arXiv:1709.01507), with the activation and the spatial gate
of the attention CPM; CBAM (Woo et al. 2018, arXiv:1807.06521); efficient spatial attention on SimpleBaseline, in its
three forms; coordinate attention (Hou et al. 2021, arXiv:2103.02907).

Gates are means and maxima over axes, never adaptive pools, so exported networks run at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.errors import NetworkError

#: What `build_attention` knows.
KINDS = ("none", "se", "se_spatial", "cbam", "esa_seq", "esa_par", "esa_7", "coord")

#: Bounds of a block; a file that asks for more is refused before anything of that size is built.
MOST_CHANNELS, MOST_REDUCTION = 8192, 1024


class Gate(nn.Module):
    """Factors by which a map is weighed.

    A gate with a resting value starts there and is opened by training: it gives ``rest + blend (gate - rest)`` with a
    learnt scalar ``blend`` that starts at 0. At 1 it is the gate of the paper. The scalar meets the small gate, not
    the map, so that it costs nothing to speak of.

    Parameters
    ----------
    rest : float or None
        What the gate gives before training: 1 lets everything through, 0 nothing. None for the plain gate.
    """

    blend: nn.Parameter | None

    def __init__(self, rest: float | None) -> None:
        super().__init__()
        self.rest = rest or 0.0
        self.register_parameter("blend", None if rest is None else nn.Parameter(torch.zeros(())))

    def settle(self, scores: Tensor) -> Tensor:
        """The gate of any scores: their sigmoid, blended with the resting value where there is one."""
        gate = scores.sigmoid()
        return gate if self.blend is None else self.rest + self.blend * (gate - self.rest)


class ChannelGate(Gate):
    """One factor a channel: the mean of each (and the maximum), through two layers with a narrow middle.

    Parameters
    ----------
    channels, middle : int
        Width of the map and of the middle.
    rest : float or None
        As of `Gate`.
    bias, maximum : bool
        Whether the layers have biases, and whether the maxima go through them too; both results are added.
    activation : module class
        Between the layers.
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
        return self.settle(scores)

    def _scores(self, pooled: Tensor) -> Tensor:
        scores: Tensor = self.expand(self.activation(self.reduce(pooled)))
        return scores


class PlaceGate(Gate):
    """One factor a place, by a 1x1 convolution of all channels."""

    def __init__(self, channels: int, rest: float | None) -> None:
        super().__init__(rest)
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        return self.settle(self.score(x))


class PooledPlaceGate(Gate):
    """One factor a place, by a 7x7 convolution of the maximum and the mean over the channels (CBAM)."""

    def __init__(self, rest: float | None) -> None:
        super().__init__(rest)
        self.score = nn.Conv2d(2, 1, 7, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(1, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        pooled = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], dim=1)
        return self.settle(self.norm(self.score(pooled)))


class MeanPlaceGate(Gate):
    """One factor a place, by convolutions of the mean over the channels (ESA), without biases.

    Parameters
    ----------
    form : str
        ``"chain"``: a 3x3 convolution after another; ``"sum"``: two of them side by side; ``"wide"``: one of 7x7.
    rest : float or None
        As of `Gate`.
    """

    def __init__(self, form: str, rest: float | None) -> None:
        super().__init__(rest)
        count, size = (1, 7) if form == "wide" else (2, 3)
        # The form is in the name, so that weights of one form are never taken for those of another.
        self.form = form
        setattr(self, form, nn.ModuleList(nn.Conv2d(1, 1, size, padding=size // 2, bias=False) for _ in range(count)))

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to (N, 1, h, w)."""
        mean = x.mean(1, keepdim=True)
        layers: Any = getattr(self, self.form)
        if self.form == "sum":
            return self.settle(layers[0](mean) + layers[1](mean))
        for layer in layers:
            mean = layer(mean)
        return self.settle(mean)


class CoordinateGate(Gate):
    """One factor for each channel and row, and one for each channel and column.

    Parameters
    ----------
    channels, middle : int
        Width of the map and of the layer that rows and columns share.
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
        return self.settle(self.rows(rows)), self.settle(self.columns(columns))


class Attention(nn.Module):
    """What all blocks have in common, so that they can be found and swapped.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    channels : int
        Channels of the map.
    reduction : int
        By how much the middle of the channel gate is narrower.
    """

    def __init__(self, kind: str, channels: int, reduction: int) -> None:
        super().__init__()
        self.kind, self.channels, self.reduction = kind, channels, reduction

    def extra_repr(self) -> str:
        """Kind and width for people."""
        return f"kind={self.kind!r}, channels={self.channels}, reduction={self.reduction}"


class NoAttention(Attention):
    """The block that changes nothing: where it stands, another kind can be put."""

    def forward(self, x: Tensor) -> Tensor:
        """The map as it is."""
        return x


class SqueezeExcitation(Attention):
    """Channel factors, after a factor for each place where the kind says so: the attention CPM's block.

    The activation is a leaky ReLU, as in that network; Hu et al. have a ReLU.
    """

    def __init__(self, kind: str, channels: int, reduction: int, identity: bool) -> None:
        super().__init__(kind, channels, reduction)
        rest = 1.0 if identity else None
        self.place = PlaceGate(channels, rest) if kind == "se_spatial" else None
        self.channel = ChannelGate(channels, _middle(channels, reduction), rest, activation=nn.LeakyReLU)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        if self.place is not None:
            x = x * self.place(x)
        return x * self.channel(x)


class Cbam(Attention):
    """Channel factors from means and maxima, then a factor for each place."""

    def __init__(self, kind: str, channels: int, reduction: int, identity: bool) -> None:
        super().__init__(kind, channels, reduction)
        rest = 1.0 if identity else None
        self.channel = ChannelGate(channels, _middle(channels, reduction), rest, maximum=True)
        self.place = PooledPlaceGate(rest)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        x = x * self.channel(x)
        return x * self.place(x)


class EfficientSpatialAttention(Attention):
    """``x + m p(m)`` with ``m = x c(x)``: channel factors c, then a factor p for each place, added to the input.

    As a fresh identity only the place gate rests, at 0.
    """

    FORMS: ClassVar = {"esa_seq": "chain", "esa_par": "sum", "esa_7": "wide"}

    def __init__(self, kind: str, channels: int, reduction: int, identity: bool) -> None:
        super().__init__(kind, channels, reduction)
        self.channel = ChannelGate(channels, _middle(channels, reduction), None, bias=False)
        self.place = MeanPlaceGate(self.FORMS[kind], 0.0 if identity else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) to the same."""
        weighed = x * self.channel(x)
        return x + weighed * self.place(weighed)


class CoordinateAttention(Attention):
    """A factor for each row and one for each column, of every channel."""

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


def build_attention(kind: str, channels: int, reduction: int | None = None, *, identity: bool = False) -> Attention:
    """A fresh attention block.

    Parameters
    ----------
    kind : str
        One of `KINDS`:

        ==============  =================================================================  ==========================
        kind            what it is                                                         parameters at C, r
        ==============  =================================================================  ==========================
        ``none``        the identity                                                       0
        ``se``          channel factors from means                                         2C²/r + C/r + C
        ``se_spatial``  a factor a place by a 1x1 convolution, then ``se``                 C + 1 more than ``se``
        ``cbam``        channel factors from means and maxima, then 7x7 on maximum, mean   2C²/r + C/r + C + 98 + 2
        ``esa_seq``     ``x + SAM(CAM(x))``; SAM of the mean: two 3x3, one after another   2C²/r + 18
        ``esa_par``     the same, the two 3x3 side by side and added                       2C²/r + 18
        ``esa_7``       the same with one 7x7                                              2C²/r + 49
        ``coord``       factors of rows and columns; middle m = max(8, C/r)                3Cm + 3m + 2C
        ==============  =================================================================  ==========================
    channels : int
        C.
    reduction : int, optional
        r; by default 16, and 32 for ``coord``, as in the papers.
    identity : bool
        Whether the block starts as the identity, exactly, and is opened by training: the resting gates of `Gate`. It
        adds one scalar for each gate (one to ``esa_*`` and ``coord``), through which the first gradients flow.

    Raises
    ------
    NetworkError
        If the kind is unknown, or a number is not whole or out of its bounds.
    """
    if not isinstance(kind, str) or kind not in _BLOCKS:
        raise NetworkError("unknown kind of attention", found=kind, hint=f"Known: {', '.join(KINDS)}")
    if reduction is None:
        reduction = default_reduction(kind)
    for name, value, most in (("channels", channels, MOST_CHANNELS), ("reduction", reduction, MOST_REDUCTION)):
        if type(value) is not int or not 1 <= value <= most:
            raise NetworkError(f"an attention block's {name} must be a whole number from 1 to {most}", found=value)
    return _BLOCKS[kind](kind, channels, reduction, identity)


def default_reduction(kind: str) -> int:
    """The reduction that the kind's paper has."""
    return 32 if kind == "coord" else 16


def _middle(channels: int, reduction: int) -> int:
    return max(1, channels // reduction)
