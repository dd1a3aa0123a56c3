"""Runners that also record how long each step of each layer took inside the running network."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.exporters.quantise import quantise_for_timing
from compress.exporters.to_openvino import read_folded
from compress.measure.timing_graph import Settings, Step, TimedModel
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec
from compress.pose.spec import PoseSpec
from compress.runtime.openvino_runner import compile_model, shared_core
from compress.runtime.runner import Array, ArrayInputs, Runner
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.substitute import factorize_in_place
from compress.target import Target

#: Times of one run: of each step, and under None of everything else.
Record = dict[Step | None, float]

# OpenVINO's counters are whole microseconds of a mean over all runs, so late runs are known less precisely.
_COUNTED = 32

# Names of our nodes, wherever a runtime puts them in names of its own.
_STEP = re.compile(r"step-\d+-\d+-")


class Stopwatch:
    """Seconds that stand still while records are read."""

    def __init__(self) -> None:
        self._paused = 0.0

    def __call__(self) -> float:
        """The time."""
        return time.perf_counter() - self._paused

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Do not count the time of the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start


class RecordingRunner(Runner, Protocol):
    """A runner that records the time of each step."""

    def records(self) -> list[Record]:
        """Milliseconds of each run; ends the recording."""
        ...


class OpenVinoRecorder:
    """A timed graph on OpenVINO with performance counters.

    Parameters
    ----------
    model : TimedModel
        The graph.
    inputs : sequence of InputSpec
        What each run is given.
    target : Target
        Device and precision.
    threads : int or None
        CPU threads.
    stopwatch : Stopwatch
        Stands still while counters are read.
    """

    name = "openvino"
    pose: PoseSpec | None = None

    def __init__(
        self, model: TimedModel, inputs: Sequence[InputSpec], target: Target, threads: int | None, stopwatch: Stopwatch
    ) -> None:
        graph = read_folded(model.data)
        if target.int8:
            shape = inputs[0].shape
            graph = quantise_for_timing(graph, (shape[-2], shape[-1]))
        graph.reshape({port: list(spec.shape) for port, spec in zip(graph.inputs, inputs, strict=True)})
        self.device, self.precision = target.device, target.precision
        self._compiled = compile_model(shared_core(), graph, target.device, target.precision, threads, PERF_COUNT=True)
        self._request = self._compiled.create_infer_request()
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS")) if self.device == "cpu" else 1
        self._steps = model.nodes
        self._stopwatch = stopwatch
        self._counters: list[NDArray[np.float64]] = []  # microseconds, one array for each run
        self._owners: list[Step | None] = []

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Run the network; its outputs are meaningless and are not returned."""
        self._request.infer(_listed(inputs), share_inputs=True, share_outputs=True)
        if len(self._counters) == _COUNTED:
            return {}
        with self._stopwatch.pause():
            nodes = self._request.profiling_info
            if not self._owners:
                self._owners = [_owner(node.node_name, self._steps) for node in nodes]
            self._counters.append(np.array([node.real_time.total_seconds() * 1e6 for node in nodes]))
        return {}

    def executed_types(self) -> dict[Step, str]:
        """The arithmetic in which each step of a convolution ran last, as the device names it."""
        nodes = [node for node in self._request.profiling_info if "Convolution" in node.node_type]
        owned = [(_owner(node.node_name, self._steps), node.exec_type) for node in nodes]
        return {step: kind for step, kind in owned if step is not None}

    def records(self) -> list[Record]:
        """Milliseconds of each run."""
        counters = np.stack(self._counters)  # [runs, nodes]
        if self.device == "cpu":
            # The CPU plugin reports the mean over all runs so far in whole microseconds, rounded down.
            runs = np.arange(1, len(counters) + 1)[:, None]
            halves = 0.5 * (counters.max(axis=0) > 0)  # nodes that were fused into others never ran
            counters = np.diff((counters + halves) * runs, axis=0, prepend=0.0)
        return [_summed(zip(self._owners, row, strict=True), 1e-3) for row in counters]

    def close(self) -> None:
        """Drop the compiled model."""
        del self._request, self._compiled


class OnnxRecorder:
    """A timed graph on onnxruntime with its profiler; parameters as of `OpenVinoRecorder`."""

    name = "onnxruntime"
    pose: PoseSpec | None = None

    def __init__(self, model: TimedModel, target: Target, threads: int | None) -> None:
        import onnxruntime

        self._folder = tempfile.TemporaryDirectory()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[target.device]
        self._session = onnxruntime.InferenceSession(model.data, options, providers=[provider])
        self._names = [port.name for port in self._session.get_inputs()]
        self.device, self.precision = target.device, target.precision
        self.threads = threads or 0
        self._model = model

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Run the network; its outputs are meaningless and are not returned."""
        self._session.run(None, dict(zip(self._names, _listed(inputs), strict=True)))
        return {}

    def records(self) -> list[Record]:
        """Milliseconds of each run."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        runs = sorted((x["ts"], x["ts"] + x["dur"]) for x in events if x.get("name") == "model_run")
        kernels = sorted(
            (x for x in events if x.get("cat") == "Node" and x["name"].endswith("_kernel_time")), key=lambda x: x["ts"]
        )
        return [_summed(self._owned([x for x in kernels if start <= x["ts"] <= end]), 1e-3) for start, end in runs]

    def _owned(self, kernels: list[dict[str, Any]]) -> Iterator[tuple[Step | None, float]]:
        """The step and time of each kernel; a change of layout counts for the step that it serves."""
        owners = [self._owner(x["name"].removesuffix("_kernel_time")) for x in kernels]
        for index, kernel in enumerate(kernels):
            owner, kind = owners[index], kernel["args"].get("op_name")
            if kind == "ReorderOutput" and index > 0:
                owner = owners[index - 1]
            elif kind == "ReorderInput" and index + 1 < len(kernels):
                owner = owners[index + 1]
            yield owner, float(kernel["dur"])

    def _owner(self, name: str) -> Step | None:
        # Convolutions in blocked layout are named after their output, all others keep the node's name.
        value, blocked, _ = name.rpartition("_nchwc")
        return self._model.outputs.get(value) if blocked else _owner(name, self._model.nodes)

    def close(self) -> None:
        """Drop the session."""
        del self._session
        self._folder.cleanup()


class TorchRecorder:
    """A network on torch with hooks around the steps of its layers.

    Parameters
    ----------
    model : Model
        The original network; it stays as it was.
    names : sequence of str
        Layers to time.
    settings : mapping
        Layers to replace, as of `TimingGraph.make`.
    target : Target
        Device and precision.
    threads : int or None
        CPU threads.
    """

    name = "torch"
    pose: PoseSpec | None = None

    def __init__(
        self, model: Model, names: Sequence[str], settings: Settings, target: Target, threads: int | None
    ) -> None:
        marks: list[tuple[Step, Any, Any]] = []
        mark = _mark_gpu if target.device == "cuda" else time.perf_counter
        copy = factorize_in_place(duplicate(model.module), settings)
        for name in names:
            layer = copy.get_submodule(name)
            for index, part in enumerate(list(layer.children()) if name in settings else [layer]):
                _watch(part, (name, index), marks, mark)
        self._runner = TorchRunner.of(replace(model, module=copy), target, threads=threads)
        self._marks = marks
        self._records: list[Record] = []
        self.device, self.precision, self.threads = target.device, target.precision, self._runner.threads

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Outputs of the network."""
        self._marks.clear()
        start = time.perf_counter()
        outputs = self._runner.run(inputs)
        whole = (time.perf_counter() - start) * 1e3
        spans = [(step, _span_ms(begin, end)) for step, begin, end in self._marks]
        self._records.append(_summed([*spans, (None, max(0.0, whole - sum(ms for _, ms in spans)))], 1.0))
        return outputs

    def records(self) -> list[Record]:
        """Milliseconds of each run."""
        return self._records

    def close(self) -> None:
        """Drop the network."""
        self._runner.close()


def _listed(inputs: ArrayInputs) -> list[Any]:
    return list(inputs) if isinstance(inputs, tuple) else [inputs]


def _watch(part: nn.Module, step: Step, marks: list[tuple[Step, Any, Any]], mark: Callable[[], Any]) -> None:
    started: list[Any] = []

    def before(*_: Any) -> None:
        started.append(mark())

    def after(*_: Any) -> None:
        marks.append((step, started.pop(), mark()))

    part.register_forward_pre_hook(before)
    part.register_forward_hook(after)


def _mark_gpu() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _span_ms(begin: Any, end: Any) -> float:
    """Between two marks; a run on a GPU ends when its outputs have been copied, so its events are complete."""
    return float(begin.elapsed_time(end)) if isinstance(begin, torch.cuda.Event) else (end - begin) * 1e3


def _owner(name: str, steps: Mapping[str, Step]) -> Step | None:
    match = _STEP.search(name)
    return steps.get(match.group()) if match else None


def _summed(times: Iterable[tuple[Step | None, float]], scale: float) -> Record:
    record: Record = defaultdict(float)
    for owner, duration in times:
        record[owner] += float(duration) * scale
    return dict(record)
