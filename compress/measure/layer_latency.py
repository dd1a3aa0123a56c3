"""How long each layer takes in each form, measured inside the running network.

A layer timed alone in a loop finds its input and weights in the cache and its threads awake; in the network it does
not. So whole networks are run, in each of which every layer has one form and one set of ranks, and the runtime's own
records tell the time of every step. All variants run interleaved with the original.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from compress.errors import UsageError
from compress.measure.latency import measure_interleaved
from compress.measure.latency_cache import (
    Measured,
    cache_file,
    cache_folder,
    load_measured,
    save_measured,
    settings_key,
)
from compress.measure.latency_table import ORIGINAL, make_table
from compress.measure.latency_table import LatencyTable as LatencyTable
from compress.measure.machine import vector_channels
from compress.measure.on_target import open_on_target
from compress.measure.profiled import Profiled, ProfiledOnnx, ProfiledOpenVino, ProfiledTorch, Stopwatch
from compress.measure.timing_graph import Settings, Step, TimingGraph
from compress.network.factors import clip_ranks, factorized_cost, full_ranks, layer_kernel, methods_for
from compress.network.layers import LayerInfo, list_layers
from compress.pose.spec import PoseSpec
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner
from compress.target import Target

#: Which of all times of a step, or of a network, is taken: whatever else runs on the machine only ever adds to them.
QUANTILE = 0.2

#: Shares of a layer's MACs at which forms with one rank are measured, and of its channels for Tucker-2.
SHARES = (0.25, 0.5, 0.8)

#: Networks that are held at once may have so many bytes of weights in all.
HELD_BYTES = 1 << 30


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
    rounds: int = 16,
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
    known = load_measured(path)
    wanted = {ORIGINAL: {}, **variants}
    missing = {label: settings for label, settings in wanted.items() if fresh or settings_key(settings) not in known}
    if missing:
        work = _Work(module, pose, (1, 3, *input_size), target, threads, layers)
        known |= work.measure(missing, rounds, budget_s, progress)
        save_measured(path, known)
    measured = {label: known[settings_key(settings)] for label, settings in wanted.items()}
    return make_table(layers, target, align or vector_channels(), wanted, measured)


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
        # Layers that the exporter merged with others can't be timed: they are left as they are, and out of the table.
        merged = set() if graph is None else {x.name for x in self.layers} - set(graph.placed)
        timed = {
            label: {name: form for name, form in settings.items() if name not in merged}
            for label, settings in variants.items()
        }
        groups = self._groups(timed)
        found: dict[str, Measured] = {}
        for index, group in enumerate(groups):

            def advance(done: int, most: int, index: int = index) -> None:
                if progress is not None:
                    progress(index * most + done, len(groups) * most)

            found |= self._measure_group(graph, group, rounds, budget_s / len(groups), advance)
        return {settings_key(settings): found[settings_key(timed[label])] for label, settings in variants.items()}

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
        # The ratio of two networks that both record is taken: what recording costs is out of it.
        times = {timing.model: float(np.quantile(timing.samples_ms, QUANTILE)) for timing in timings}
        return {
            settings_key(settings): _measured(recorded[label], times[label] / times[ORIGINAL] * times[""], times[""])
            for label, settings in wanted.items()
        }

    def _plain(self, graph: TimingGraph | None, stack: ExitStack) -> Runner:
        target, threads = self.target, self.threads
        if graph is None:
            runner: Runner = TorchRunner(
                self.module, self.pose, device=target.device, precision=target.precision, threads=threads
            )
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "network.onnx"
            graph.write(path)
            runner = open_on_target(path, target, self.shape[2:], threads=threads)
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
    """Times of steps without disturbance, scaled to the measured whole."""
    warm = records[2:] or records
    owners = {owner for record in warm for owner in record}
    times = {
        owner: max(0.0, float(np.quantile([record.get(owner, 0.0) for record in warm], QUANTILE))) for owner in owners
    }
    scale = whole_ms / (sum(times.values()) or 1.0)
    steps = {owner: ms * scale for owner, ms in times.items() if owner is not None}
    return Measured(whole_ms, original_ms, steps, times.get(None, 0.0) * scale)


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
            found[method, clip_ranks(shape, method, ranks)] = None
    return tuple(found)


def _step(rank: float, most: int, align: int) -> int:
    """The nearest whole step, or the nearest rank where a layer is narrower than a step."""
    snapped = max(1, round(rank / align)) * align
    return min(snapped if snapped < most else max(1, round(rank)), most)
