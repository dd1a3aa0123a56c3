"""How long each layer takes in each form, measured inside the running network.

A layer timed alone in a loop finds its input and weights in the cache and its threads awake; in the network it does
not. So whole networks are run, in each of which every layer has one form and one set of ranks, and the runtime's own
records tell the time of every step. All variants run interleaved with the original.

A form with ranks ``r1, r2, ...`` is a chain of steps; the work of each is proportional to the product of the ranks
beside it, which the runtime rounds up to the width of its vectors. Between measured ranks a step's time is linear in
that product. Layers of one shape share their measurements.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from compress.errors import UsageError
from compress.export.to_openvino import write_ir
from compress.measure.latency import measure_interleaved
from compress.measure.latency_cache import (
    Measured, cache_file, cache_folder, load_measured, save_measured, settings_key,
)  # fmt: skip
from compress.measure.machine import vector_channels
from compress.measure.profiled import Profiled, ProfiledOnnx, ProfiledOpenVino, ProfiledTorch, Stopwatch
from compress.measure.timing_graph import Settings, Step, TimingGraph
from compress.model.factors import clip_ranks, factorized_cost, full_ranks, layer_kernel, methods_for
from compress.model.layers import LayerInfo, list_layers
from compress.pose.spec import PoseSpec
from compress.ranks.budget import Target
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner

#: Label of the network as it is.
ORIGINAL = "original"

#: Shares of a layer's MACs at which forms with one rank are measured, and of its channels for Tucker-2.
SHARES = (0.25, 0.5, 0.8)

#: Networks that are held at once may have so many bytes of weights in all.
HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class Curve:
    """Time of one step of a form by the product of its ranks.

    Attributes
    ----------
    work : array, shape (n,)
        Products of the ranks on both sides of the step, rounded up; rising.
    latency_ms : array, shape (n,)
        Never falling.
    """

    work: NDArray[np.float64]
    latency_ms: NDArray[np.float64]

    def at(self, work: float) -> float:
        """Milliseconds, linear between measured points and beyond them; never below half of proportional."""
        x, y = self.work, self.latency_ms
        if x[0] <= work <= x[-1]:
            return float(np.interp(work, x, y))
        near, far = (0, 1) if work < x[0] else (-1, -2)
        slope = (y[near] - y[far]) / (x[near] - x[far]) if len(x) > 1 else y[near] / x[near]
        return float(max(y[near] + slope * (work - x[near]), 0.5 * y[near] * min(1.0, work / x[near])))


@dataclass(frozen=True)
class LatencyTable:
    """Measured latencies of a network's layers, and those in between.

    Attributes
    ----------
    target : Target
        Where it was measured.
    align : int
        Ranks are rounded up to multiples of it before times are looked up.
    original_ms : float
        Of the whole network as it is.
    rest_ms : float
        Of everything in it that belongs to no layer.
    layers_ms : mapping of str to float
        Of each layer as it is; with ``rest_ms`` they add up to ``original_ms``.
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
            A key of `compress.plan.METHODS`.
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


def spread_variants(
    layers: Sequence[LayerInfo], names: Collection[str], *, align: int, methods: Collection[str] | None = None
) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Variants in which each layer takes each of its forms at a few ranks.

    Neighbours have different forms in the same variant, as they do in a plan.

    Parameters
    ----------
    layers : sequence of LayerInfo
        All layers of the network.
    names : collection of str
        Layers that may be replaced.
    align : int
        Ranks are multiples of it where the layer is wide enough.
    methods : collection of str, optional
        Forms to measure; without it all that a layer can have.

    Returns
    -------
    dict
        For `measure_variants`.
    """
    listed = {x.name: found for x in layers if x.name in names and (found := list(_settings(x, align, methods)))}
    count = max((len(found) for found in listed.values()), default=0)
    return {
        f"variant {index}": {
            name: found[(index + place) % len(found)] for place, (name, found) in enumerate(listed.items())
        }
        for index in range(count)
    }


def measure_variants(
    module: nn.Module,
    pose: PoseSpec,
    input_size: tuple[int, int],
    target: Target,
    variants: Mapping[str, Settings],
    *,
    threads: int | None = None,
    rounds: int = 12,
    budget_s: float = 90.0,
    align: int | None = None,
    cache: Path | None = None,
    fresh: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time all layers of a network in many forms.

    Parameters
    ----------
    module : nn.Module
        The network; it is only read.
    pose : PoseSpec
        What it expects and gives.
    input_size : (int, int)
        H and W.
    target : Target
        Runtime, device and precision.
    variants : mapping of str to Settings
        What layers become in each variant, for example from `spread_variants`.
    threads : int, optional
        CPU threads; what the runtime takes by default.
    rounds : int
        Each times every variant once.
    budget_s : float
        Start no round after this many seconds (four are run in any case).
    align : int, optional
        Width of the steps in which ranks cost; without it that of the CPU's vectors.
    cache : Path, optional
        Folder of measurements; `cache_folder` by default.
    fresh : bool
        Measure anew what the cache knows.
    progress : callable, optional
        Called as ``progress(rounds done, all rounds)``, not at all if nothing is left to measure.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the runtime, the device or the precision.
    UsageError
        If ``ORIGINAL`` names a variant, or a count makes no sense.
    CheckpointError
        If a layer can't have its form.
    """
    if ORIGINAL in variants or rounds < 1 or (align is not None and align < 1):
        raise UsageError("variants have names of their own; rounds and align are at least 1", found=(rounds, align))
    layers = list_layers(module, input_size)
    path = cache_file(cache or cache_folder(), layers, input_size, target, threads)
    known = {} if fresh else load_measured(path)
    wanted = {ORIGINAL: {}, **variants}
    missing = {label: settings for label, settings in wanted.items() if settings_key(settings) not in known}
    if missing:
        work = _Work(module, pose, (1, 3, *input_size), target, threads, layers)
        known |= work.measure(missing, rounds, budget_s, progress)
        save_measured(path, known)
    measured = {label: known[settings_key(settings)] for label, settings in wanted.items()}
    return _table(layers, target, align or vector_channels(), wanted, measured)


@dataclass(frozen=True)
class _Work:
    module: nn.Module
    pose: PoseSpec
    shape: tuple[int, int, int, int]
    target: Target
    threads: int | None
    layers: Sequence[LayerInfo]

    def measure(
        self,
        variants: Mapping[str, Settings],
        rounds: int,
        budget_s: float,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, Measured]:
        """Measurements by `settings_key`."""
        graph = None if self.target.runtime == "torch" else TimingGraph(self.module, self.pose, self.layers)
        groups = self._groups(variants)
        found: dict[str, Measured] = {}
        for index, group in enumerate(groups):

            def advance(done: int, most: int, index: int = index) -> None:
                if progress is not None:
                    progress(index * most + done, len(groups) * most)

            found |= self._measure_group(graph, group, rounds, budget_s / len(groups), advance)
        return found

    def _groups(self, variants: Mapping[str, Settings]) -> list[dict[str, Settings]]:
        """Variants that are held at once."""
        size = sum(x.numel() * x.element_size() for x in self.module.parameters())
        most = max(1, HELD_BYTES // max(1, size) - 2)
        labels = [label for label in variants if label != ORIGINAL]
        parts = [labels[start : start + most] for start in range(0, len(labels), most)] or [[]]
        return [{label: variants[label] for label in part} for part in parts]

    def _measure_group(
        self,
        graph: TimingGraph | None,
        variants: Mapping[str, Settings],
        rounds: int,
        budget_s: float,
        progress: Callable[[int, int], None],
    ) -> dict[str, Measured]:
        stopwatch = Stopwatch()
        with ExitStack() as stack:
            # As users run it, without records: it sets the scale, and refuses what this machine does not have.
            plain = self._plain(graph, stack)
            wanted = {ORIGINAL: {}, **variants}
            profiled = {label: self._profiled(graph, settings, stopwatch) for label, settings in wanted.items()}
            for runner in profiled.values():
                stack.callback(runner.close)
            timings = measure_interleaved(
                {"": plain, **profiled},
                self.shape,
                rounds=rounds,
                min_rounds=min(4, rounds),
                warmup=2,
                half_width=0.0,
                budget_s=budget_s,
                clock=stopwatch,
                progress=progress,
            )
            recorded = {label: runner.records() for label, runner in profiled.items()}
        times = {timing.model: np.array(timing.samples_ms) for timing in timings}
        # What recording costs, taken within rounds.
        factor = float(np.median(times[""] / times[ORIGINAL]))
        original_ms = float(np.median(times[ORIGINAL])) * factor
        return {
            settings_key(settings): _measured(
                recorded[label], float(np.median(times[label] / times[ORIGINAL])) * original_ms, original_ms
            )
            for label, settings in wanted.items()
        }

    def _plain(self, graph: TimingGraph | None, stack: ExitStack) -> Runner:
        where: dict[str, Any] = {
            "device": self.target.device, "precision": self.target.precision, "threads": self.threads,
        }  # fmt: skip
        if graph is None:
            runner: Runner = TorchRunner(self.module, self.pose, **where)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            path = folder / "network.onnx"
            graph.write(path)
            if self.target.runtime == "openvino":
                path = folder / "network.xml"
                write_ir(folder / "network.onnx", path)
            runner = open_runner(path, **where)
        stack.callback(runner.close)
        return runner

    def _profiled(self, graph: TimingGraph | None, settings: Settings, stopwatch: Stopwatch) -> Profiled:
        if graph is None:
            names = [layer.name for layer in self.layers if layer.calls]
            return ProfiledTorch(self.module, names, settings, self.target, self.threads, self.pose)
        if self.target.runtime == "openvino":
            return ProfiledOpenVino(graph.make(settings), self.shape, self.target, self.threads, self.pose, stopwatch)
        return ProfiledOnnx(graph.make(settings), self.target, self.threads, self.pose)


def _measured(records: Sequence[Mapping[Step | None, float]], whole_ms: float, original_ms: float) -> Measured:
    """Median times of steps, scaled to the measured whole."""
    warm = records[2:] or records
    owners = {owner for record in warm for owner in record}
    medians = {owner: max(0.0, float(np.median([record.get(owner, 0.0) for record in warm]))) for owner in owners}
    scale = whole_ms / (sum(medians.values()) or 1.0)
    steps = {owner: ms * scale for owner, ms in medians.items() if owner is not None}
    return Measured(whole_ms, original_ms, steps, medians.get(None, 0.0) * scale)


def _table(
    layers: Sequence[LayerInfo],
    target: Target,
    align: int,
    variants: Mapping[str, Settings],
    measured: Mapping[str, Measured],
) -> LatencyTable:
    original = measured[ORIGINAL]
    alike: dict[Any, list[str]] = defaultdict(list)
    for layer in layers:
        alike[_shape(layer)].append(layer.name)
    layers_ms: dict[str, float] = {}
    points: dict[tuple[Any, str], list[tuple[tuple[float, ...], tuple[float, ...]]]] = defaultdict(list)
    shapes = {layer.name: _shape(layer) for layer in layers}
    kept: dict[str, list[float]] = defaultdict(list)
    for label, entry in measured.items():
        # Measured at another time, the machine may have been faster or slower: the original tells by how much.
        scale = original.whole_ms / entry.original_ms
        by_layer: dict[str, dict[int, float]] = defaultdict(dict)
        for (name, index), ms in entry.steps.items():
            by_layer[name][index] = ms * scale
        for name, steps in by_layer.items():
            if name in variants[label]:
                method, ranks = variants[label][name]
                times = tuple(steps.get(index, 0.0) for index in range(len(ranks) + 1))
                points[shapes[name], method].append((_works(ranks, align), times))
            elif label == ORIGINAL:
                kept[name].append(sum(steps.values()))
    for names in alike.values():
        there = [name for name in names if name in kept]
        for name in there:
            layers_ms[name] = float(np.mean([kept[other][0] for other in there]))
    curves = {
        (name, method): tuple(_curve(listed, index) for index in range(len(listed[0][0])))
        for (shape, method), listed in points.items()
        for name in alike[shape]
    }
    whole = {label: entry.whole_ms * original.whole_ms / entry.original_ms for label, entry in measured.items()}
    return LatencyTable(target, align, original.whole_ms, original.rest_ms, layers_ms, curves, whole)


def _shape(layer: LayerInfo) -> tuple[object, ...]:
    """What decides how long a layer takes."""
    return (
        layer.kind, layer.weight_shape, layer.stride, layer.padding, layer.dilation, layer.groups, layer.bias,
        layer.input_size, layer.input_positions, layer.output_positions, layer.calls,
    )  # fmt: skip


def _works(ranks: Sequence[int], align: int) -> tuple[float, ...]:
    """For each step of a form the product of the ranks beside it, rounded up to whole vectors."""
    sides = [1, *(-(-rank // align) * align for rank in ranks), 1]
    return tuple(float(before * after) for before, after in zip(sides, sides[1:], strict=False))


def _curve(listed: Sequence[tuple[tuple[float, ...], tuple[float, ...]]], index: int) -> Curve:
    """Times of a step by work: means at equal work, then made never falling by pooling neighbours."""
    times: dict[float, list[float]] = defaultdict(list)
    for works, found in listed:
        times[works[index]].append(found[index])
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


def _settings(layer: LayerInfo, align: int, methods: Collection[str] | None) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Each form of a layer at a few ranks, each once."""
    if not layer.plain or not layer.calls:
        return ()
    shape = layer_kernel(layer)
    found: dict[tuple[str, tuple[int, ...]], None] = {}
    for method in methods_for(shape, layer.kind, layer.groups):
        if methods is not None and method not in methods:
            continue
        full = full_ranks(shape, method)
        if method == "tucker2":
            low, middle, high = ([_step(share * rank, rank, align) for rank in full] for share in SHARES)
            chosen = [(*low,), (*middle,), (*high,), (low[0], middle[1]), (middle[0], low[1])]
        else:
            even = layer.macs / factorized_cost(layer, method, (1,))[1]
            chosen = [(_step(share * even, full[0], align),) for share in SHARES]
        for ranks in chosen:
            if clip_ranks(shape, method, ranks) == ranks:
                found[method, ranks] = None
    return tuple(found)


def _step(rank: float, most: int, align: int) -> int:
    """The nearest whole step, or the nearest rank where a layer is narrower than a step."""
    snapped = max(1, round(rank / align)) * align
    return min(snapped if snapped < most else max(1, round(rank)), most)
