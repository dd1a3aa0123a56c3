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
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.errors import NetworkError, RuntimeAbsent
from compress.model import Model
from compress.network.duplicate import duplicate
from compress.network.outputs import BY_STRUCTURE, Outputs
from compress.pose.spec import PoseSpec
from compress.runtime.runner import Array, ArrayInputs, check_inputs
from compress.target import Target

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Number of input shapes for which recorded graphs are kept; each holds the memory of all its activations.
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
        A network. A copy is run, in evaluation mode: later changes of the module do not reach the runner, and the
        runner changes nothing of the module.
    pose : PoseSpec or None
        What the network expects and returns; None for a network without keypoints, of which all outputs are returned.
    outputs : Outputs
        How its return value is read.
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
        Time of the network alone in the last run on a GPU, between two events there: without copies, and without
        the time before Python has submitted work.

    Raises
    ------
    RuntimeAbsent
        If this machine lacks the device, the device the precision, or either what an option needs.
    """

    name = "torch"

    def __init__(
        self,
        module: nn.Module,
        pose: PoseSpec | None,
        *,
        outputs: Outputs = BY_STRUCTURE,
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
        self.outputs = outputs
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
        self._call: Callable[..., Any] = (
            torch.compile(self._module, dynamic=False) if self.options.compile else self._module
        )
        self._graphs: dict[tuple[torch.Size, ...], _Graph] = {}

    @classmethod
    def of(
        cls,
        model: Model,
        target: Target | None = None,
        *,
        threads: int | None = None,
        options: TorchOptions | None = None,
    ) -> TorchRunner:
        """A runner of a model; on the CPU in FP32 unless another target is given."""
        target = target or Target("torch", "cpu")
        return cls(
            model.module,
            model.pose,
            outputs=model.outputs,
            device=target.device,
            precision=target.precision,
            threads=threads,
            options=options,
        )

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Final outputs; see `compress.runtime.runner.Runner.run`."""
        batch = tuple(self._tensor(array) for array in check_inputs(inputs, self.pose))
        with torch.inference_mode(), _threads(self.threads), _exact(self._device):
            network = self._graph(batch) if self.options.graphs else self._call
            if self._device.type != "cuda":
                return self._arrays(network(*batch))
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            raw = network(*batch)
            end.record()
            arrays = self._arrays(raw)
            self.device_ms = float(begin.elapsed_time(end))
            return arrays

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        tensor = torch.from_numpy(np.require(array, requirements=("C", "W")))
        if not tensor.is_floating_point():
            return tensor.to(self._device)
        layout = self._layout if tensor.dim() == 4 else torch.contiguous_format
        return tensor.to(self._device, _DTYPES[self.precision], memory_format=layout)

    def _arrays(self, raw: Any) -> dict[str, Array]:
        final = self.outputs.final(raw)
        names = tuple(final) if self.pose is None else self.pose.outputs
        missing = [name for name in names if name not in final]
        if missing:
            raise NetworkError(f"the network's last stage has no {', '.join(missing)}", found=sorted(final))
        values = ((name, final[name]) for name in names)
        return {
            name: (value.float() if value.is_floating_point() else value).cpu().contiguous().numpy()
            for name, value in values
        }

    def _graph(self, batch: tuple[Tensor, ...]) -> _Graph:
        shapes = tuple(tensor.shape for tensor in batch)
        if shapes not in self._graphs:
            while len(self._graphs) >= _GRAPHS:
                del self._graphs[next(iter(self._graphs))]
            self._graphs[shapes] = _Graph(self._call, batch)
        return self._graphs[shapes]

    def close(self) -> None:
        """Drop the network."""
        self._graphs.clear()
        del self._module, self._call


class _Graph:
    """A network's kernels for one shape of input, recorded once; results are overwritten by the next call."""

    def __init__(self, network: Callable[..., Any], batch: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(torch.empty_like(tensor).copy_(tensor) for tensor in batch)
        device = batch[0].device
        # Recording needs a stream of its own on which everything has run before.
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                network(*self._inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(device), torch.cuda.graph(self._graph):
            self._output = network(*self._inputs)

    def __call__(self, *batch: Tensor) -> Any:
        for own, given in zip(self._inputs, batch, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._output


def _check_options(options: TorchOptions, device: torch.device) -> None:
    if options.graphs and device.type != "cuda":
        raise RuntimeAbsent(
            "CUDA graphs need a CUDA device", found=str(device), hint="Leave out --graphs, or use --device cuda"
        )
    if not options.compile:
        return
    # torch.compile would report it only in the first run, with a long trace.
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
    """Keep a GPU from computing convolutions in TF32, with ten bits of mantissa, which is its default."""
    if device.type != "cuda":
        yield
        return
    convolutions, products = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = convolutions, products
