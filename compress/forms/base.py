"""The interface of a form: which layers it applies to, its ranks and costs, and how factors are found and built.

T output and S input channels of one group, P kernel places, kernels of shape (T, S, *k). A grouped convolution has the
same ranks in every group; a transposed one is counted by its kernel (T, S, kh, kw) as if it were not.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from compress.decomposition.fitting import Fit
from compress.decomposition.metric import Metric
from compress.decomposition.problems import Problems
from compress.forms.modules import FactorizedLayer, chained_kernels, multiplied
from compress.forms.onnx_steps import OnnxStep, onnx_steps
from compress.forms.ranks import TIMED_SHARES, aligned
from compress.network.layers import LayerInfo

Shape = Sequence[int]
Ranks = tuple[int, ...]


class Step(NamedTuple):
    """One step of a factorized layer: name of the child module, number of weights, MACs of all calls."""

    name: str
    weights: int
    macs: int


class Point(NamedTuple):
    """One point of an error curve: ranks, and the squared error in the metric of a fit without sweeps."""

    ranks: Ranks
    error: float


@dataclass(frozen=True)
class LayerFactors:
    """The weights of a factorized layer.

    Attributes
    ----------
    parts : mapping of str to Tensor
        By the names of the child modules; any shape with the right number of values in their order.
    error : float
        Relative Frobenius error of the kernel.
    bias : Tensor, shape (T,), or None
        The new bias; None keeps the layer's own.
    output_error : float or None
        Relative squared error of the layer's output, where it is known.
    """

    parts: Mapping[str, Tensor]
    error: float
    bias: Tensor | None = None
    output_error: float | None = None


class Form(ABC):
    """What a layer can become.

    Attributes
    ----------
    name : str
        As it is written in plans and checkpoints.
    rank_count : int
        Number of ranks.
    summary : str
        The steps in a few words.
    usual : bool
        Whether rules with fixed ranks use this form: of all forms of a layer exactly one, the first, is usual.
    spatial : bool
        Whether a kernel's rows and columns are separated.
    timed : bool
        Whether latency budgets time and consider this form.
    stand_in : str
        Name of a form of the same cost that is tried in place of this one where patches are long; empty for none.
    """

    name: ClassVar[str]
    rank_count: ClassVar[int] = 1
    summary: ClassVar[str]
    usual: ClassVar[bool] = False
    spatial: ClassVar[bool] = False
    timed: ClassVar[bool] = True
    stand_in: ClassVar[str] = ""

    @abstractmethod
    def applies(self, shape: Shape, kind: str, groups: int) -> bool:
        """Whether a layer can have this form.

        Parameters
        ----------
        shape : sequence of int
            Kernel (T, S, *k) of one group.
        kind : str
            As of `LayerInfo`.
        groups : int
            Groups of channels.
        """

    @abstractmethod
    def max_ranks(self, shape: Shape) -> Ranks:
        """The largest ranks that the form can use: with them nothing of the kernel is left out."""

    def clip(self, shape: Shape, ranks: Ranks) -> Ranks:
        """The largest ranks, none above those given, that a factorization can use in full; each at least 1."""
        return tuple(min(rank, most) for rank, most in zip(ranks, self.max_ranks(shape), strict=True))

    def channels(self, shape: Shape) -> tuple[int, ...]:
        """The number of channels that each rank is a share of."""
        return (min(shape[0], shape[1]),)

    def least_ranks(self, r3: int, r4: int) -> Ranks:
        """Lower bounds of the ranks, given ranks of the input (r3) and output mode (r4); empty for no bounds."""
        return ()

    @abstractmethod
    def steps(self, layer: LayerInfo, ranks: Ranks) -> tuple[Step, ...]:
        """Weights and MACs of each step of a factorized layer.

        A 1x1 convolution before the one with the stride runs at the input's resolution, one after it at the output's.
        """

    def cost(self, layer: LayerInfo, ranks: Ranks) -> tuple[int, int]:
        """Parameters and MACs of a layer after its factorization.

        Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile applications"
        (2016, arXiv:1511.06530), section 3.1, with the stride taken into account.

        Returns
        -------
        params, macs : int
            Parameters by the rule of `LayerInfo.params`, and MACs of all calls.
        """
        steps = self.steps(layer, ranks)
        # A weight that an earlier layer holds too is not among this layer's own parameters, before or after.
        own = 0 if layer.tied_to else sum(step.weights for step in steps) - math.prod(layer.weight_shape)
        return layer.params + own, sum(step.macs for step in steps)

    @abstractmethod
    def build(self, layer: nn.Module, ranks: Ranks, device: torch.device | None = None) -> FactorizedLayer:
        """The factorized layer, freshly initialised; the given one is not read but for its settings.

        Parameters
        ----------
        layer : nn.Module
            A plain convolution or linear layer.
        ranks : tuple of int
            As in a plan.
        device : torch.device, optional
            Where to make the weights; without it where the layer's are.
        """

    @abstractmethod
    def fit(self, problems: Problems, ranks: Ranks, sweeps: int = 2) -> Fit:
        """Factors for the metric of the problems.

        Parameters
        ----------
        problems : Problems
            The kernel (T, S, *k) of an ungrouped layer and its metric.
        ranks : tuple of int
            As in a plan.
        sweeps : int
            Rounds of alternating least squares after the start; the error never rises with them.

        Raises
        ------
        RankError
            If a rank is out of its range.
        """

    def decompose(self, layer: nn.Module, ranks: Ranks) -> LayerFactors:
        """Factors of a layer's finite weight alone."""
        kernel = layer.get_parameter("weight").detach()
        # Where all inputs and outputs have the same weight the start is the optimum: leading singular vectors.
        fit = self.fit(Problems(kernel, Metric.plain(len(kernel), kernel.device)), ranks, sweeps=0)
        return LayerFactors(fit.parts, fit.error**0.5)

    @abstractmethod
    def curve(self, problems: Problems, align: int) -> Iterator[Point]:
        """The errors of some ranks, rising ranks first to last.

        Parameters
        ----------
        problems : Problems
            The kernel of an ungrouped layer and its metric.
        align : int
            Ranks are multiples of it, or full.
        """

    def compose(self, module: nn.Module) -> nn.Module:
        """The one layer that a factorized layer of this form computes; it shares the bias.

        Returns
        -------
        nn.Module
            ``nn.Conv2d``, ``nn.ConvTranspose2d`` or ``nn.Linear`` with the weight ``W = C x_3 U3 x_4 U4`` or its like:
            Kim et al. (2016, arXiv:1511.06530), equation 5.
        """
        kernels = chained_kernels(list(module.children()))
        return multiplied(module, kernels, groups=len(kernels))

    def onnx_steps(self, module: nn.Module, operator: str) -> tuple[OnnxStep, ...]:
        """The ONNX operators of a factorized layer of this form; ``operator`` is that of the layer itself."""
        return onnx_steps(module, operator)

    def timed_ranks(self, layer: LayerInfo, shape: Shape, align: int) -> tuple[Ranks, ...]:
        """Ranks at which the form is timed, spread over `TIMED_SHARES` of the layer's MACs.

        Parameters
        ----------
        layer : LayerInfo
            A layer that is called.
        shape : sequence of int
            Its kernel (T, S, *k).
        align : int
            Ranks are multiples of it where the layer is wide enough.
        """
        most = self.max_ranks(shape)[0]
        even = layer.macs / self.cost(layer, (1,))[1]
        return tuple((aligned(share * even, most, align),) for share in TIMED_SHARES)
