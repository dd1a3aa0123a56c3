"""Latency of each layer in each form, measured inside the running network.

A layer timed alone in a loop finds its input and weights in the cache and its threads awake; in the network it does
not. So whole networks are run, in each of which every layer has one form and one set of ranks, and the time of every
step comes from the runtime's own profile. All variants run interleaved with the original.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compress.errors import UsageError
from compress.forms.registry import forms_for
from compress.measure.latency import RoundOptions, measure_interleaved
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
from compress.measure.recording_runners import (
    OnnxRecorder,
    OpenVinoRecorder,
    RecordingRunner,
    Stopwatch,
    TorchRecorder,
)
from compress.measure.timing_graph import Settings, Step, TimingGraph
from compress.model import Model
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner
from compress.target import Target

#: Quantile of all times of a step, or of a network, that is taken: interference only ever adds time.
QUANTILE = 0.2

#: Maximum bytes of weights of all networks that are in memory at once.
HELD_BYTES = 1 << 30


@dataclass(frozen=True)
class VariantTimingOptions:
    """How layers are timed.

    Attributes
    ----------
    threads : int or None
        CPU threads; the runtime's default otherwise.
    rounds : int
        Each times every variant once.
    budget_s : float
        Start no round after this many seconds (four are run in any case).
    align : int or None
        Ranks cost the same up to multiples of it; the width of the CPU's vectors otherwise.
    cache : Path or None
        Folder of measurements; `cache_folder` otherwise.
    fresh : bool
        Measure again what the cache contains.
    """

    threads: int | None = None
    rounds: int = 16
    budget_s: float = 90.0
    align: int | None = None
    cache: Path | None = None
    fresh: bool = False


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
        Names of the forms to measure; all that a layer can have otherwise.

    Returns
    -------
    dict
        For `measure_variants`.
    """
    listed = {x.name: settings for x in layers if x.name in names and (settings := _settings(x, align, methods))}
    count = max((len(settings) for settings in listed.values()), default=0)
    return {
        f"variant {index}": {
            name: settings[(index + place) % len(settings)] for place, (name, settings) in enumerate(listed.items())
        }
        for index in range(count)
    }


def measure_variants(
    model: Model,
    target: Target,
    variants: Mapping[str, Settings],
    *,
    options: VariantTimingOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time all layers of a network in many forms, at the shapes of its inputs.

    Parameters
    ----------
    model : Model
        The network; it is only read.
    target : Target
        Runtime, device and precision.
    variants : mapping of str to Settings
        What layers become in each variant, for example from `spread_variants`.
    options : VariantTimingOptions, optional
        Rounds, threads and the cache.
    progress : callable, optional
        Called as ``progress(rounds done, all rounds)``, not at all if nothing is left to measure.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the runtime, the device or the precision.
    UsageError
        If ``ORIGINAL`` names a variant, or a count is out of range.
    CheckpointError
        If a layer can't have its form.
    """
    options = options or VariantTimingOptions()
    rounds, align, threads = options.rounds, options.align, options.threads
    if ORIGINAL in variants:
        raise UsageError("a variant can't have this label", found=ORIGINAL, hint="Choose another")
    if rounds < 1 or (align is not None and align < 1):
        raise UsageError("rounds and align must be at least 1", found=(rounds, align))
    layers = model.layers
    path = cache_file(options.cache or cache_folder(), layers, model.size, target, threads)
    known = load_measured(path)
    wanted = {ORIGINAL: {}, **variants}
    missing = {
        label: settings for label, settings in wanted.items() if options.fresh or settings_key(settings) not in known
    }
    if missing:
        known |= _VariantTimer(model, target, threads).measure(missing, rounds, options.budget_s, progress)
        save_measured(path, known)
    measured = {label: known[settings_key(settings)] for label, settings in wanted.items()}
    return make_table(layers, target, align or vector_channels(), wanted, measured)


@dataclass(frozen=True)
class _VariantTimer:
    """Runs variants of a network on a target, some at a time."""

    model: Model
    target: Target
    threads: int | None

    def measure(
        self,
        variants: Mapping[str, Settings],
        rounds: int,
        budget_s: float,
        progress: Callable[[int, int], None] | None,
    ) -> dict[str, Measured]:
        """Measurements by `settings_key`."""
        layers = self.model.layers
        graph = None if self.target.runtime == "torch" else TimingGraph(self.model)
        # Layers that the exporter merged with others can't be timed: they stay as they are, and out of the table.
        merged = set() if graph is None else {x.name for x in layers} - set(graph.placed)
        timed = {
            label: {name: form for name, form in settings.items() if name not in merged}
            for label, settings in variants.items()
        }
        groups = self._groups(timed)
        measured: dict[str, Measured] = {}
        for index, group in enumerate(groups):

            def advance(done: int, most: int, index: int = index) -> None:
                if progress is not None:
                    progress(index * most + done, len(groups) * most)

            measured |= self._measure_group(graph, group, rounds, budget_s / len(groups), advance)
        return {settings_key(settings): measured[settings_key(timed[label])] for label, settings in variants.items()}

    def _groups(self, variants: Mapping[str, Settings]) -> list[dict[str, Settings]]:
        """Variants that are in memory at once."""
        size = sum(x.numel() * x.element_size() for x in self.model.module.parameters())
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
            # As users run it, without recording: it sets the scale, and raises where this machine lacks the target.
            plain = self._plain(graph, stack)
            wanted = {ORIGINAL: {}, **variants}
            recorders = {label: self._recorder(graph, settings, stopwatch) for label, settings in wanted.items()}
            for runner in recorders.values():
                stack.callback(runner.close)
            timings = measure_interleaved(
                {"": plain, **recorders},
                self.model.inputs,
                RoundOptions(rounds, min_rounds=min(4, rounds), warmup=2, half_width=0.0, budget_s=budget_s),
                clock=stopwatch,
                progress=progress,
            )
            recorded = {label: runner.records() for label, runner in recorders.items()}
        # The ratio of two networks that both record is taken, so that the cost of recording cancels.
        times = {timing.model: float(np.quantile(timing.samples_ms, QUANTILE)) for timing in timings}
        return {
            settings_key(settings): _measured(recorded[label], times[label] / times[ORIGINAL] * times[""], times[""])
            for label, settings in wanted.items()
        }

    def _plain(self, graph: TimingGraph | None, stack: ExitStack) -> Runner:
        model, target, threads = self.model, self.target, self.threads
        if graph is None:
            runner = open_runner(model, target, threads=threads)
        else:
            path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "network.onnx"
            graph.write(path)
            runner = open_on_target(path, target, model.size, threads=threads)
        stack.callback(runner.close)
        return runner

    def _recorder(self, graph: TimingGraph | None, settings: Settings, stopwatch: Stopwatch) -> RecordingRunner:
        if graph is None:
            names = [layer.name for layer in self.model.layers if layer.calls]
            return TorchRecorder(self.model, names, settings, self.target, self.threads)
        made = graph.make(settings)
        if self.target.runtime == "openvino":
            return OpenVinoRecorder(made, self.model.inputs, self.target, self.threads, stopwatch)
        return OnnxRecorder(made, self.target, self.threads)


def _measured(records: Sequence[Mapping[Step | None, float]], whole_ms: float, original_ms: float) -> Measured:
    """Times of steps without interference, scaled to the measured whole."""
    warm = records[2:] or records
    owners = {owner for record in warm for owner in record}
    times = {
        owner: max(0.0, float(np.quantile([record.get(owner, 0.0) for record in warm], QUANTILE))) for owner in owners
    }
    scale = whole_ms / (sum(times.values()) or 1.0)
    steps = {owner: ms * scale for owner, ms in times.items() if owner is not None}
    return Measured(whole_ms, original_ms, steps, times.get(None, 0.0) * scale)


def _settings(layer: LayerInfo, align: int, methods: Collection[str] | None) -> Sequence[tuple[str, tuple[int, ...]]]:
    """Each form of a layer at a few ranks, without repetition."""
    if not layer.plain or not layer.calls:
        return ()
    shape = layer_kernel(layer)
    chosen = {
        (form.name, form.clip(shape, ranks)): None
        for form in forms_for(layer)
        if methods is None or form.name in methods
        for ranks in form.timed_ranks(layer, shape, align)
    }
    return tuple(chosen)
