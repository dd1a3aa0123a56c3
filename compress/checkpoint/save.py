"""Writing a model to a file that `compress.checkpoint.load.load` reads."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch
import torch

from compress.checkpoint.reading import FORMAT
from compress.checkpoint.record import to_record
from compress.errors import CheckpointError, FileError
from compress.files import atomic_path, refuse_existing
from compress.model import Model

SUFFIXES = (".pt", ".pth", ".safetensors")


def save(model: Model, path: str | Path, force: bool = False) -> None:
    """Write a model in one step, as ``.pt`` or ``.safetensors`` by its suffix.

    Parameters
    ----------
    model : Model
        Its weights, edits, history and plan are written; of a network of the user's own no code is.
    path : str or Path
        Where to write.
    force : bool
        Replace an existing file.

    Raises
    ------
    FileError
        If the suffix is another one, or the file exists and ``force`` is false.
    CheckpointError
        If an option of the network or the history holds more than plain values.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise FileError("a checkpoint is a .pt or a .safetensors file", found=str(path), hint="Choose such a name")
    refuse_existing(path, force)
    try:
        record = to_record(model)
    except TypeError as error:
        raise CheckpointError(f"the model can't be written as plain values: {error}") from error
    # Own storage for each tensor: a view would drag the whole tensor it was cut from into a .pt file, and safetensors
    # has no shared storage.
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.module.state_dict().items()
    }
    with atomic_path(path, force=force) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(weights, temporary, metadata={FORMAT: json.dumps(record)})
        else:
            torch.save({**record, "state_dict": weights}, temporary)
