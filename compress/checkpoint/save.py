"""Writing a model to a file that `compress.checkpoint.load.load` reads."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch

from compress.checkpoint.load import VERSIONS
from compress.checkpoint.reading import FORMAT
from compress.errors import FileError
from compress.files import atomic_path, refuse_existing
from compress.model import Model

SUFFIXES = (".pt", ".pth", ".safetensors")


def save(model: Model, path: str | Path, force: bool = False) -> None:
    """Write a model in one step, as ``.pt`` or ``.safetensors`` by its suffix.

    Raises
    ------
    FileError
        If the suffix is another one, or the file exists and ``force`` is false.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise FileError("a checkpoint is a .pt or a .safetensors file", found=str(path), hint="Choose such a name")
    refuse_existing(path, force)
    record = {
        "format": FORMAT,
        "version": VERSIONS[-1],
        "network": {"name": model.source.name, "options": dict(model.source.options)},
        "inputs": [asdict(spec) for spec in model.inputs],
        "outputs": model.outputs.to_dict(),
        "edits": [edit.to_dict() for edit in model.edits],
        "pose": None if model.pose is None else model.pose.to_dict(),
        "history": list(model.history),
        "plan": None if model.plan is None else model.plan.to_dict(),
    }
    text = json.dumps(record)
    # Own storage for each tensor: a view would drag the whole tensor it was cut from into a .pt file, and safetensors
    # has no shared storage.
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in model.module.state_dict().items()
    }
    with atomic_path(path, force=force) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(weights, temporary, metadata={FORMAT: text})
        else:
            torch.save({**json.loads(text), "state_dict": weights}, temporary)
