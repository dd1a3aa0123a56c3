"""A network in a file: how it is built, which edits it went through, its weights and its history.

A ``.pt`` file is a ``torch.save`` of plain containers and tensors; a ``.safetensors`` file holds the same record as
JSON in its metadata. Neither can carry code, and a network of the user's own is imported only when the user names it.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import safetensors.torch
import torch
from torch import Tensor, nn

from compress.errors import CheckpointError, CompressError, FileError, NetworkError
from compress.files import atomic_path, read_bytes, refuse_existing
from compress.networks import foreign
from compress.networks.registry import NetworkSpec, build, entries, get_entry, pose_spec, resolve
from compress.pose.spec import PoseSpec
from compress.surgery.edits import Edit, apply_edits, edit_from_dict

FORMAT = "compress-checkpoint"
VERSION = 1
SUFFIXES = (".pt", ".pth", ".safetensors")

_HOW_TO_SAVE = "Where it was made, save the weights alone: torch.save(model.state_dict(), path)"

#: Files that are taken for checkpoints by mistake, by their suffix or by their first bytes.
_EXPORTED = (".onnx", ".xml")
_OTHERS = {
    b"\xff\xd8\xff": "a JPEG image", b"\x89PNG": "a PNG image", b"{": "JSON text", b"<": "XML or HTML text",
    b"version https://git-lfs": "a Git LFS pointer, not the file that it stands for",
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """Everything that makes a network what it is.

    Attributes
    ----------
    network : NetworkSpec
        How the unedited network is built.
    pose : PoseSpec
        What it expects and gives.
    state_dict : mapping of str to Tensor
        Weights of the edited network, on the CPU.
    edits : tuple of Edit
        Structural changes in the order in which they were made.
    history : tuple of dict
        What was done to it, one plain record for each step.
    """

    network: NetworkSpec
    pose: PoseSpec
    state_dict: Mapping[str, Tensor]
    edits: tuple[Edit, ...] = ()
    history: tuple[dict[str, Any], ...] = ()

    def build(self) -> nn.Module:
        """The network in eval mode with its own copy of the weights.

        Raises
        ------
        CheckpointError
            If the weights do not fit the edited network.
        NetworkError
            If the network can't be built.
        """
        module = _skeleton(self.network, self.edits)
        weights = {key: value.clone() for key, value in foreign.fit(self.state_dict, module, self.network.name).items()}
        # Assigned to a network without values, but copied into one of the user's own, whose weights may be tied.
        module.load_state_dict(weights, assign=not self.network.is_custom)
        return module.eval()


def snapshot(checkpoint: Checkpoint, module: nn.Module, *, edits: tuple[Edit, ...] = (), **entry: Any) -> Checkpoint:
    """A checkpoint of a network that was made from another one.

    Parameters
    ----------
    checkpoint : Checkpoint
        Where the network came from.
    module : Module
        The network, edited or trained; its weights are copied.
    edits : tuple of Edit
        The edits made since, in their order.
    **entry
        Plain values to add to the history as one record.
    """
    return replace(
        checkpoint,
        state_dict={key: value.detach().cpu().clone() for key, value in module.state_dict().items()},
        edits=(*checkpoint.edits, *edits),
        history=(*checkpoint.history, entry) if entry else checkpoint.history,
    )


def initial_checkpoint(
    name: str, options: Mapping[str, Any] | None = None, *, seed: int = 0, trained: bool | None = None
) -> Checkpoint:
    """A network to start from.

    Parameters
    ----------
    name : str
        A registered network, or a factory of the user's own.
    options : mapping, optional
        Options of the network.
    seed : int
        Seed of random weights.
    trained : bool, optional
        True for the weights that ship with the package, False for random ones, None for the former where the network
        and its options have them.

    Returns
    -------
    Checkpoint
        The last record of its history says by ``trained`` which weights it holds.

    Raises
    ------
    NetworkError
        If the network or an option is unknown, or it has no trained weights and ``trained`` is true.
    """
    spec = resolve(NetworkSpec(name, dict(options or {})))
    shipped = None if spec.is_custom else get_entry(name).weights
    if shipped is not None and trained is not False:
        found = load_checkpoint(shipped)
        if resolve(found.network) == spec:
            entry = {"command": "init", "network": name, "trained": True}
            return replace(found, history=(*found.history, entry))
    if trained:
        raise NetworkError(
            f"no trained weights of the network {name} with these options ship with the package",
            found=dict(spec.options),
            way_out="Start from random weights and train them",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(spec)
    empty = Checkpoint(network=spec, pose=pose_spec(name), state_dict={})
    return snapshot(empty, module, command="init", network=name, seed=seed, trained=False)


def save_checkpoint(checkpoint: Checkpoint, path: Path, force: bool = False) -> None:
    """Write a checkpoint in one step, as ``.pt`` or ``.safetensors`` by its suffix.

    Raises
    ------
    FileError
        If the suffix is another one, or the file exists and ``force`` is false.
    """
    if path.suffix not in SUFFIXES:
        raise FileError("a checkpoint is a .pt or a .safetensors file", found=str(path), way_out="Choose such a name")
    refuse_existing(path, force)
    record = {
        "format": FORMAT,
        "version": VERSION,
        "network": {"name": checkpoint.network.name, "options": dict(checkpoint.network.options)},
        "edits": [edit.to_dict() for edit in checkpoint.edits],
        "pose": checkpoint.pose.to_dict(),
        "history": list(checkpoint.history),
    }
    text = json.dumps(record)
    # Own storage for each tensor: a view would drag the whole tensor it was cut from into a .pt file, and safetensors
    # has no shared storage.
    weights = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in checkpoint.state_dict.items()
    }
    with atomic_path(path, force=force) as temporary:
        if path.suffix == ".safetensors":
            safetensors.torch.save_file(weights, temporary, metadata={FORMAT: text})
        else:
            torch.save({**json.loads(text), "state_dict": weights}, temporary)


def load_checkpoint(path: Path, network: str | None = None) -> Checkpoint:
    """Read a checkpoint of ours, or a state dict from elsewhere.

    Parameters
    ----------
    path : Path
        The file; what it is is told by its content.
    network : str, optional
        Name of the network. A state dict of a known public layout needs none. A network of the user's own always
        needs it, even where the file names it too: code is imported because the user says so, not because a file
        does.

    Raises
    ------
    FileError
        If there is no such file, or it is empty or a folder.
    CheckpointError
        If the file is damaged, of another kind, wants to run code, or does not fit the network.
    NetworkError
        If the network is unknown.
    """
    path = Path(path)
    content = read_bytes(path, "checkpoint")
    try:
        raw = _read(content, path.suffix.lower())
        checkpoint = _ours(raw, network) if _is_ours(raw) else _foreign(raw, path.name, network)
        module = _skeleton(checkpoint.network, checkpoint.edits)
        return replace(checkpoint, state_dict=foreign.fit(checkpoint.state_dict, module, checkpoint.network.name))
    except CompressError as error:
        raise type(error)(f"{path}: {error.what}", found=error.found, way_out=error.way_out) from error


def _skeleton(spec: NetworkSpec, edits: tuple[Edit, ...]) -> nn.Module:
    """The edited network with whatever weights: without values where the project can answer for that."""
    if spec.is_custom:
        with torch.random.fork_rng(devices=[]):
            return apply_edits(build(spec), edits)
    with torch.device("meta"):
        return apply_edits(build(spec), edits)


def _is_ours(raw: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(raw, Mapping) and isinstance(raw.get("format"), str) and raw["format"] == FORMAT


def _ours(raw: Mapping[str, Any], network: str | None) -> Checkpoint:
    """Read a record of `save_checkpoint`, trusting nothing in it."""
    version = raw.get("version")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and VERSION < version < 1_000_000
        raise CheckpointError(
            f"the checkpoint is of {'a newer' if newer else 'an unknown'} version",
            found=version if newer else None,
            way_out=f"This program reads version {VERSION}" + ("; install a newer one" if newer else ""),
        )
    keys = {"format", "version", "network", "edits", "pose", "history", "state_dict"}
    if set(raw) != keys:
        wrong = ", ".join(sorted(key[:40] if isinstance(key, str) else type(key).__name__ for key in set(raw) ^ keys))
        raise CheckpointError(f"the checkpoint's record has missing or unknown keys: {wrong}")
    try:
        # Through JSON, so that nothing but plain values comes in.
        record = json.loads(json.dumps({key: raw[key] for key in keys - {"state_dict"}}))
        name, options = record["network"]["name"], record["network"]["options"]
        spec = NetworkSpec(name, dict(options))
        if not isinstance(name, str) or not all(isinstance(entry, dict) for entry in record["history"]):
            raise TypeError("a name or a history entry is of another type")
        _permit(spec, network)
        return Checkpoint(
            network=spec,
            pose=PoseSpec.from_dict(record["pose"]),
            state_dict=foreign.clean({"state_dict": raw["state_dict"]}),
            edits=tuple(edit_from_dict(edit) for edit in record["edits"]),
            history=tuple(record["history"]),
        )
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's record can't be read: {error}") from error


def _permit(spec: NetworkSpec, network: str | None) -> None:
    """Refuse a file whose network is not the one that the user named, or that the user must name."""
    if network is not None and network != spec.name:
        raise CheckpointError(f"the checkpoint holds another network than {network}", found=spec.name)
    if spec.is_custom and network is None:
        raise CheckpointError(
            "the checkpoint is of a network outside the package, and no file is trusted to import code",
            found=spec.name,
            way_out=f"If you know that network, pass --network {spec.name}",
        )


def _foreign(raw: object, file: str, network: str | None) -> Checkpoint:
    state = foreign.clean(raw)
    found = foreign.identify(state)
    if network is not None and (found is None or found.name != network):
        found = NetworkSpec(network, _shared_options(found, network))
    if found is None:
        raise CheckpointError(
            "the weights are of no known network",
            found=", ".join(key[:60] for key in list(state)[:3]) + ", ...",
            way_out=f"Known: {', '.join(entry.name for entry in entries())}. "
            "Name your own by --network package.module:factory",
        )
    spec = resolve(found)
    entry = {"command": "import", "file": file, "network": spec.name}
    return Checkpoint(network=spec, pose=pose_spec(spec.name), state_dict=state, history=(entry,))


def _shared_options(found: NetworkSpec | None, network: str) -> dict[str, Any]:
    """Detected options, such as a depth, that hold for the network that the user named instead of the detected one.

    Heads for other skeletons have names of their own; what their names stand for is theirs, the rest is the same.
    """
    if found is None or NetworkSpec(network).is_custom:
        return {}
    theirs, usual = get_entry(network).options, get_entry(found.name).options
    return {name: value for name, value in found.options.items() if name in theirs and theirs[name] == usual.get(name)}


def _read(content: bytes, suffix: str) -> object:
    """What a file holds, in the form of our record or as it is."""
    if suffix in _EXPORTED:
        raise CheckpointError(
            "an exported model is no checkpoint",
            way_out="Evaluate or benchmark it; for anything else take the checkpoint that it was made from",
        )
    length = int.from_bytes(content[:8], "little")
    if length < len(content) and content[8:9] == b"{":
        return _read_safetensors(content, length)
    for start, kind in _OTHERS.items():
        if content.startswith(start):
            raise CheckpointError(f"this is no checkpoint but {kind}", way_out="Check the path")
    return _read_pickle(content)


def _read_safetensors(content: bytes, length: int) -> object:
    try:
        weights = safetensors.torch.load(content)
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__") or {}
        record = json.loads(metadata[FORMAT]) if FORMAT in metadata else None
        return weights if record is None else {**record, "state_dict": weights}
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(error) from error


def _read_pickle(content: bytes) -> object:
    try:
        with warnings.catch_warnings(action="ignore"):  # what torch makes of other people's pickles is in the error
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        if wanted is None and content[:1] == b"\x80":
            raise CheckpointError(
                "the file is a plain pickle, which could run code on loading, or a damaged one", way_out=_HOW_TO_SAVE
            ) from None
        if wanted is None:
            raise _damaged(error) from error
        raise CheckpointError(
            "the file wants to run code on loading, and no file is trusted with that",
            found=wanted[1],
            way_out=_HOW_TO_SAVE,
        ) from None
    except Exception as error:  # a damaged file can fail in any way
        if "TorchScript" in str(error):
            raise CheckpointError("this is a TorchScript archive, which holds code", way_out=_HOW_TO_SAVE) from None
        raise _damaged(error) from error


def _damaged(error: Exception) -> CheckpointError:
    # Of torch's long message only the cause: the rest advises to read the file unsafely.
    text = str(error)
    lines = (text.partition("WeightsUnpickler error:")[2] or text).strip().splitlines()
    first = lines[0].split(". ")[0][:160] if lines and "weights_only" not in lines[0] else type(error).__name__
    return CheckpointError(
        f"the file can't be read as a checkpoint; it is damaged, cut off, or of another kind ({first})",
        way_out="Fetch or write it again",
    )
