"""Ranks by a fixed rule for each layer: a share of the channels, EVBMF, or a share of the energy.

The rules look at one kernel at a time. The kernel is unfolded along mode 3 (input channels) and mode 4 (output
channels), as in Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile
applications" (2016, arXiv:1511.06530).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

import torch
from torch import Tensor, nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.decomposition.tucker import mode_spectra
from compress.errors import RankError
from compress.forms.base import Form
from compress.forms.registry import forms_for, get_form
from compress.network.kernels import group_kernels
from compress.network.layers import LayerIndex, LayerInfo, list_layers
from compress.planning.plan import KEEP, LayerPlan, Plan
from compress.planning.selection import Selection, kept_by_selection


def read_share(value: Fraction | float | str) -> Fraction:
    """Read a share of the channels such as ``1/3`` or ``0.25``.

    Raises
    ------
    RankError
        If it is not a fraction or decimal number, or not above 0 and at most 1.
    """
    text = str(value)
    if not isinstance(value, Fraction) and not _NUMBER.fullmatch(text):
        raise RankError("a ratio is a fraction or a decimal number", found=value, hint="Write it as 1/3 or 0.25")
    share = Fraction(text)
    if not 0 < share <= 1:
        raise RankError(
            "a ratio is the share of channels kept, above 0 and at most 1", found=text, hint="Write it as 1/3 or 0.25"
        )
    return share


#: A fraction or decimal number of bounded length.
_NUMBER = re.compile(r"\s*(\d{1,9}/0*[1-9]\d{0,8}|\d{1,9}(\.\d{0,18})?|\.\d{1,18})\s*", re.ASCII)


@dataclass(frozen=True)
class Ratio:
    """Keep a share of the channels: ``r3 = ratio S`` and ``r4 = ratio T``, halves rounded up, at least 1.

    128 channels at 1/3 give rank 43. A 1x1 convolution or linear layer gets ``ratio min(S, T)``.

    Attributes
    ----------
    value : Fraction
        The share, above 0 and at most 1; text such as ``"1/3"`` and decimal numbers are converted.
    """

    value: Fraction

    def __init__(self, value: Fraction | float | str) -> None:
        object.__setattr__(self, "value", read_share(value))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``1/3`` or ``0.25``; `RankError` if it is no number above 0 and at most 1."""
        return cls(text)

    def to_dict(self) -> dict[str, Any]:
        """As it is written into a plan."""
        return {"rank": "ratio", "ratio": str(self.value)}


@dataclass(frozen=True)
class Vbmf:
    """Ranks by global analytic VBMF, weakened as in MUSCO.

    With w = ``weaken`` a rank is ``full - w (full - rank)``: Gusak et al., "MUSCO: multi-stage compression of neural
    networks" (2019, arXiv:1903.09973). VBMF is blind to the task; 1 takes its ranks as they are.

    Attributes
    ----------
    weaken : float
        Above 0 and at most 1.
    rank_zero : str
        What to do where VBMF finds only noise: ``"skip"`` keeps the layer, ``"min_rank"`` uses rank 1.
    clamp : (Fraction, Fraction) or None
        Least and largest share of the channels that a rank may have, also as text; the authors of the attention CPM
        end with 1/4 to 1/3.
    """

    weaken: float = 1.0
    rank_zero: str = "skip"
    clamp: tuple[Fraction, Fraction] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weaken <= 1:
            raise RankError("the weakening of VBMF ranks must be above 0 and at most 1", found=self.weaken)
        if self.rank_zero not in ("skip", "min_rank"):
            raise RankError("unknown rank-zero policy", found=self.rank_zero, hint="Known: skip, min_rank")
        if self.clamp is not None:
            low, high = map(read_share, self.clamp)
            object.__setattr__(self, "clamp", (low, high))
            if low > high:
                raise RankError(
                    "ranks are clamped between two shares of the channels, the smaller first",
                    found=f"{low}, {high}",
                    hint="For example 1/4,1/3",
                )

    def to_dict(self) -> dict[str, Any]:
        """As it is written into a plan."""
        clamp = {} if self.clamp is None else {"clamp": [str(share) for share in self.clamp]}
        return {"rank": "vbmf", "weaken": self.weaken, "rank_zero": self.rank_zero, **clamp}


@dataclass(frozen=True)
class Energy:
    """For each mode the smallest rank that keeps a share of the squared singular values.

    Attributes
    ----------
    share : float
        Above 0 and at most 1.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise RankError("the share of energy kept must be above 0 and at most 1", found=self.share)

    def to_dict(self) -> dict[str, Any]:
        """As it is written into a plan."""
        return {"rank": "energy", "share": self.share}


Policy = Ratio | Vbmf | Energy


def make_plan(
    module: nn.Module,
    policy: Policy,
    selection: Selection | None = None,
    *,
    network: str,
    input_size: tuple[int, int],
    layers: LayerIndex | None = None,
) -> Plan:
    """Choose form and ranks of every layer of a network.

    Parameters
    ----------
    module : nn.Module
        The network with its weights; it is only read.
    policy : Ratio, Vbmf or Energy
        The rule for the ranks.
    selection : Selection, optional
        Which layers may be replaced; without it all that are neither stem nor pointwise.
    network : str
        Name of the network, for the plan.
    input_size : (int, int)
        H and W at which MACs are counted.
    layers : LayerIndex, optional
        Of the network, if it was made before; without it the network runs once on an image of three channels.

    Returns
    -------
    Plan
        Without errors: `compress.surgery.factorize` fills them in.

    Raises
    ------
    UsageError
        If a name or pattern of the selection matches no layer.
    RankError
        If a kernel has non-finite values.
    NetworkError
        If the network can't be run at this size.
    """
    selection = selection or Selection()
    layers = list_layers(module, input_size) if layers is None else layers
    kept = kept_by_selection(layers, selection)
    entries = []
    for layer in layers:
        reason = kept[layer.name]
        kernels = None if reason else _kernels(module, layer)
        entries.append(keep_layer(layer, str(reason)) if kernels is None else _weigh(layer, kernels, policy))
    return Plan(network, input_size, keep_tied(layers, entries), {**policy.to_dict(), **selection.to_dict()})


def _kernels(module: nn.Module, layer: LayerInfo) -> Tensor:
    """The kernels (groups, T, S, *k), or the matrix (1, T, S) of a pointwise layer."""
    weight = module.get_submodule(layer.name).get_parameter("weight").detach()
    if not torch.isfinite(weight).all():
        raise RankError(f"the weight of layer {layer.name} has non-finite values", hint="Exclude the layer")
    return group_kernels(weight.flatten(1) if layer.pointwise else weight, layer.kind, layer.groups)


def _weigh(layer: LayerInfo, kernels: Tensor, policy: Policy) -> LayerPlan:
    """Replace the layer by its usual form if that makes it smaller and cheaper."""
    form, shape = forms_for(layer)[0], kernels.shape[1:]
    # All groups have the same ranks: the largest that any of them needs.
    found = [_ranks(kernel, form, policy) for kernel in kernels]
    chosen = [ranks for ranks in found if ranks is not None]
    if not chosen:
        return keep_layer(layer, "rank_zero")
    ranks = form.clip(shape, tuple(max(column) for column in zip(*chosen, strict=True)))
    if ranks == form.max_ranks(shape):
        return keep_layer(layer, "full_rank")
    params, macs = form.cost(layer, ranks)
    if not layer.tied_to and params >= layer.params:
        return keep_layer(layer, "not_smaller")
    if macs >= layer.macs:
        return keep_layer(layer, "not_cheaper")
    return replace_layer(layer, form.name, ranks, policy.to_dict()["rank"])


def _ranks(kernel: Tensor, form: Form, policy: Policy) -> tuple[int, ...] | None:
    """Ranks of a kernel (T, S, *k) by a policy, None for rank zero."""
    channels = form.channels(kernel.shape)
    if isinstance(policy, Ratio):
        return tuple(max(1, _round(policy.value * count)) for count in channels)
    if isinstance(policy, Energy):
        # Both modes of a matrix have the same singular values.
        spectra = mode_spectra(kernel)[: len(channels)]
        return tuple(_energy_rank(spectrum, policy.share) for spectrum in spectra)
    found = [estimate.rank for estimate in evbmf_kernel(kernel)[: len(channels)]]
    if policy.rank_zero == "skip" and 0 in found:
        return None
    ranks = [_round(full - policy.weaken * (full - max(1, rank))) for rank, full in zip(found, channels, strict=True)]
    if policy.clamp is not None:
        low, high = policy.clamp
        bounds = [(max(1, _round(low * full)), max(1, _round(high * full))) for full in channels]
        ranks = [min(max(rank, least), most) for rank, (least, most) in zip(ranks, bounds, strict=True)]
    return tuple(ranks)


def _energy_rank(singular_values: Tensor, share: float) -> int:
    kept = singular_values.double().square().cumsum(0)
    return min(int((kept < share * kept[-1]).sum()) + 1, len(kept))


def _round(value: Fraction | float) -> int:
    return math.floor(value + Fraction(1, 2))


def keep_layer(layer: LayerInfo, reason: str) -> LayerPlan:
    """A plan's entry for a layer that stays."""
    return LayerPlan(layer.name, KEEP, (), reason, (layer.params, layer.params), (layer.macs, layer.macs))


def replace_layer(layer: LayerInfo, method: str, ranks: tuple[int, ...], reason: str) -> LayerPlan:
    """A plan's entry for a layer that is replaced."""
    params, macs = get_form(method).cost(layer, ranks)
    return LayerPlan(layer.name, method, ranks, reason, (layer.params, params), (layer.macs, macs))


def keep_tied(layers: Sequence[LayerInfo], entries: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
    """Keep a layer if another one with the very same weight is kept: one weight, one decision."""
    firsts = [layer.tied_to or layer.name for layer in layers]
    kept = {first for first, entry in zip(firsts, entries, strict=True) if entry.method == KEEP}
    return tuple(
        keep_layer(layer, "tied") if first in kept and entry.method != KEEP else entry
        for layer, first, entry in zip(layers, firsts, entries, strict=True)
    )
