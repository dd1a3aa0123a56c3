"""List the networks that can be built by name, with their costs and what papers print of them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from torch import nn

from compress.commands.base import StageOptions, StageResult
from compress.commands.registry import Stage
from compress.network.conventions import CONVENTIONS, LAYER_CONVENTIONS, layers_number, published_number
from compress.network.layers import LayerInfo, list_layers
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.progress import Progress
from compress.zoo.published import PUBLISHED, Published
from compress.zoo.registry import NetworkEntry, build, entries


class NetworksOptions(StageOptions):
    """`compress networks` takes no options."""


class _Counter:
    """Builds a form of a network once, and runs it once an input size, whatever is counted in the rows that follow.

    Only the last few forms are kept.
    """

    def __init__(self) -> None:
        self.layers = lru_cache(4)(self._layers)
        self.module = lru_cache(4)(self._module)

    def _module(self, name: str, options: tuple[tuple[str, Any], ...]) -> nn.Module:
        return build(NetworkSpec(name, dict(options))).eval()

    def _layers(
        self, name: str, options: tuple[tuple[str, Any], ...], input_size: tuple[int, int]
    ) -> tuple[LayerInfo, ...]:
        return list_layers(self.module(name, options), input_size)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without garbage collection: it would take a third of the time, and networks without values are small."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def list_networks(options: NetworksOptions, progress: Progress) -> StageResult:
    """Every registered network, and every form of one that something is printed of."""
    lines = [
        (entry, line)
        for entry in entries()
        for line in [line for line in PUBLISHED if line.network == entry.name]
        or [Published(entry.name, entry.input_size)]
    ]
    counter, rows = _Counter(), []
    with progress.bar("counting", len(lines)) as advance, _uncollected(), ShapesOnly():
        for entry, line in lines:
            rows.append(_row(entry, line, counter))
            advance(1, line.label)
    return StageResult({"networks": rows})


def _row(entry: NetworkEntry, line: Published, counter: _Counter) -> dict[str, Any]:
    form = line.network, tuple(line.options.items())
    module, layers = counter.module(*form), counter.layers(*form, line.input_size)
    if line.part:
        layers = tuple(layer for layer in layers if layer.name.startswith(f"{line.part}."))
    params = sum(p.numel() for p in module.get_submodule(line.part).parameters())
    counted: float | None = None
    if line.operations is not None and line.convention in LAYER_CONVENTIONS:
        counted = layers_number(line.convention, layers)
    elif line.operations is not None:
        counted = published_number(line.convention, module, line.input_size)
    published = {
        "params": None if line.params is None else round(line.params * 1e6),
        "operations": line.operations,
        "convention": line.convention,
        "unit": CONVENTIONS[line.convention].unit,
        "counted": counted,
        "where": line.where,
        "reason": line.reason,
    }
    return {
        "name": line.label,
        "network": entry.name,
        "paper": entry.source,
        "summary": entry.summary,
        "source": entry.source,
        "params": params,
        "macs": sum(layer.macs for layer in layers),
        "input": list(line.input_size),
        "options": {**entry.options, **line.options},
        "weights": entry.weights is not None and not line.options,
        "published": published if line.where else None,
        "deviation": {
            "params": _deviation(params, None if line.params is None else line.params * 1e6),
            "operations": None if counted is None else _deviation(counted, line.operations),
        },
    }


def _deviation(found: float, printed: float | None) -> float | None:
    return None if printed is None else found / printed - 1


STAGE = Stage(NetworksOptions, list_networks, "compress networks")
