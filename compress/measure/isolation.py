"""What a model costs a program that runs nothing else: memory, time until it is ready, and the first inference.

Each model gets a process of its own. In a process that has run others before, the libraries are loaded, the memory is
reserved and the kernels are compiled, so neither number would be the model's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compress.errors import CompressError, RuntimeAbsent
from compress.runtime.opening import open_runner
from compress.runtime.torch_runner import TorchOptions

_MIB = 2**20


@dataclass(frozen=True)
class Isolated:
    """A model alone in a process.

    Attributes
    ----------
    open_ms : float
        From the file to a runner; importing the libraries is not in it, compiling for the device is.
    first_ms : float
        The first inference.
    peak_mb : float
        Most main memory that the whole process held, in MiB, Python and the libraries included.
    model_mb : float
        By how much that is more than before the model was opened.
    gpu_mb : float or None
        Most memory that torch took on the GPU; None elsewhere.
    """

    open_ms: float
    first_ms: float
    peak_mb: float
    model_mb: float
    gpu_mb: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return dataclasses.asdict(self)


def measure_isolated(
    path: Path,
    shape: tuple[int, int, int, int],
    *,
    device: str = "cpu",
    precision: str = "fp32",
    threads: int | None = None,
    network: str | None = None,
    torch_options: TorchOptions | None = None,
    runs: int = 3,
) -> Isolated:
    """Open a model in a new process, run it, and tell what that took.

    Parameters
    ----------
    path, device, precision, threads, network, torch_options
        As of `compress.runtime.opening.open_runner`.
    shape : (N, 3, H, W)
        Shape of the input.
    runs : int
        Inferences in all; memory is at its peak after a few.

    Raises
    ------
    CompressError
        If the model can't be opened or run, or its process dies.
    """
    task = {
        "path": str(path), "shape": list(shape), "device": device, "precision": precision, "threads": threads,
        "network": network, "options": dataclasses.asdict(torch_options or TorchOptions()), "runs": runs,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "compress.measure.isolation", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        record = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        record = None
    if done.returncode or not isinstance(record, dict):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise CompressError(
            f"the model's own process ended with {done.returncode} ({last[0][:200]})",
            found=str(path),
            hint="A negative number is a signal; -9 mostly means that memory ran out",
        )
    if "error" in record:
        kind = RuntimeAbsent if record["absent"] else CompressError
        raise kind(record["error"])
    return Isolated(**record)


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    """Inside the process."""
    images = np.random.default_rng(0).random(task["shape"], dtype=np.float32) - np.float32(0.5)
    _import_runtime(Path(task["path"]))
    before = _memory_mb("VmRSS")
    try:
        start = time.perf_counter()
        runner = open_runner(
            Path(task["path"]),
            device=task["device"],
            precision=task["precision"],
            threads=task["threads"],
            network=task["network"],
            torch_options=TorchOptions(**task["options"]),
        )
        opened = time.perf_counter()
        runner.run(images)
        first = time.perf_counter()
        for _ in range(task["runs"] - 1):
            runner.run(images)
    except CompressError as error:
        return {"error": str(error), "absent": isinstance(error, RuntimeAbsent)}
    peak = _memory_mb("VmHWM")
    on_gpu = runner.name == "torch" and task["device"].startswith("cuda")
    return Isolated(
        open_ms=(opened - start) * 1e3,
        first_ms=(first - opened) * 1e3,
        peak_mb=peak,
        model_mb=max(0.0, peak - before),
        gpu_mb=torch.cuda.max_memory_allocated() / _MIB if on_gpu else None,
    ).to_dict()


def _import_runtime(path: Path) -> None:
    """Load the libraries first: they are the runtime's cost, not the model's."""
    name = {".xml": "openvino", ".onnx": "onnxruntime"}.get(path.suffix)
    if name is not None:
        with contextlib.suppress(ImportError):  # opening the model says it better
            importlib.import_module(name)


def _memory_mb(field: str) -> float:
    """A line of the kernel's record of this process.

    Not `resource.getrusage`: its peak begins with that of the process that started this one.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _usage_mb()
    found = (line.split() for line in text.splitlines() if line.startswith(f"{field}:"))
    return next((int(words[1]) / 1024 for words in found), 0.0)


def _usage_mb() -> float:
    """The peak as other systems tell it; 0 where they don't."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
