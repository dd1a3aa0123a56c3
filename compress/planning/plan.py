"""A plan: the form, ranks and reason of each layer. Plain JSON that may be edited by hand and applied."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from compress.errors import PlanError
from compress.forms.registry import FORMS
from compress.planning.plan_table import plan_html, plan_text

VERSION = 1

#: The method of a layer that stays as it is; all others are names of forms.
KEEP = "keep"

#: Why a layer is replaced, by where its ranks come from.
CHOSEN = {
    "ratio": "ranks are the requested share of the channels",
    "vbmf": "ranks by global analytic VBMF",
    "energy": "smallest ranks that keep the requested share of squared energy",
    "budget": "form and ranks of least error within the budget",
    "plan": "set by hand in a plan",
}

#: Why a layer stays as it is.
KEPT = {
    "excluded": "kept: left out by --include or --exclude, or not in the plan",
    "pointwise": "kept: a 1x1 convolution or linear layer; factorized only when asked for",
    "stem": "kept: reads the image itself; factorized only when named by --include",
    "depthwise": "kept: depthwise convolution",
    "grouped": "kept: grouped 1x1 convolution",
    "unsupported": "kept: a kind of layer that can't be factorized",
    "unused": "kept: the forward pass never calls it",
    "tied": "kept: a layer with the same weight is kept",
    "rank_zero": "kept: VBMF finds only noise in the kernel",
    "full_rank": "kept: the ranks would be full",
    "not_smaller": "kept: the factors would have no fewer parameters",
    "not_cheaper": "kept: the factors would cost no fewer MACs",
    "budget_kept": "kept: unchanged is optimal under the budget",
    "by_weight_only": "kept: grouped and transposed convolutions have no data-aware fit; --ratio factorizes them",
    "not_faster": "kept: measured no faster when factorized",
}

#: Every reason code with its meaning.
REASONS = CHOSEN | KEPT


@dataclass(frozen=True)
class LayerPlan:
    """The decision for one layer.

    Attributes
    ----------
    name : str
        Dotted module name (the first one of a shared module).
    method : str
        `KEEP`, or the name of a form.
    ranks : tuple of int
        As many as the form has: (r3, r4) for Tucker-2, mode 3 being input and mode 4 output channels; () for a kept
        layer.
    reason : str
        A key of `REASONS`.
    params, macs : (int, int)
        Before and after, MACs at the plan's input size.
    error : float or None
        Relative Frobenius error of the kernel, ``|W - W~| / |W|``, where it was computed.
    output_error : float or None
        Relative squared error of the layer's output on calibration images, weighted by the sensitivity of the final
        outputs to it, where it was computed.
    """

    name: str
    method: str
    ranks: tuple[int, ...]
    reason: str
    params: tuple[int, int]
    macs: tuple[int, int]
    error: float | None = None
    output_error: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise PlanError("a layer's name must be text", found=self.name)
        if self.method != KEEP and self.method not in FORMS:
            raise PlanError(
                f"unknown method for layer {self.name}", found=self.method, hint=f"Known: {', '.join((KEEP, *FORMS))}"
            )
        count = 0 if self.method == KEEP else FORMS[self.method].rank_count
        if len(self.ranks) != count:
            raise PlanError(f"layer {self.name}: the method {self.method} takes {count} rank(s)", found=self.ranks)
        if any(not isinstance(r, int) or isinstance(r, bool) or r < 1 for r in self.ranks):
            raise PlanError(f"layer {self.name}: ranks must be whole numbers from 1 on", found=self.ranks)
        if self.reason not in REASONS:
            raise PlanError(
                f"unknown reason for layer {self.name}", found=self.reason, hint=f"Known: {', '.join(REASONS)}"
            )
        for what, pair in (("params", self.params), ("macs", self.macs)):
            if len(pair) != 2 or any(not isinstance(n, int) or n < 0 for n in pair):
                raise PlanError(f"layer {self.name}: {what} are two counts, before and after", found=pair)
        for error in (self.error, self.output_error):
            if error is not None and not isinstance(error, (int, float)):
                raise PlanError(f"layer {self.name}: an error must be a number or null", found=error)


@dataclass(frozen=True)
class Plan:
    """Decisions for all convolution and linear layers of a network.

    Attributes
    ----------
    network : str
        Name of the network it was made for.
    input_size : (int, int)
        Height and width at which MACs were counted.
    layers : tuple of LayerPlan
        One for each layer, in the order of the network's modules.
    policy : dict
        How the ranks were chosen, e.g. ``{"rank": "vbmf", "weaken": 1.0}``.
    """

    network: str
    input_size: tuple[int, int]
    layers: tuple[LayerPlan, ...]
    policy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.input_size) != 2 or any(not isinstance(n, int) or n < 1 for n in self.input_size):
            raise PlanError("a plan's input size is height and width in pixels", found=self.input_size)
        if not isinstance(self.network, str) or not isinstance(self.policy, Mapping):
            raise PlanError("a plan's network is a name and its policy an object", found=(self.network, self.policy))

    @property
    def changed(self) -> tuple[LayerPlan, ...]:
        """The layers that are replaced."""
        return tuple(layer for layer in self.layers if layer.method != KEEP)

    @property
    def params(self) -> tuple[int, int]:
        """Parameters of all planned layers, before and after."""
        return sum(x.params[0] for x in self.layers), sum(x.params[1] for x in self.layers)

    @property
    def macs(self) -> tuple[int, int]:
        """MACs of all planned layers, before and after."""
        return sum(x.macs[0] for x in self.layers), sum(x.macs[1] for x in self.layers)

    def __str__(self) -> str:
        """A table of all layers with form, ranks, costs, error and reason, and the totals."""
        return plan_text(self)

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        return plan_html(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return {"format": "compress-plan", "version": VERSION, **asdict(self)}

    def to_json(self) -> str:
        """The plan as indented JSON."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote, perhaps edited by hand.

        Raises
        ------
        PlanError
            If it is not JSON, not a plan, of another version, or has an unknown key, method, rank or reason.
        """
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise PlanError(f"the plan is not JSON: {error}") from error
        return cls.from_dict(record)

    @classmethod
    def from_dict(cls, record: Any) -> Plan:
        """Read what `to_dict` wrote.

        Raises
        ------
        PlanError
            If it is not a plan, of another version, or has an unknown key, method, rank or reason.
        """
        record = dict(record) if isinstance(record, dict) else record
        if not isinstance(record, dict) or record.pop("format", None) != "compress-plan":
            raise PlanError("this file is not a plan", hint="Make one by compress factorize --save-plan")
        version = record.pop("version", None)
        if version != VERSION:
            raise PlanError(
                "the plan has an unsupported version", found=version, hint=f"This program reads version {VERSION}"
            )
        try:
            layers = tuple(_read_layer(layer) for layer in record.pop("layers"))
            return cls(layers=layers, input_size=tuple(record.pop("input_size")), **record)
        except (TypeError, KeyError, AttributeError) as error:
            raise PlanError(f"the plan has an unknown or missing key: {error}") from error


def _read_layer(record: Any) -> LayerPlan:
    values: dict[str, Any] = {key: tuple(x) if isinstance(x, list) else x for key, x in record.items()}
    return LayerPlan(**values)
