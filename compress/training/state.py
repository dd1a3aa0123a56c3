"""The training state on disk: everything that a run needs to continue as if it had not been interrupted."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import CheckpointError, FileError, UsageError
from compress.files import atomic_path, read_bytes
from compress.training.options import EXECUTION_ONLY

FORMAT, VERSION = "compress training state", 2

_KEYS = {
    "format", "version", "step", "conditions", "module", "optimizer", "scaler", "ema", "best", "scores", "log",
    "random", "rollbacks",
}  # fmt: skip


def state_path(model: Path) -> Path:
    """Where the training state of the run is kept that writes this model file."""
    return model.with_suffix(".state")


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a training state atomically; a failure leaves the earlier file untouched.

    Parameters
    ----------
    path : Path
        File to write.
    state : mapping
        Plain containers and tensors under the keys of the format, without ``format`` and ``version``.

    Raises
    ------
    FileError
        If the file can't be written.
    """
    try:
        with atomic_path(path) as temporary:
            torch.save({"format": FORMAT, "version": VERSION, **state}, temporary)
    except (OSError, RuntimeError) as error:
        raise FileError(
            f"the training state can't be written: {error}",
            found=str(path),
            hint="Free some space, or choose another path",
        ) from error


def read_state(path: Path, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Read a training state that was written under the same conditions.

    Parameters
    ----------
    path : Path
        A file of `write_state`.
    conditions : mapping
        Options, data and teacher of the run that is resumed.

    Raises
    ------
    FileError
        If there is no such file.
    CheckpointError
        If it is not a training state.
    UsageError
        If an option, the data or the teacher differs; the message names it with both values.
    """
    read_bytes(path, "training state")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(
            "the training state can't be read", found=str(path), hint="Start again without --resume"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise CheckpointError(
            "the file is not a training state",
            found=str(path),
            hint="Name the file that the interrupted run wrote",
        )
    if state.get("version") != VERSION or set(state) != _KEYS:
        raise CheckpointError(
            f"the training state does not have version {VERSION}",
            found=state.get("version"),
            hint="Start again without --resume",
        )
    _compare(state["conditions"], conditions)
    return state


def remove_temporary(path: Path) -> None:
    """Remove the temporary file that an interruption while writing a state to ``path`` left beside it."""
    for file in path.parent.iterdir():
        if file.name.startswith(f".{path.stem}.") and file.suffix == path.suffix:
            file.unlink(missing_ok=True)


def _compare(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [
        f"{name} was {saved.get(name)!r} and is now {wanted.get(name)!r}"
        for name in sorted(set(saved) | set(wanted))
        if name not in EXECUTION_ONLY and saved.get(name) != wanted.get(name)
    ]
    if different:
        raise UsageError(
            f"a run can't be resumed under other conditions: {'; '.join(different)}",
            hint="Give the options that it was started with, or start again without --resume",
        )


def fingerprint(module: nn.Module) -> str:
    """SHA-256 of the names and values of a network's parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    """State of the random generators that layers such as dropout use."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Restore the random generators; those that the state lacks, written on another kind of device, are left alone."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
