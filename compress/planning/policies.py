"""Ranks by a fixed rule for each layer: a share of the channels, EVBMF, or a share of the energy.

The rules look at one kernel at a time. The kernel is unfolded along mode 3 (input channels) and mode 4 (output
channels), as in Kim et al., "Compression of deep convolutional neural networks for fast and low power mobile
applications" (2016, arXiv:1511.06530).
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.decomposition.tucker import mode_spectra
from compress.errors import PlanError, RankError, UsageError
from compress.network.factors import clip_ranks, factorized_cost, full_ranks, group_kernels, layer_kernel, methods_for
from compress.network.layers import LayerInfo, list_layers
from compress.planning.plan import KEPT, LayerPlan, Plan

#: A convolution with at most so many input channels reads the image (with a depth map or a mask) itself.
STEM_CHANNELS = 4


@dataclass(frozen=True)
class Ratio:
    """Keep a share of the channels: ``r3 = ratio S`` and ``r4 = ratio T``, halves rounded up, at least 1.

    128 channels at 1/3 give rank 43. A 1x1 convolution or linear layer gets ``ratio min(S, T)``.

    Attributes
    ----------
    value : Fraction
        The share, above 0 and at most 1.
    """

    value: Fraction

    def __post_init__(self) -> None:
        if not 0 < self.value <= 1:
            raise RankError(
                "a ratio is the share of channels kept, above 0 and at most 1",
                found=str(self.value),
                hint="Write it as 1/3 or 0.25",
            )

    def to_dict(self) -> dict[str, Any]:
        """How a plan tells of it."""
        return {"rank": "ratio", "ratio": str(self.value)}


@dataclass(frozen=True)
class Vbmf:
    """Ranks by global analytic VBMF, weakened as in MUSCO.

    With w = ``weaken`` a rank is ``full - w (full - rank)``: Gusak et al., "MUSCO: multi-stage compression of neural
    networks" (2019, arXiv:1903.09973). VBMF knows nothing of the task; 1 takes its ranks as they are.

    Attributes
    ----------
    weaken : float
        Above 0 and at most 1.
    rank_zero : str
        What to do where VBMF finds nothing but noise: ``"skip"`` keeps the layer, ``"min_rank"`` takes rank 1 as what
        it found.
    clamp : (Fraction, Fraction) or None
        Least and largest share of the channels that a rank may have; the attention CPM's authors end with 1/4 to 1/3.
    """

    weaken: float = 1.0
    rank_zero: str = "skip"
    clamp: tuple[Fraction, Fraction] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.weaken <= 1:
            raise RankError("the weakening of VBMF ranks must be above 0 and at most 1", found=self.weaken)
        if self.rank_zero not in ("skip", "min_rank"):
            raise RankError("unknown rank-zero policy", found=self.rank_zero, hint="Known: skip, min_rank")
        if self.clamp is not None and not 0 < self.clamp[0] <= self.clamp[1] <= 1:
            raise RankError(
                "ranks are clamped between two shares of the channels, the smaller first",
                found=", ".join(map(str, self.clamp)),
                hint="For example 1/4,1/3",
            )

    def to_dict(self) -> dict[str, Any]:
        """How a plan tells of it."""
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
        """How a plan tells of it."""
        return {"rank": "energy", "share": self.share}


Policy = Ratio | Vbmf | Energy


@dataclass(frozen=True)
class Selection:
    """Which layers may be replaced.

    Attributes
    ----------
    include : tuple of str
        Layer names, or patterns with ``*``, ``?`` and ``[...]``; empty means every layer. A layer named exactly is
        taken even if it is a stem or pointwise; a pattern only narrows.
    exclude : tuple of str
        Names or patterns of layers to keep; stronger than ``include``.
    pointwise : bool
        Whether 1x1 convolutions and linear layers are factorized too.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    pointwise: bool = False

    def to_dict(self) -> dict[str, Any]:
        """How a plan tells of it."""
        return {"include": list(self.include), "exclude": list(self.exclude), "pointwise": self.pointwise}


def parse_ratio(text: str) -> Fraction:
    """Read a share such as ``1/3`` or ``0.25``.

    Raises
    ------
    RankError
        If it is no such number, or not above 0 and at most 1.
    """
    if not re.fullmatch(r"\s*(\d{1,9}/0*[1-9]\d{0,8}|\d{1,9}(\.\d{0,18})?|\.\d{1,18})\s*", text, re.ASCII):
        raise RankError("a ratio is a fraction or a decimal number", found=text, hint="Write it as 1/3 or 0.25")
    return Ratio(Fraction(text)).value


def obstacle(layer: LayerInfo) -> str | None:
    """The reason code for which no plan can replace a layer, or None if one can."""
    if layer.calls == 0:
        return "unused"
    if not layer.plain or len(layer.kernel_size) not in (0, 2):
        return "unsupported"
    if not methods_for(layer_kernel(layer), layer.kind, layer.groups):
        return "grouped" if min(layer_kernel(layer)[:2]) > 1 else "depthwise"
    return None


def make_plan(
    module: nn.Module,
    policy: Policy,
    selection: Selection | None = None,
    *,
    network: str,
    input_size: tuple[int, int],
) -> Plan:
    """Decide on every layer of a network.

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

    Returns
    -------
    Plan
        Errors are left open: `compress.surgery.factorize` fills them.

    Raises
    ------
    UsageError
        If a name or pattern of the selection matches no layer.
    RankError
        If a kernel has values that are not finite.
    NetworkError
        If the network can't be run at this size.
    """
    selection = selection or Selection()
    layers = list_layers(module, input_size)
    kept = kept_by_selection(layers, selection)
    entries = []
    for layer in layers:
        reason = kept[layer.name]
        kernels = None if reason else _kernels(module, layer)
        entries.append(keep_layer(layer, str(reason)) if kernels is None else _weigh(layer, kernels, policy))
    return Plan(network, input_size, keep_tied(layers, entries), {**policy.to_dict(), **selection.to_dict()})


def check_plan(plan: Plan, module: nn.Module, network: str, input_size: tuple[int, int]) -> Plan:
    """Hold a plan, perhaps edited by a person, against the network it is to be applied to.

    Parameters
    ----------
    plan : Plan
        Layers that it does not name are kept.
    module : nn.Module
        The network; it is only read.
    network : str
        Name of the network.
    input_size : (int, int)
        H and W at which MACs are counted.

    Returns
    -------
    Plan
        One entry for each layer in the order of the network, with true costs and errors left open.

    Raises
    ------
    PlanError
        Once, with everything that does not fit: another network, unknown layers, methods a layer can't have, ranks it
        can't use, tied layers with different ranks.
    """
    layers = list_layers(module, input_size)
    by_name = {name: layer for layer in layers for name in (layer.name, *layer.aliases)}
    problems = []
    if plan.network != network:
        problems.append(f"it was made for {plan.network}")
    wanted: dict[str, LayerPlan] = {}
    for entry in plan.layers:
        known = by_name.get(entry.name)
        if known is None:
            problems.append(f"there is no layer {entry.name}{_similar(entry.name, by_name)}")
        elif known.name in wanted:
            problems.append(f"{entry.name} is there twice")
        else:
            wanted[known.name] = entry
            problems += _misfits(known, entry)
    for layer in layers:
        ranks = [wanted[name].ranks if name in wanted else () for name in (layer.name, layer.tied_to or layer.name)]
        if ranks[0] != ranks[1]:
            problems.append(f"{layer.name} and {layer.tied_to} have the same weight and need the same ranks")
    if problems:
        more = f" and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise PlanError(
            f"the plan does not fit the network {network}: " + "; ".join(problems[:10]) + more,
            hint="Make a plan for this network by compress factorize --dry-run --save-plan",
        )
    return replace(plan, input_size=input_size, layers=tuple(_renew(x, wanted.get(x.name)) for x in layers))


def kept_by_selection(layers: Sequence[LayerInfo], selection: Selection) -> dict[str, str | None]:
    """For each layer the reason to keep it before any rank is chosen, or None."""
    every = [name for layer in layers for name in (layer.name, *layer.aliases)]
    for pattern in (*selection.include, *selection.exclude):
        if not any(fnmatchcase(name, pattern) for name in every):
            inside = any(name.startswith(f"{pattern}.") for name in every)
            hint = f"For all layers inside write {pattern}.*" if inside else "compress inspect lists all names"
            raise UsageError(
                f"no layer matches this name or pattern{_similar(pattern, every)}", found=pattern, hint=hint
            )
    reasons: dict[str, str | None] = {}
    for layer in layers:
        names = (layer.name, *layer.aliases)
        named = any(name in selection.include for name in names)
        included = not selection.include or _matches(names, selection.include)
        stem = layer.kind == "conv" and layer_kernel(layer)[1] * layer.groups <= STEM_CHANNELS
        reason = obstacle(layer)
        if not included or _matches(names, selection.exclude):
            reason = "excluded"
        elif reason is None and layer.pointwise and not (selection.pointwise or named):
            reason = "pointwise"
        elif reason is None and stem and not named:
            reason = "stem"
        reasons[layer.name] = reason
    return reasons


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)


def _similar(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" (similar: {', '.join(close)})" if close else ""


def _kernels(module: nn.Module, layer: LayerInfo) -> Tensor:
    """The kernels (groups, T, S, *k), or the matrix (1, T, S) of a pointwise layer."""
    weight = module.get_submodule(layer.name).get_parameter("weight").detach()
    if not torch.isfinite(weight).all():
        raise RankError(f"the weight of layer {layer.name} has values that are not finite", hint="Exclude the layer")
    return group_kernels(weight.flatten(1) if layer.pointwise else weight, layer.kind, layer.groups)


def _weigh(layer: LayerInfo, kernels: Tensor, policy: Policy) -> LayerPlan:
    """Replace the layer if that makes it smaller and cheaper."""
    method = usual_method(layer)
    full = full_ranks(kernels.shape[1:], method)
    # All groups have the same ranks, so each gets what the neediest one needs.
    found = [_ranks(kernel, method, policy) for kernel in kernels]
    chosen = [ranks for ranks in found if ranks is not None]
    if not chosen:
        return keep_layer(layer, "rank_zero")
    ranks = clip_ranks(kernels.shape[1:], method, tuple(max(column) for column in zip(*chosen, strict=True)))
    if ranks == full:
        return keep_layer(layer, "full_rank")
    params, macs = factorized_cost(layer, method, ranks)
    if not layer.tied_to and params >= layer.params:
        return keep_layer(layer, "not_smaller")
    if macs >= layer.macs:
        return keep_layer(layer, "not_cheaper")
    return replace_layer(layer, method, ranks, policy.to_dict()["rank"])


def usual_method(layer: LayerInfo) -> str:
    """The method by which the papers replace such a layer: Tucker-2, or two matrices where there is one place."""
    return methods_for(layer_kernel(layer), layer.kind, layer.groups)[0]


def _ranks(kernel: Tensor, method: str, policy: Policy) -> tuple[int, ...] | None:
    """(r3, r4) of a kernel (T, S, *k), (r,) of a matrix, None for rank zero."""
    outputs, inputs = kernel.shape[:2]
    channels = (inputs, outputs) if method == "tucker2" else (min(inputs, outputs),)
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
    return LayerPlan(layer.name, "keep", (), reason, (layer.params, layer.params), (layer.macs, layer.macs))


def replace_layer(layer: LayerInfo, method: str, ranks: tuple[int, ...], reason: str) -> LayerPlan:
    """A plan's entry for a layer that is replaced."""
    params, macs = factorized_cost(layer, method, ranks)
    return LayerPlan(layer.name, method, ranks, reason, (layer.params, params), (layer.macs, macs))


def keep_tied(layers: Sequence[LayerInfo], entries: Sequence[LayerPlan]) -> tuple[LayerPlan, ...]:
    """Keep a layer if another one with the very same weight is kept: one weight, one decision."""
    firsts = [layer.tied_to or layer.name for layer in layers]
    kept = {first for first, entry in zip(firsts, entries, strict=True) if entry.method == "keep"}
    return tuple(
        keep_layer(layer, "tied") if first in kept and entry.method != "keep" else entry
        for layer, first, entry in zip(layers, firsts, entries, strict=True)
    )


def _misfits(layer: LayerInfo, entry: LayerPlan) -> list[str]:
    """Why a plan's entry can't be applied to the layer."""
    if entry.method == "keep":
        return []
    reason = obstacle(layer)
    if reason:
        return [f"{entry.name} can't be factorized ({KEPT[reason].removeprefix('kept: ')})"]
    shape = layer_kernel(layer)
    methods = methods_for(shape, layer.kind, layer.groups)
    if entry.method not in methods:
        return [f"{entry.name} takes the method {' or '.join(methods)}, not {entry.method}"]
    usable = clip_ranks(shape, entry.method, entry.ranks)
    if usable != entry.ranks:
        return [f"{entry.name} can use ranks of at most {usable}, not {entry.ranks}"]
    return []


def _renew(layer: LayerInfo, entry: LayerPlan | None) -> LayerPlan:
    """The plan's decision with the network's numbers."""
    if entry is None:
        return keep_layer(layer, "excluded")
    if entry.method == "keep":
        return keep_layer(layer, entry.reason if entry.reason in KEPT else "plan")
    return replace_layer(layer, entry.method, entry.ranks, "plan" if entry.reason in KEPT else entry.reason)
