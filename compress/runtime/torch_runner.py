"""Networks on torch, on the CPU or a GPU."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.errors import NetworkError, RuntimeAbsent
from compress.network.duplicate import duplicate
from compress.pose.spec import PoseSpec
from compress.runtime.runner import Array, check_input

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Recorded graphs are kept for so many shapes of input; each holds the memory of all its activations.
_GRAPHS = 4

#: Runs before a graph is recorded, in which libraries choose their kernels.
_WARMUP = 3


@dataclass(frozen=True)
class TorchOptions:
    """How torch runs a network, without changing what it computes.

    Attributes
    ----------
    compile : bool
        Through ``torch.compile``, once for each shape of input; the first run of a shape takes tens of seconds.
    graphs : bool
        Record each shape's kernels once as a CUDA graph and replay them, so that a batch of one does not wait for the
        CPU that starts them.
    channels_last : bool
        Keep a pixel's channels side by side in memory.
    """

    compile: bool = False
    graphs: bool = False
    channels_last: bool = True

    def __str__(self) -> str:
        """The options that are not the usual ones, for tables."""
        named = [name for name, on in (("compile", self.compile), ("graphs", self.graphs)) if on]
        return ", ".join(named + ([] if self.channels_last else ["channels first"])) or "plain"


class TorchRunner:
    """A network as torch runs it.

    Parameters
    ----------
    module : nn.Module
        A network as the registry builds it. A copy is run, in evaluation mode and as it is now: later changes of the
        module do not reach the runner, and the runner changes nothing of the module.
    pose : PoseSpec
        What the network expects and gives.
    device : str
        A device that torch knows, for example ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    precision : {"fp32", "bf16", "fp16"}
        Type of the weights and of all arithmetic; fp32 is true float32, not the shortened TF32 of GPUs.
    threads : int, optional
        CPU threads while it runs; torch's own number by default.
    options : TorchOptions
        How torch runs it.

    Attributes
    ----------
    device_ms : float or None
        What the network alone took in the last run on a GPU, between two events there: without copies and the time
        in which Python had not yet given it work.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the device, the device the precision, or either what an option needs.
    """

    name = "torch"

    def __init__(
        self,
        module: nn.Module,
        pose: PoseSpec,
        *,
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        options: TorchOptions | None = None,
    ) -> None:
        self.device = device
        self.precision = precision
        self.options = TorchOptions() if options is None else options
        self.device_ms: float | None = None
        self.pose = pose
        self.threads = torch.get_num_threads() if threads is None else threads
        self._device = _find_device(device)
        if self._device.type == "cpu" and precision == "fp16":
            # It would run, tens of times slower than float32.
            raise RuntimeAbsent(
                "torch has no fp16 arithmetic on CPUs", found=device, hint="Use --precision bf16, or --device cuda"
            )
        _check_options(self.options, self._device)
        # Convolutions read channels that lie side by side faster than whole planes, on CPUs and GPUs alike.
        self._layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        module = duplicate(module).to(self._device, _DTYPES[precision]).eval().requires_grad_(False)
        self._module = module.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._call: Callable[[Tensor], Any] = (
            torch.compile(self._module, dynamic=False) if self.options.compile else self._module
        )
        self._graphs: dict[tuple[int, ...], _Graph] = {}

    def run(self, images: Array) -> dict[str, Array]:
        """Final maps of images; see `compress.runtime.runner.Runner.run`."""
        check_input(images, self.pose)
        batch = torch.from_numpy(np.require(images, requirements=("C", "W"))).to(
            self._device, _DTYPES[self.precision], memory_format=self._layout
        )
        with torch.inference_mode(), _threads(self.threads), _exact(self._device):
            network = self._graph(batch) if self.options.graphs else self._call
            if self._device.type != "cuda":
                return self._arrays(network(batch)[-1])
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            maps = network(batch)[-1]
            end.record()
            arrays = self._arrays(maps)
            self.device_ms = float(begin.elapsed_time(end))
            return arrays

    def _arrays(self, maps: dict[str, Tensor]) -> dict[str, Array]:
        missing = [name for name in self.pose.outputs if name not in maps]
        if missing:
            raise NetworkError(f"the network's last stage has no {', '.join(missing)}", found=sorted(maps))
        return {name: maps[name].float().cpu().contiguous().numpy() for name in self.pose.outputs}

    def _graph(self, batch: Tensor) -> _Graph:
        shape = tuple(batch.shape)
        if shape not in self._graphs:
            while len(self._graphs) >= _GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[shape] = _Graph(self._call, batch)
        return self._graphs[shape]

    def close(self) -> None:
        """Drop the network."""
        self._graphs.clear()
        del self._module, self._call


class _Graph:
    """A network's kernels for one shape of input, recorded once; results are overwritten by the next call."""

    def __init__(self, network: Callable[[Tensor], Any], batch: Tensor) -> None:
        self._input = torch.empty_like(batch)
        self._input.copy_(batch)
        # Recording wants a stream of its own on which everything has run before.
        stream = torch.cuda.Stream(batch.device)
        stream.wait_stream(torch.cuda.current_stream(batch.device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                network(self._input)
        torch.cuda.current_stream(batch.device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(batch.device), torch.cuda.graph(self._graph):
            self._output = network(self._input)

    def __call__(self, batch: Tensor) -> Any:
        self._input.copy_(batch)
        self._graph.replay()
        return self._output


def _check_options(options: TorchOptions, device: torch.device) -> None:
    if options.graphs and device.type != "cuda":
        raise RuntimeAbsent(
            "CUDA graphs need a CUDA device", found=str(device), hint="Leave out --graphs, or use --device cuda"
        )
    if not options.compile:
        return
    # torch.compile would find out in the first run, with pages of its own trace.
    compiler = os.environ.get("CXX", "")
    if not any(shutil.which(name) for name in (compiler, "c++", "g++", "clang++", "cl") if name):
        raise RuntimeAbsent("torch.compile needs a C++ compiler", hint="Install one, or leave out --compile")
    if device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise RuntimeAbsent("torch.compile on a GPU needs triton", hint="pip install triton, or leave out --compile")


def _find_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RuntimeAbsent(
            f"torch has no device {name} on this machine ({reason})", found=name, hint="Use --device cpu"
        ) from error
    return device


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Run with that many CPU threads; torch has one number for the whole process."""
    before = torch.get_num_threads()
    if before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """Keep a GPU from rounding float32 to the ten bits of TF32, which it does in convolutions by default."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
