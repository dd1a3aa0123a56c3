"""A cache of measured latencies on disk: what was timed once on a machine is not timed again.

One file holds the measurements of one network on one target with one number of threads. A file that can't be read
counts as absent and is rewritten.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.errors import FileError
from compress.files import write_text
from compress.measure.machine import describe
from compress.measure.timing_graph import Settings, Step
from compress.network.layers import LayerInfo
from compress.target import Target

#: Environment variable that names the folder.
VARIABLE = "COMPRESS_CACHE"

#: Changes when old files can no longer be used.
VERSION = 1


@dataclass(frozen=True)
class Measured:
    """Latency of one variant of a network.

    Attributes
    ----------
    whole_ms : float
        Of the whole variant.
    original_ms : float
        Of the original in the same rounds.
    steps : mapping of Step to float
        Milliseconds of each step of each layer, scaled so that they and ``rest_ms`` add up to ``whole_ms``.
    rest_ms : float
        Of everything that belongs to no layer.
    """

    whole_ms: float
    original_ms: float
    steps: Mapping[Step, float]
    rest_ms: float

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        steps = [[name, index, ms] for (name, index), ms in self.steps.items()]
        return {"whole_ms": self.whole_ms, "original_ms": self.original_ms, "rest_ms": self.rest_ms, "steps": steps}

    @classmethod
    def from_dict(cls, record: Any) -> Measured:
        """Read a result of `to_dict`; raises KeyError, TypeError or ValueError if it is something else."""
        numbers = [float(record[key]) for key in ("whole_ms", "original_ms", "rest_ms")]
        steps = {(str(name), int(index)): float(ms) for name, index, ms in record["steps"]}
        if not all(math.isfinite(ms) and ms >= 0 for ms in (*numbers, *steps.values())) or min(numbers[:2]) <= 0:
            raise ValueError("a time is negative or not finite")
        return cls(numbers[0], numbers[1], steps, numbers[2])


def cache_folder() -> Path:
    """Where measurements are kept: ``$COMPRESS_CACHE``, or ``compress`` in the user's cache folder."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "compress"


def cache_file(
    folder: Path, layers: Sequence[LayerInfo], input_size: tuple[int, int], target: Target, threads: int | None
) -> Path:
    """The file of a network on a target: another machine, runtime, version or shape has another file."""
    # torch's thread setting belongs to the process, not to the machine; the runner's own is part of the key.
    machine = {key: value for key, value in describe().to_dict().items() if key not in ("threads", "memory_gb")}
    shapes = [{key: value for key, value in asdict(layer).items() if key != "aliases"} for layer in layers]
    key = json.dumps([VERSION, machine, str(target), threads, list(input_size), shapes], sort_keys=True)
    return folder / f"latency-{target}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"


def settings_key(settings: Settings) -> str:
    """A hash of what layers become, the same for the same settings."""
    listed = sorted((name, method, *ranks) for name, (method, ranks) in settings.items())
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:20]


def load_measured(path: Path) -> dict[str, Measured]:
    """Measurements in a file, by `settings_key`; none if it is absent or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): Measured.from_dict(entry) for key, entry in record["variants"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def save_measured(path: Path, measured: Mapping[str, Measured]) -> None:
    """Write measurements; if that fails, they are only made again the next time."""
    text = json.dumps({"variants": {key: entry.to_dict() for key, entry in measured.items()}})
    try:
        write_text(path, text)
    except FileError:
        return
