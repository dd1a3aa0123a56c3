"""Costs of all registered networks, beside the numbers that papers print."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from torch import nn

from compress.network.conventions import CONVENTIONS, LAYER_CONVENTIONS, layers_number, published_number
from compress.network.layers import LayerInfo, list_layers
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.zoo.published import PUBLISHED, Published, Reduction
from compress.zoo.registry import NetworkEntry, build, entries, get_entry


@dataclass(frozen=True)
class PublishedNumbers:
    """What a paper prints of a network.

    Attributes
    ----------
    params : int or None
        Parameters.
    operations : float or None
        Operations, in ``unit``.
    convention : str
        How the paper counts: a key of `compress.network.conventions.CONVENTIONS`.
    unit : str
        Unit of the operations, such as ``"GFLOPs"``.
    counted : float or None
        Operations of the network here, counted by the same convention.
    where : str
        Table or section of the paper.
    reason : str
        Why the count here deviates, where it does.
    """

    params: int | None
    operations: float | None
    convention: str
    unit: str
    counted: float | None
    where: str
    reason: str


@dataclass(frozen=True)
class Deviation:
    """Relative deviations of the counts here from the printed ones; None where nothing is printed."""

    params: float | None
    operations: float | None


@dataclass(frozen=True)
class NetworkCounts:
    """A registered network with its costs.

    Attributes
    ----------
    name : str
        The network, or a variant of it that a paper prints numbers of.
    network : str
        Name in the registry.
    paper, source : str
        Where it is from.
    summary : str
        What it is.
    params, macs : int
        Parameters, and executed multiply-adds at ``input``.
    input : (int, int)
        Height and width.
    options : dict
        Options of the network, as the registry takes them.
    weights : bool
        Whether trained weights ship with the package.
    published : PublishedNumbers or None
        What is printed of it.
    deviation : Deviation
        Of the counts from the printed ones.
    """

    name: str
    network: str
    paper: str
    summary: str
    source: str
    params: int
    macs: int
    input: tuple[int, int]
    options: dict[str, Any]
    weights: bool
    published: PublishedNumbers | None
    deviation: Deviation


class _Counter:
    """Builds a variant of a network once and runs it once per input size; only the last few are kept."""

    def __init__(self) -> None:
        self.layers = lru_cache(4)(self._layers)
        self.module = lru_cache(4)(self._module)

    def _module(self, name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
        return build(NetworkSpec(name, dict(options))).eval()

    def _layers(
        self, name: str, options: tuple[tuple[str, Any], ...], input_size: tuple[int, int]
    ) -> tuple[LayerInfo, ...]:
        return list_layers(self.module(name, options), input_size)


def published_lines() -> list[tuple[NetworkEntry, Published]]:
    """Every registered network, and every variant of one that numbers are printed of."""
    return [
        (entry, line)
        for entry in entries()
        for line in [line for line in PUBLISHED if line.network == entry.name]
        or [Published(entry.name, entry.input_size)]
    ]


def count_networks(
    lines: list[tuple[NetworkEntry, Published]], progress: Callable[[str], None] | None = None
) -> tuple[NetworkCounts, ...]:
    """Count all networks, without values.

    Parameters
    ----------
    lines : list
        What `published_lines` gives.
    progress : callable, optional
        Called with the name of each network that was counted.
    """
    counter, rows = _Counter(), []
    with ShapesOnly():
        for entry, line in lines:
            rows.append(_count(entry, line, counter))
            if progress is not None:
                progress(line.label)
    return tuple(rows)


def _count(entry: NetworkEntry, line: Published, counter: _Counter) -> NetworkCounts:
    variant = line.network, tuple(line.options.items())
    module, layers = counter.module(*variant), counter.layers(*variant, line.input_size)
    if line.part:
        layers = tuple(layer for layer in layers if layer.name.startswith(f"{line.part}."))
    params = sum(p.numel() for p in module.get_submodule(line.part).parameters())
    counted: float | None = None
    if line.operations is not None and line.convention in LAYER_CONVENTIONS:
        counted = layers_number(line.convention, layers)
    elif line.operations is not None:
        counted = published_number(line.convention, module, line.input_size)
    published = PublishedNumbers(
        params=None if line.params is None else round(line.params * 1e6),
        operations=line.operations,
        convention=line.convention,
        unit=CONVENTIONS[line.convention].unit,
        counted=counted,
        where=line.where,
        reason=line.reason,
    )
    return NetworkCounts(
        name=line.label,
        network=entry.name,
        paper=entry.source,
        summary=entry.summary,
        source=entry.source,
        params=params,
        macs=sum(layer.macs for layer in layers),
        input=line.input_size,
        options={**entry.options, **line.options},
        weights=entry.weights is not None and not line.options,
        published=published if line.where else None,
        deviation=Deviation(
            _deviation(params, None if line.params is None else line.params * 1e6),
            None if counted is None else _deviation(counted, line.operations),
        ),
    )


def count_reduction(row: Reduction) -> float:
    """How many times fewer multiply-adds the part of a published saving has once factorized.

    A convolution of k x k from S to T channels becomes 1x1, k x k and 1x1 with the ranks r3 and r4, the rounded shares
    of S and T: ``k^2 S T`` multiply-adds for each output become ``S r3 + k^2 r3 r4 + r4 T`` (Kim et al., 2016, section
    3.3, at stride 1).
    """
    entry = get_entry(row.network)
    with ShapesOnly():
        layers = list_layers(build(NetworkSpec(row.network, {})).eval(), entry.input_size)
    dense = factorized = 0
    for layer in layers:
        if not layer.name.startswith(f"{row.part}."):
            continue
        outputs, inputs, *kernel = layer.weight_shape
        area = math.prod(kernel)
        dense += layer.macs
        if area == 1:
            factorized += layer.macs
            continue
        r3, r4 = (
            max(1, math.floor(Fraction(share) * channels + Fraction(1, 2)))
            for share, channels in zip(row.ratios, (inputs, outputs), strict=True)
        )
        each = inputs * r3 + area * r3 * r4 + r4 * outputs
        factorized += layer.macs * each // (area * inputs * outputs)
    return dense / factorized


def _deviation(counted: float, printed: float | None) -> float | None:
    return None if printed is None else counted / printed - 1
