"""CP decomposition: 1x1, depthwise kxk, 1x1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from compress.decomposition.cp import CpProblem, full_rank
from compress.decomposition.fitting import Fit
from compress.decomposition.metric import Metric
from compress.decomposition.problems import Problems
from compress.forms.base import Form, LayerFactors, Point, Ranks, Shape, Step
from compress.forms.modules import FactorizedLayer, geometry, multiplied, placement
from compress.forms.ranks import LARGEST, rank_steps
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo

#: Where on a curve ALS is run, as a share of its length, to learn how much it gains on the nested start.
LEARNT_AT = 0.6

#: Ranks of long patches are at most so many times the smaller number of channels: more would take minutes.
WIDE_RANKS = 2


class SeparableConv2d(FactorizedLayer):
    """A convolution as 1x1, depthwise kxk, 1x1: a kernel in CP form.

    Lebedev et al. (2015, arXiv:1412.6553), section 3.3, with both spatial axes in one step. Stride, padding and
    dilation belong to the depthwise step, the bias to the last.

    Parameters
    ----------
    conv : nn.Conv2d
        The layer to stand for, ungrouped; its weights are not read.
    ranks : (int,)
        The number r of terms.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """

    def __init__(self, conv: nn.Conv2d, ranks: Ranks, device: torch.device | None = None) -> None:
        (r,), place = ranks, placement(conv, device)
        steps = {
            "reduce": nn.Conv2d(conv.in_channels, r, 1, bias=False, **place),
            "core": nn.Conv2d(r, r, conv.kernel_size, groups=r, bias=False, **geometry(conv), **place),  # type: ignore[arg-type]
            "expand": nn.Conv2d(r, conv.out_channels, 1, bias=conv.bias is not None, **place),
        }
        super().__init__("cp_separable", conv, steps)


class CpSeparableForm(Form):
    """A sum of r products of an input, a spatial and an output pattern."""

    name: ClassVar[str] = "cp_separable"
    summary: ClassVar[str] = "1x1, depthwise kxk, 1x1"
    #: Every timed form costs a latency budget measurements, and this one has not been shown to pay there.
    timed: ClassVar[bool] = False

    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        """Ungrouped convolutions with a kernel of more than one place."""
        return kind == "conv" and groups == 1 and math.prod(shape[2:]) > 1

    def max_ranks(self, shape: Shape) -> Ranks:
        """The product of the two smallest of T, S and P."""
        return (full_rank(_cube(shape)),)

    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        """The first runs at the input's resolution."""
        outputs, inputs, *places = layer_kernel(layer)
        reduce, core, expand = inputs * ranks[0], ranks[0] * math.prod(places), ranks[0] * outputs
        before, after = layer.input_positions, layer.output_positions
        return (
            Step("reduce", reduce, reduce * before),
            Step("core", core, core * after),
            Step("expand", expand, expand * after),
        )

    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> SeparableConv2d:
        """A `SeparableConv2d`."""
        assert isinstance(layer, nn.Conv2d)
        return SeparableConv2d(layer, ranks, device)

    def fit(self, problems: Problems, ranks: Ranks, sweeps: int = 2) -> Fit:
        """ALS in a cheap metric, then in the true one."""
        return problems.once(CpProblem).fit(ranks[0], sweeps)

    def decompose(self, layer: nn.Module, ranks: Ranks) -> LayerFactors:
        """A careful fit: unlike the other forms CP has no closed solution."""
        kernel = layer.get_parameter("weight").detach()
        fit = self.fit(Problems(kernel, Metric.plain(len(kernel), kernel.device)), ranks)
        return LayerFactors(fit.parts, fit.error**0.5)

    def curve(self, problems: Problems, align: int) -> Iterator[Point]:
        """Errors of the nested start at all ranks, lowered by what ALS gains on it.

        ALS is run at one rank, `LEARNT_AT`. The logarithm of its gain is taken to grow from none at rank 0 to that,
        and to stay there, so that high ranks are judged rather too severely. The cost is one product of the largest
        rank's patterns with the covariance and one quick fit: 0.1 s for a 3x3 kernel of 128 channels on one core.
        """
        ranks = self._tried(problems, align)
        if not ranks:
            return
        problem = problems.once(CpProblem)
        errors = problem.errors(ranks)
        place = round(LEARNT_AT * (len(ranks) - 1))
        fitted = problem.fit(ranks[place], sweeps=0).error * problem.energy
        gain = math.log(fitted / errors[place]) if min(fitted, errors[place]) > 0 else 0.0
        least = math.inf
        for rank, error in zip(ranks, errors, strict=True):
            least = min(least, error * math.exp(gain * min(1.0, rank / ranks[place])))
            yield Point((rank,), least)

    def _tried(self, problems: Problems, align: int) -> list[int]:
        outputs, inputs, places = _cube(problems.weight.shape)
        # Beyond this the factors cost nearly as much as the layer, and ALS takes long.
        most = LARGEST * outputs * inputs * places / (outputs + inputs + places)
        if problems.wide:
            most = min(most, WIDE_RANKS * min(outputs, inputs))
        return rank_steps(min(int(most) + 1, full_rank((outputs, inputs, places))), align)

    def compose(self, module: nn.Module) -> nn.Module:
        """The sum of the products."""
        reduce, core, expand = (step.get_parameter("weight").detach() for step in module.children())
        kernel: Tensor = torch.einsum("tr,rs,rij->tsij", expand.flatten(1), reduce.flatten(1), core.squeeze(1))
        return multiplied(module, kernel[None])


def _cube(shape: Shape) -> tuple[int, int, int]:
    """(T, S, P)."""
    return shape[0], shape[1], math.prod(shape[2:])
