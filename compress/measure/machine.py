"""The machine on which something was measured, without names of hosts, users or networks."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ABSENT = "not present"

#: Instruction sets that affect the speed of convolutions, by their names in Linux's CPU flags.
_FLAGS = {
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni",
    "avx512_bf16": "avx512-bf16",
    "amx_tile": "amx",
    "amx_bf16": "amx-bf16",
    "amx_int8": "amx-int8",
    "asimd": "neon",
    "bf16": "arm-bf16",
    "sve": "sve",
}


@dataclass(frozen=True)
class Machine:
    """Hardware and software that determine latency.

    Attributes
    ----------
    cpu : str
        Model name as the system reports it.
    cores : int
        Logical cores that this process may use.
    memory_gb : float
        Main memory in GiB; 0 where the system does not report it.
    os : str
        Name and version of the system, and the architecture.
    python, torch, openvino, onnxruntime : str
        Versions; "not present" for a runtime that is not installed.
    gpu : str
        Name of the first CUDA device, or "not present".
    instruction_sets : tuple of str
        Vector extensions of the CPU that affect latency, such as "avx512" or "amx-bf16".
    threads : int
        Default number of torch's threads; a `Timing` records that of its own runner.
    """

    cpu: str
    cores: int
    memory_gb: float
    os: str
    python: str
    torch: str
    openvino: str
    onnxruntime: str
    gpu: str
    instruction_sets: tuple[str, ...]
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def describe() -> Machine:
    """The machine this process runs on."""
    return Machine(
        cpu=_cpu_name(_cpuinfo()),
        cores=_usable_cores(),
        memory_gb=_memory_gb(),
        os=_system_name(),
        python=platform.python_version(),
        torch=str(torch.__version__),
        openvino=_installed("openvino"),
        onnxruntime=_installed("onnxruntime", "onnxruntime-gpu"),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else ABSENT,
        instruction_sets=_instruction_sets(_cpuinfo()),
        threads=torch.get_num_threads(),
    )


def vector_channels() -> int:
    """Channels in a float32 vector register of this CPU: the block size of channels in runtimes."""
    names = _instruction_sets(_cpuinfo())
    return 16 if any(name.startswith("avx512") for name in names) else 8 if "avx2" in names else 4


def _cpuinfo() -> dict[str, str]:
    """The first processor in /proc/cpuinfo; empty on other systems."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    lines = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in lines}


def _cpu_name(info: dict[str, str]) -> str:
    return info.get("model name") or platform.processor() or platform.machine() or "unknown"


def _instruction_sets(info: dict[str, str]) -> tuple[str, ...]:
    flags = info.get("flags", info.get("Features", "")).split()  # ARM calls them Features
    if flags:
        return tuple(name for flag, name in _FLAGS.items() if flag in flags)
    capability = torch.backends.cpu.get_cpu_capability().lower()
    return () if capability in ("default", "no avx") else (capability,)


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_gb() -> float:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return 0.0


def _system_name() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{platform.system()} {platform.release()}".strip()
    return f"{name}, {platform.machine()}"


def _installed(*packages: str) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return ABSENT
