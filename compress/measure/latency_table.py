"""Latency of a network's layers in any form and ranks, interpolated between measured ranks.

A form with ranks ``r1, r2, ...`` is a chain of steps; the work of each is proportional to the product of the ranks on
both sides of it, which the runtime rounds up to the width of its vectors. Between measured ranks a step's time is
linear in that product. Layers of one shape share their measurements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from compress.errors import UsageError
from compress.measure.latency_cache import Measured
from compress.measure.timing_graph import Settings
from compress.network.layers import LayerInfo
from compress.target import Target

#: Label of the original network.
ORIGINAL = "original"

#: Work and milliseconds of each step of a form.
_Point = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True)
class Curve:
    """Time of one step of a form by the product of its ranks.

    Attributes
    ----------
    work : array, shape (n,)
        Products of the ranks on both sides of the step, rounded up; rising.
    latency_ms : array, shape (n,)
        Non-decreasing.
    """

    work: NDArray[np.float64]
    latency_ms: NDArray[np.float64]

    def at(self, work: float) -> float:
        """Milliseconds, linear between measured points and beyond them; at least half of proportional."""
        x, y = self.work, self.latency_ms
        if x[0] <= work <= x[-1]:
            return float(np.interp(work, x, y))
        near, far = (0, 1) if work < x[0] else (-1, -2)
        slope = (y[near] - y[far]) / (x[near] - x[far]) if len(x) > 1 else y[near] / x[near]
        return float(max(y[near] + slope * (work - x[near]), 0.5 * y[near] * min(1.0, work / x[near])))


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of a network's layers, and interpolated ones.

    Attributes
    ----------
    target : Target
        Where it was measured.
    align : int
        Ranks are rounded up to multiples of it before times are looked up.
    original_ms : float
        Of the original network.
    rest_ms : float
        Of everything in it outside all layers.
    layers_ms : mapping of str to float
        Of each layer in the original; with ``rest_ms`` they add up to ``original_ms``.
    curves : mapping of (str, str) to tuple of Curve
        By layer and method: the form's steps.
    whole_ms : mapping of str to float
        Of each measured variant.
    """

    target: Target
    align: int
    original_ms: float
    rest_ms: float
    layers_ms: Mapping[str, float]
    curves: Mapping[tuple[str, str], tuple[Curve, ...]] = field(repr=False)
    whole_ms: Mapping[str, float]

    def latency_ms(self, name: str, method: str, ranks: tuple[int, ...]) -> float:
        """Time of a layer in a form.

        Parameters
        ----------
        name : str
            The layer.
        method : str
            ``"keep"``, or the name of a form.
        ranks : tuple of int
            As in a plan.

        Raises
        ------
        UsageError
            If that layer was not measured in that form.
        """
        if method == "keep" and name in self.layers_ms:
            return self.layers_ms[name]
        if (name, method) not in self.curves:
            raise UsageError(f"the layer {name} was not timed in this form", found=method)
        works = _works(ranks, self.align)
        return sum(curve.at(work) for curve, work in zip(self.curves[name, method], works, strict=True))

    def total_ms(self, settings: Settings) -> float:
        """Predicted time of the whole network with some layers in other forms."""
        keep: tuple[str, tuple[int, ...]] = ("keep", ())
        return self.rest_ms + sum(self.latency_ms(name, *settings.get(name, keep)) for name in self.layers_ms)


def make_table(
    layers: Sequence[LayerInfo],
    target: Target,
    align: int,
    variants: Mapping[str, Settings],
    measured: Mapping[str, Measured],
) -> LatencyTable:
    """The table of measured variants.

    Parameters
    ----------
    layers : sequence of LayerInfo
        All layers of the network.
    target : Target
        Where it was measured.
    align : int
        As of `LatencyTable`.
    variants : mapping of str to Settings
        What layers become in each; `ORIGINAL` is among them.
    measured : mapping of str to Measured
        Of the same labels.
    """
    original = measured[ORIGINAL]
    shapes = {layer.name: _shape(layer) for layer in layers}
    whole: dict[object, list[float]] = defaultdict(list)
    points: dict[tuple[object, str], list[_Point]] = defaultdict(list)
    for label, entry in measured.items():
        # At another time the machine may have been faster or slower: the original shows by how much.
        scale = original.whole_ms / entry.original_ms
        steps: dict[str, dict[int, float]] = defaultdict(dict)
        for (name, index), ms in entry.steps.items():
            steps[name][index] = ms * scale
        for name, times_by_step in steps.items():
            if name in variants[label]:
                method, ranks = variants[label][name]
                times = tuple(times_by_step.get(index, 0.0) for index in range(len(ranks) + 1))
                points[shapes[name], method].append((_works(ranks, align), times))
            elif label == ORIGINAL:
                whole[shapes[name]].append(sum(times_by_step.values()))
    timed = {name for name, _ in original.steps}
    layers_ms = {name: float(np.mean(whole[shape])) for name, shape in shapes.items() if name in timed}
    curves = {
        (name, method): tuple(_curve(listed, index) for index in range(len(listed[0][0])))
        for (shape, method), listed in points.items()
        for name in timed
        if shapes[name] == shape
    }
    scaled = {label: entry.whole_ms * (original.whole_ms / entry.original_ms) for label, entry in measured.items()}
    return LatencyTable(target, align, original.whole_ms, original.rest_ms, layers_ms, curves, scaled)


def _shape(layer: LayerInfo) -> tuple[object, ...]:
    """What determines the latency of a layer."""
    return (
        layer.kind, layer.weight_shape, layer.stride, layer.padding, layer.dilation, layer.groups, layer.bias,
        layer.input_size, layer.input_positions, layer.output_positions, layer.calls,
    )  # fmt: skip


def _works(ranks: Sequence[int], align: int) -> tuple[float, ...]:
    """For each step of a form the product of the ranks beside it, rounded up to whole vectors."""
    sides = [1, *(-(-rank // align) * align for rank in ranks), 1]
    return tuple(float(before * after) for before, after in pairwise(sides))


def _curve(listed: Sequence[_Point], index: int) -> Curve:
    """Times of a step by work: means at equal work, then made non-decreasing by pooling adjacent violators."""
    times: dict[float, list[float]] = defaultdict(list)
    for works, latencies in listed:
        times[works[index]].append(latencies[index])
    work = sorted(times)
    blocks: list[list[float]] = []  # mean, weight, points
    for value in work:
        blocks.append([float(np.mean(times[value])), float(len(times[value])), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, weight, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * weight) / (before[1] + weight)
            before[1] += weight
            before[2] += count
    rising = np.concatenate([np.full(int(count), mean) for mean, _, count in blocks])
    return Curve(np.array(work), rising)
