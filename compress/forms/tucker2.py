"""Tucker-2: 1x1, kxk, 1x1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import nn

from compress.decomposition.fitting import WIDE, Fit
from compress.decomposition.problems import Problems
from compress.decomposition.tucker import tucker2
from compress.forms.base import Form, LayerFactors, Point, Ranks, Shape, Step
from compress.forms.modules import Convolution, FactorizedLayer, geometry, placement, step_kernels
from compress.forms.ranks import LARGEST, TIMED_SHARES, aligned, rank_steps
from compress.forms.tucker1_in import CHANNELS
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo


class TuckerConv2d(FactorizedLayer):
    """A convolution as 1x1, kxk, 1x1: a kernel in Tucker-2 form.

    Kim et al. (2016, arXiv:1511.06530), section 3.1, equations 5 to 7: ``W = C x_3 U3 x_4 U4``. Stride, padding and
    dilation belong to the core; the bias to the last convolution. Any padding mode is exact, because padding and a
    1x1 convolution without bias commute. A grouped convolution has a product in each group; the core of a transposed
    one is transposed.

    Parameters
    ----------
    conv : nn.Conv2d or nn.ConvTranspose2d
        The layer to stand for; its weights are not read.
    ranks : (int, int)
        (r3, r4) of each group, mode 3 being the input and mode 4 the output channels.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(self, conv: Convolution, ranks: Ranks, device: torch.device | None = None) -> None:
        groups, place = conv.groups, placement(conv, device)
        r3, r4 = (groups * rank for rank in ranks)
        options: dict[str, Any] = {**geometry(conv), "groups": groups, "bias": False, **place}
        if isinstance(conv, nn.ConvTranspose2d):
            options["output_padding"] = conv.output_padding
            core: nn.Module = nn.ConvTranspose2d(r3, r4, conv.kernel_size, **options)  # type: ignore[arg-type]
        else:
            core = nn.Conv2d(r3, r4, conv.kernel_size, **options)  # type: ignore[arg-type]
        steps = {
            "reduce": nn.Conv2d(conv.in_channels, r3, 1, groups=groups, bias=False, **place),
            "core": core,
            "expand": nn.Conv2d(r4, conv.out_channels, 1, groups=groups, bias=conv.bias is not None, **place),
        }
        super().__init__("tucker2", conv, steps)


class Tucker2Form(Form):
    """Kim et al. (2016, arXiv:1511.06530), also of grouped and transposed convolutions."""

    name: ClassVar[str] = "tucker2"
    rank_count: ClassVar[int] = 2
    summary: ClassVar[str] = "1x1, kxk, 1x1"
    usual: ClassVar[bool] = True

    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        """Transposed convolutions, and those with a kernel of more than one place; not depthwise ones."""
        if groups > 1 and min(shape[:2]) == 1:
            return False
        return kind == "conv_transpose" or (kind == "conv" and math.prod(shape[2:]) > 1)

    def max_ranks(self, shape: Shape) -> Ranks:
        """(S, T), each as far as the core can use it."""
        return self.clip(shape, (shape[1], shape[0]))

    def clip(self, shape: Shape, ranks: Ranks) -> Ranks:
        """Usable (r3, r4).

        A mode of the core (r4, r3, *k) can't have a rank above the product of the core's other sizes, so ``r3 <= r4 P``
        and ``r4 <= r3 P``; ranks (40, 2) of a 3x3 kernel would be (18, 2) and a lot of zeros.
        """
        places = math.prod(shape[2:])
        r3, r4 = min(ranks[0], shape[1]), min(ranks[1], shape[0])
        r3 = min(r3, r4 * places)
        return r3, min(r4, r3 * places)

    def channels(self, shape: Shape) -> tuple[int, ...]:
        """(S, T)."""
        return shape[1], shape[0]

    def least_ranks(self, r3: int, r4: int) -> Ranks:
        """Both."""
        return r3, r4

    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        """The core of a transposed convolution is applied at its input's positions."""
        shape, before, after = layer_kernel(layer), layer.input_positions, layer.output_positions
        reduce, expand = (layer.groups * shape[1] * ranks[0], layer.groups * shape[0] * ranks[1])
        core = layer.groups * ranks[0] * ranks[1] * math.prod(shape[2:])
        at = before if layer.kind == "conv_transpose" else after
        return (
            Step("reduce", reduce, reduce * before),
            Step("core", core, core * at),
            Step("expand", expand, expand * after),
        )

    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> TuckerConv2d:
        """A `TuckerConv2d`."""
        assert isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d))
        return TuckerConv2d(layer, ranks, device)

    def fit(self, problems: Problems, ranks: Ranks, sweeps: int = 2) -> Fit:
        """Alternating least squares, the rank of the second factor bounded by r4."""
        return problems.split(CHANNELS).fit(ranks[0], ranks[1], sweeps)

    def decompose(self, layer: nn.Module, ranks: Ranks) -> LayerFactors:
        """Higher-order orthogonal iteration for the kernel of each group."""
        kernels = step_kernels(layer)
        found = [tucker2(kernel, (ranks[0], ranks[1])) for kernel in kernels]
        energies = torch.stack([kernel.double().square().sum() for kernel in kernels])
        squares = energies * torch.tensor([kernel.error**2 for kernel in found], dtype=torch.float64)
        cores = torch.stack([kernel.core for kernel in found])  # [groups, r4, r3, *k]
        if isinstance(layer, nn.ConvTranspose2d):
            cores = cores.transpose(1, 2)
        parts = {
            "reduce": torch.cat([kernel.first for kernel in found]),
            "core": cores.flatten(0, 1),
            "expand": torch.cat([kernel.last for kernel in found]),
        }
        return LayerFactors(parts, float((squares.sum() / energies.sum().clamp_min(1e-300)).sqrt()))

    def curve(self, problems: Problems, align: int) -> Iterator[Point]:
        """For each r3 one eigendecomposition gives the errors of all r4."""
        problem, wide = problems.split(CHANNELS), problems.weight[0].numel() > WIDE
        outputs, inputs = problems.weight.shape[:2]
        # With all input channels kxk - 1x1 is as good; where there are many kernel places they would take minutes.
        ranks = [r for r in rank_steps(inputs, align, last=not wide) if not wide or r <= LARGEST * inputs]
        for r3, tails in zip(ranks, problem.tails(problem.start, ranks) if ranks else (), strict=True):
            for r4 in rank_steps(outputs, align):
                yield Point((r3, r4), float(tails[r4]))

    def timed_ranks(self, layer: LayerInfo, shape: Shape, align: int) -> tuple[Ranks, ...]:
        """Shares of the channels, of both modes alike and with either the smaller."""
        full = self.max_ranks(shape)
        low, middle, high = (tuple(aligned(share * rank, rank, align) for rank in full) for share in TIMED_SHARES)
        return low, middle, high, (low[0], middle[1]), (middle[0], low[1])
