"""Runners that also tell how long each step of each layer took inside the running network."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from compress.exporters.quantise import quantise_for_timing
from compress.exporters.to_openvino import read_folded
from compress.measure.timing_graph import Settings, Step, TimedModel
from compress.network.duplicate import duplicate
from compress.pose.spec import PoseSpec
from compress.runtime.openvino_runner import shared_core
from compress.runtime.runner import Array
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.substitute import factorize_in_place
from compress.target import Target

#: Times of one run: of each step, and under None of everything else.
Record = dict[Step | None, float]

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}

# OpenVINO's counters are whole microseconds of a mean over all runs, so late runs are known less exactly.
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
        """Let the block take no time."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start


class Profiled(Protocol):
    """A runner with records."""

    name: str
    device: str
    precision: str
    threads: int
    pose: PoseSpec

    def run(self, images: Array) -> dict[str, Array]:
        """As of `compress.runtime.runner.Runner`."""
        ...

    def records(self) -> list[Record]:
        """Milliseconds of each run; ends the recording."""
        ...

    def close(self) -> None:
        """As of `compress.runtime.runner.Runner`."""
        ...


class ProfiledOpenVino:
    """A timed graph on OpenVINO with performance counters.

    Parameters
    ----------
    model : TimedModel
        The graph.
    shape : (N, 3, H, W)
        Of the input.
    target : Target
        Device and precision.
    threads : int or None
        CPU threads.
    pose : PoseSpec
        Of the network.
    stopwatch : Stopwatch
        Stands still while counters are read.
    """

    name = "openvino"

    def __init__(
        self,
        model: TimedModel,
        shape: tuple[int, int, int, int],
        target: Target,
        threads: int | None,
        pose: PoseSpec,
        stopwatch: Stopwatch,
    ) -> None:
        core = shared_core()
        graph = read_folded(model.data)
        if target.int8:
            graph = quantise_for_timing(graph, shape[2:])
        graph.reshape(list(shape))
        config: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[target.precision],
            "PERFORMANCE_HINT": "LATENCY",
            "PERF_COUNT": True,
        }
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        self.device, self.precision, self.pose = target.device, target.precision, pose
        self._compiled = core.compile_model(graph, target.device.upper(), config)
        self._request = self._compiled.create_infer_request()
        self.threads = int(self._compiled.get_property("INFERENCE_NUM_THREADS")) if self.device == "cpu" else 1
        self._steps = model.nodes
        self._stopwatch = stopwatch
        self._counters: list[NDArray[np.float64]] = []  # microseconds, one array for each run
        self._owners: list[Step | None] = []

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps, which nobody looks at."""
        self._request.infer([images], share_inputs=True, share_outputs=True)
        if len(self._counters) == _COUNTED:
            return {}
        with self._stopwatch.pause():
            found = self._request.profiling_info
            if not self._owners:
                self._owners = [_owner(x.node_name, self._steps) for x in found]
            self._counters.append(np.array([x.real_time.total_seconds() * 1e6 for x in found]))
        return {}

    def records(self) -> list[Record]:
        """Milliseconds of each run."""
        counters = np.stack(self._counters)  # [runs, nodes]
        if self.device == "cpu":
            # The CPU plugin tells the mean over all runs so far in whole microseconds, rounded down.
            runs = np.arange(1, len(counters) + 1)[:, None]
            halves = 0.5 * (counters.max(axis=0) > 0)  # what was fused into other nodes never ran
            counters = np.diff((counters + halves) * runs, axis=0, prepend=0.0)
        return [_gathered(zip(self._owners, row, strict=True), 1e-3) for row in counters]

    def close(self) -> None:
        """Drop the compiled model."""
        del self._request, self._compiled


class ProfiledOnnx:
    """A timed graph on onnxruntime with its profiler; parameters as of `ProfiledOpenVino`."""

    name = "onnxruntime"

    def __init__(self, model: TimedModel, target: Target, threads: int | None, pose: PoseSpec) -> None:
        import onnxruntime

        self._folder = tempfile.TemporaryDirectory()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(self._folder.name) / "profile")
        provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[target.device]
        self._session = onnxruntime.InferenceSession(model.data, options, providers=[provider])
        self.device, self.precision, self.pose = target.device, target.precision, pose
        self.threads = threads or 0
        self._model = model

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps, which nobody looks at."""
        self._session.run(None, {self._session.get_inputs()[0].name: images})
        return {}

    def records(self) -> list[Record]:
        """Milliseconds of each run."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        runs = sorted((x["ts"], x["ts"] + x["dur"]) for x in events if x.get("name") == "model_run")
        kernels = sorted(
            (x for x in events if x.get("cat") == "Node" and x["name"].endswith("_kernel_time")), key=lambda x: x["ts"]
        )
        return [_gathered(self._owned([x for x in kernels if start <= x["ts"] <= end]), 1e-3) for start, end in runs]

    def _owned(self, kernels: list[dict[str, Any]]) -> Iterator[tuple[Step | None, float]]:
        """Each kernel's step and time; a change of layout counts to what it is made for."""
        owners = [self._owner(x["name"].removesuffix("_kernel_time")) for x in kernels]
        for index, kernel in enumerate(kernels):
            owner, kind = owners[index], kernel["args"].get("op_name")
            if kind == "ReorderOutput" and index > 0:
                owner = owners[index - 1]
            elif kind == "ReorderInput" and index + 1 < len(kernels):
                owner = owners[index + 1]
            yield owner, float(kernel["dur"])

    def _owner(self, name: str) -> Step | None:
        # Convolutions in blocked layout are named after what they give, other ones keep the node's name.
        value, blocked, _ = name.rpartition("_nchwc")
        return self._model.outputs.get(value) if blocked else _owner(name, self._model.nodes)

    def close(self) -> None:
        """Drop the session."""
        del self._session
        self._folder.cleanup()


class ProfiledTorch:
    """A network on torch with hooks around the steps of its layers.

    Parameters
    ----------
    module : nn.Module
        The original network; it stays as it was.
    names : sequence of str
        Layers to time.
    settings : mapping
        Layers to replace, as of `TimingGraph.make`.
    target : Target
        Device and precision.
    threads : int or None
        CPU threads.
    pose : PoseSpec
        Of the network.
    """

    name = "torch"

    def __init__(
        self,
        module: nn.Module,
        names: list[str],
        settings: Settings,
        target: Target,
        threads: int | None,
        pose: PoseSpec,
    ) -> None:
        marks: list[tuple[Step, Any, Any]] = []
        mark = _mark_gpu if target.device == "cuda" else time.perf_counter
        copy = factorize_in_place(duplicate(module), settings)
        for name in names:
            layer = copy.get_submodule(name)
            for index, part in enumerate(list(layer.children()) if name in settings else [layer]):
                _watch(part, (name, index), marks, mark)
        self._runner = TorchRunner(copy, pose, device=target.device, precision=target.precision, threads=threads)
        self._marks = marks
        self._records: list[Record] = []
        self.device, self.precision, self.pose = target.device, target.precision, pose
        self.threads = self._runner.threads

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps."""
        self._marks.clear()
        start = time.perf_counter()
        maps = self._runner.run(images)
        whole = (time.perf_counter() - start) * 1e3
        spans = [(step, _span_ms(begin, end)) for step, begin, end in self._marks]
        self._records.append(_gathered([*spans, (None, max(0.0, whole - sum(ms for _, ms in spans)))], 1.0))
        return maps

    def records(self) -> list[Record]:
        """Milliseconds of each run."""
        return self._records

    def close(self) -> None:
        """Drop the network."""
        self._runner.close()


def _watch(part: nn.Module, step: Step, marks: list[tuple[Step, Any, Any]], mark: Callable[[], Any]) -> None:
    begun: list[Any] = []

    def begin(*_: Any) -> None:
        begun.append(mark())

    def end(*_: Any) -> None:
        marks.append((step, begun.pop(), mark()))

    part.register_forward_pre_hook(begin)
    part.register_forward_hook(end)


def _mark_gpu() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _span_ms(begin: Any, end: Any) -> float:
    """Between two marks; a run on a GPU is over when its maps have been copied, so its events are there."""
    return float(begin.elapsed_time(end)) if isinstance(begin, torch.cuda.Event) else (end - begin) * 1e3


def _owner(name: str, steps: Mapping[str, Step]) -> Step | None:
    found = _STEP.search(name)
    return steps.get(found.group()) if found else None


def _gathered(times: Any, scale: float) -> Record:
    record: Record = defaultdict(float)
    for owner, duration in times:
        record[owner] += float(duration) * scale
    return dict(record)
