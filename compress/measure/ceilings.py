"""The measured peak performance of this machine: multiply-adds a second in each precision, and bytes a second.

Peaks are those of large matrix products and convolutions, the best of the installed libraries; a data sheet promises
more, at a clock rate that the machine does not sustain. Each is measured once for each number of threads and cached.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
import torch

from compress.errors import RuntimeAbsent
from compress.runtime.openvino_runner import shared_core

#: Sides of square matrices, large enough to hide the start-up cost.
_SIDE, _SIDE_GPU = 768, 4096

#: Channels and side of the feature maps of 3x3 convolutions, and the length of their chain.
_CHANNELS, _MAP, _CHAIN = 256, 28, 2

#: Blocks that are copied, in bytes read and written: from some that fit an inner cache to some that fit none.
BLOCKS = tuple(2**power for power in range(18, 29, 2))

#: Minimum duration of a measurement in seconds, and minimum number of runs.
_SECONDS, _MIN_RUNS = 0.2, 4

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MeasuredCeiling:
    """What a device allows in a precision with a number of threads.

    Attributes
    ----------
    device, precision : str
        Which device, and the type that it computes in.
    threads : int
        CPU threads.
    macs_per_s : float or None
        Multiply-adds a second.
    bytes_per_s : tuple of (int, float)
        Size of a block in bytes, and bytes read and written a second when it is copied.
    """

    device: str
    precision: str
    threads: int
    macs_per_s: float | None
    bytes_per_s: tuple[tuple[int, float], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return asdict(self) | {"bytes_per_s": [list(pair) for pair in self.bytes_per_s]}


class Ceilings:
    """Measured ceilings of a device; each is measured when it is first asked for.

    Parameters
    ----------
    device : str
        A device of torch: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._macs = cache(self._measure_macs)
        self._copies = cache(self._measure_copies)

    def macs_per_s(self, precision: str, threads: int) -> float | None:
        """Multiply-adds a second in ``"fp32"``, ``"bf16"``, ``"fp16"`` or ``"int8"``; None if nothing here can
        measure it."""
        return self._macs(precision, threads)

    def bytes_per_s(self, size: float, threads: int) -> float:
        """Bytes read and written a second for a block of that size, interpolated in the logarithm of measured sizes."""
        sizes, rates = zip(*self.copies(threads), strict=True)
        return float(np.interp(np.log(max(size, 1.0)), np.log(sizes), rates))

    def copies(self, threads: int) -> tuple[tuple[int, float], ...]:
        """Block sizes and the rates of copying them, which never rise with the size."""
        return self._copies(threads)

    def measured(self, precision: str, threads: int) -> MeasuredCeiling:
        """All of it as a record."""
        return MeasuredCeiling(
            self.device, precision, threads, self.macs_per_s(precision, threads), self.copies(threads)
        )

    def _measure_macs(self, precision: str, threads: int) -> float | None:
        if self.device != "cpu":
            return _torch_product(precision, self.device, _SIDE_GPU) if precision in _DTYPES else None
        with _torch_threads(threads):
            rates = [_openvino_convolutions(precision, threads)]
            if precision in ("fp32", "bf16"):
                rates.append(_torch_product(precision, "cpu", _SIDE))
        return max((rate for rate in rates if rate is not None), default=None)

    def _measure_copies(self, threads: int) -> tuple[tuple[int, float], ...]:
        copies: list[tuple[int, float]] = []
        with _torch_threads(threads):
            for size in reversed(BLOCKS):  # a smaller block is copied at least as fast as a larger one
                copies.append((size, max([_copy(size, self.device)] + [rate for _, rate in copies])))
        return tuple(reversed(copies))


def _torch_product(precision: str, device: str, side: int) -> float:
    first, second = (torch.randn(side, side).to(device, _DTYPES[precision]) for _ in range(2))

    def multiply() -> None:
        torch.mm(first, second)
        _synchronize(device)

    return side**3 / _fastest(multiply)


def _openvino_convolutions(precision: str, threads: int) -> float | None:
    """A chain of 3x3 convolutions on OpenVINO; None without it, or where it lacks the precision."""
    try:
        core = shared_core()
    except RuntimeAbsent:
        return None
    capabilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision.upper() not in capabilities:
        return None
    config: dict[str, Any] = {
        # In INT8 this is the precision of what lies between the convolutions: the shortest that there is.
        "INFERENCE_PRECISION_HINT": "bf16" if precision != "fp32" and "BF16" in capabilities else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
    }
    if precision == "fp16":
        config["INFERENCE_PRECISION_HINT"] = "f16"
    request = core.compile_model(_chain(precision == "int8"), "CPU", config).create_infer_request()
    maps = np.random.default_rng(0).random((1, _CHANNELS, _MAP, _MAP), dtype=np.float32)
    macs = _CHAIN * 9 * _CHANNELS**2 * _MAP**2
    return macs / _fastest(lambda: request.infer([maps], share_inputs=True, share_outputs=True))


def _chain(quantised: bool) -> Any:
    from openvino import Model
    from openvino import opset13 as ops

    random = np.random.default_rng(0)
    image = ops.parameter([1, _CHANNELS, _MAP, _MAP], np.float32)
    value = image
    for _ in range(_CHAIN):
        weight = random.standard_normal((_CHANNELS, _CHANNELS, 3, 3)).astype(np.float32) / np.float32(48)
        kernel = ops.constant(weight)
        if quantised:
            ends = [np.float32(end) for end in (0, 2.55, -0.127, 0.127)]
            value = ops.fake_quantize(value, ends[0], ends[1], ends[0], ends[1], 256)
            kernel = ops.fake_quantize(kernel, ends[2], ends[3], ends[2], ends[3], 255)
        value = ops.relu(ops.convolution(value, kernel, [1, 1], [1, 1], [1, 1], [1, 1]))
    return Model([ops.result(value)], [image], "ceiling")


def _copy(size: int, device: str) -> float:
    """Bytes read and written a second when half of the block is copied to the other half."""
    source, target = torch.ones(2, size // 2, dtype=torch.uint8, device=device)
    repeats = max(1, 2**23 // size)  # so that the cost of starting a copy does not count

    def copy() -> None:
        for _ in range(repeats):
            target.copy_(source)
        _synchronize(device)

    return repeats * size / _fastest(copy)


def _fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest run: interference by other processes only ever adds time."""
    call()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < _MIN_RUNS or time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


@contextmanager
def _torch_threads(count: int) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
