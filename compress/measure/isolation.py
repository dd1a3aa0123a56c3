"""Memory, loading time and first inference of a model in a process that runs nothing else.

Each model gets a process of its own. In a process that has run others before, libraries are loaded, memory is reserved
and kernels are compiled, so the numbers would not be the model's own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import compress
from compress.errors import CompressError, RuntimeAbsent
from compress.measure.latency import random_inputs
from compress.network.inputs import InputSpec
from compress.runtime.opening import open_runner
from compress.runtime.torch_runner import TorchOptions
from compress.target import Target

_MIB = 2**20


@dataclass(frozen=True)
class Isolated:
    """A model alone in a process.

    Attributes
    ----------
    open_ms : float
        From the file to a runner, including compilation for the device, without importing the libraries.
    first_ms : float
        The first inference.
    peak_mb : float
        Peak main memory of the whole process in MiB, including Python and the libraries.
    model_mb : float
        By how much that exceeds what the process held before the model was opened.
    gpu_mb : float or None
        Peak memory that torch allocated on the GPU; None elsewhere.
    """

    open_ms: float
    first_ms: float
    peak_mb: float
    model_mb: float
    gpu_mb: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return dataclasses.asdict(self)


def measure_isolated(
    path: Path,
    inputs: Sequence[InputSpec],
    target: Target,
    *,
    threads: int | None = None,
    network: str | None = None,
    torch_options: TorchOptions | None = None,
    runs: int = 3,
) -> Isolated:
    """Open a model in a new process, run it, and measure memory and times there.

    The process does not import from the current folder (``python -P``), and finds this package where this process did.

    Parameters
    ----------
    path, threads, network, torch_options
        As of `compress.runtime.opening.open_runner`.
    inputs : sequence of InputSpec
        What each run is given.
    target : Target
        Runtime, device and precision; the runtime must be that of the file.
    runs : int
        Number of inferences; memory reaches its peak after a few.

    Raises
    ------
    CompressError
        If the model can't be opened or run, or its process ends abnormally.
    """
    task = {
        "path": str(path), "inputs": [dataclasses.asdict(spec) for spec in inputs], "target": str(target),
        "threads": threads, "network": network,
        "options": dataclasses.asdict(torch_options or TorchOptions()), "runs": runs,
    }  # fmt: skip
    package = str(Path(compress.__file__).resolve().parents[1])
    own_path = os.environ.get("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, "-P", "-m", "compress.measure.isolation", json.dumps(task)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([package, own_path] if own_path else [package])},
    )
    try:
        record = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        record = None
    if done.returncode or not isinstance(record, dict):
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise CompressError(
            f"the model's own process ended with exit code {done.returncode} ({last[0][:200]})",
            found=str(path),
            hint="A negative code is a signal; -9 usually means that memory ran out",
        )
    if "error" in record:
        kind = RuntimeAbsent if record["absent"] else CompressError
        raise kind(record["error"])
    return Isolated(**record)


def _measure(task: dict[str, Any]) -> dict[str, Any]:
    """Measure inside the new process."""
    inputs = [InputSpec(tuple(spec["shape"]), spec["dtype"]) for spec in task["inputs"]]
    given = random_inputs(inputs, np.random.default_rng(0))
    _import_runtime(Path(task["path"]))
    before = _memory_mb("VmRSS")
    try:
        start = time.perf_counter()
        runner = open_runner(
            Path(task["path"]),
            Target.parse(task["target"]),
            threads=task["threads"],
            network=task["network"],
            torch_options=TorchOptions(**task["options"]),
        )
        opened = time.perf_counter()
        runner.run(given)
        first = time.perf_counter()
        for _ in range(task["runs"] - 1):
            runner.run(given)
    except CompressError as error:
        return {"error": str(error), "absent": isinstance(error, RuntimeAbsent)}
    peak = _memory_mb("VmHWM")
    on_gpu = (runner.name, runner.device) == ("torch", "cuda")
    return Isolated(
        open_ms=(opened - start) * 1e3,
        first_ms=(first - opened) * 1e3,
        peak_mb=peak,
        model_mb=max(0.0, peak - before),
        gpu_mb=torch.cuda.max_memory_allocated() / _MIB if on_gpu else None,
    ).to_dict()


def _import_runtime(path: Path) -> None:
    """Import the libraries first: they are the runtime's cost, not the model's."""
    name = {".xml": "openvino", ".onnx": "onnxruntime"}.get(path.suffix)
    if name is not None:
        with contextlib.suppress(ImportError):  # opening the model reports it better
            importlib.import_module(name)


def _memory_mb(field: str) -> float:
    """A field of ``/proc/self/status``.

    Not `resource.getrusage`: its peak starts at that of the parent process.
    """
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return _usage_mb()
    lines = (line.split() for line in text.splitlines() if line.startswith(f"{field}:"))
    return next((int(words[1]) / 1024 for words in lines), 0.0)


def _usage_mb() -> float:
    """The peak on systems without ``/proc``; 0 if unknown."""
    try:
        import resource
    except ImportError:
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / _MIB if sys.platform == "darwin" else peak / 1024


if __name__ == "__main__":
    print(json.dumps(_measure(json.loads(sys.argv[1]))))
