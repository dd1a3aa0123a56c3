"""Loading a model from a file: how it is built, the edits it went through, its weights and its history.

A ``.pt`` file is a ``torch.save`` of plain containers and tensors; a ``.safetensors`` file holds the same record as
JSON in its metadata. Neither can carry code, and a network of the user's own is built only by code that the user names.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from compress.checkpoint.reading import FORMAT, read
from compress.errors import CheckpointError, CompressError, NetworkError
from compress.files import read_bytes
from compress.model import Model
from compress.network.inputs import InputSpec, image_input
from compress.network.outputs import Outputs, probe_outputs
from compress.network.source import NetworkSpec
from compress.planning.plan import Plan
from compress.pose.spec import PoseSpec
from compress.surgery.edits import apply_edits, edit_from_dict
from compress.zoo import foreign
from compress.zoo.registry import build, entries, get_entry, pose_spec, resolve

#: Versions of the record that are read; the last one is written.
VERSIONS = (1, 2)

#: A network as the user names it: a registered name, ``package.module:factory``, or the factory or class itself.
Network = str | Callable[..., nn.Module]


def load(path: str | Path, network: Network | None = None) -> Model:
    """Load a checkpoint, or a state dict from elsewhere.

    Parameters
    ----------
    path : str or Path
        The file; its kind is told by its content.
    network : str or callable, optional
        The network. A state dict of a known public layout needs none. A network of the user's own always needs it,
        even where the file names it too: code runs because the user says so, not because a file does.

    Returns
    -------
    Model
        On the CPU, in evaluation mode.

    Raises
    ------
    FileError
        If there is no such file, or it is empty or a folder.
    CheckpointError
        If the file is damaged, of another kind, contains pickled code, or does not fit the network.
    NetworkError
        If the network is unknown.
    """
    path = Path(path)
    content = read_bytes(path, "checkpoint")
    try:
        raw = read(content, path.suffix.lower())
        parts = _read_record(raw, network) if _is_ours(raw) else _read_foreign(raw, path.name, network)
        model, state = parts
        module = skeleton(model.source, network)
        module = _edited(model, module)
        weights = foreign.fit(state, module, model.name)
        # Assigned to a network without values, but copied into one of the user's own, whose weights may be tied.
        weights = {key: value.clone() for key, value in weights.items()}
        module.load_state_dict(weights, assign=not model.source.is_custom)
        return replace(model, module=module.eval(), label=path.stem)
    except CompressError as error:
        raise type(error)(f"{path}: {error.cause}", found=error.found, hint=error.hint) from error


def create(name: str, options: Mapping[str, Any] | None = None, *, seed: int = 0, trained: bool | None = None) -> Model:
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
    Model
        The last record of its history says by ``trained`` which weights it holds.

    Raises
    ------
    NetworkError
        If the network or an option is unknown, or it has no trained weights and ``trained`` is true.
    """
    spec = resolve(NetworkSpec(name, dict(options or {})))
    shipped = None if spec.is_custom else get_entry(name).weights
    if shipped is not None and trained is not False:
        found = load(shipped)
        if resolve(found.source) == spec:
            entry = {"command": "init", "network": name, "trained": True}
            return replace(found, history=(*found.history, entry), label=name)
    if trained:
        raise NetworkError(
            f"no trained weights of the network {name} with these options ship with the package",
            found=dict(spec.options),
            hint="Start from random weights and train them",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build(spec).eval()
    pose = pose_spec(name)
    inputs = _inputs_of(spec, pose)
    outputs = probe_outputs(module, inputs, None) if spec.is_custom else Outputs()
    entry = {"command": "init", "network": name, "seed": seed, "trained": False}
    return Model(module, spec, inputs, outputs, pose, history=(entry,), label=name)


def skeleton(spec: NetworkSpec, network: Network | None) -> nn.Module:
    """The network before its first edit with whatever weights: without values where the project can answer for that."""
    if callable(network):
        with torch.random.fork_rng(devices=[]):
            return network(**spec.options)
    if spec.is_custom:
        with torch.random.fork_rng(devices=[]):
            return build(spec)
    with torch.device("meta"):
        return build(spec)


def _edited(model: Model, module: nn.Module) -> nn.Module:
    if model.source.is_custom:
        with torch.random.fork_rng(devices=[]):
            return apply_edits(module, model.edits)
    with torch.device("meta"):
        return apply_edits(module, model.edits)


def _inputs_of(spec: NetworkSpec, pose: PoseSpec) -> tuple[InputSpec, ...]:
    """What a network reads that brings no record of it."""
    return image_input(pose.size if spec.is_custom else get_entry(spec.name).input_size)


def _is_ours(raw: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(raw, Mapping) and isinstance(raw.get("format"), str) and raw["format"] == FORMAT


def _read_record(raw: Mapping[str, Any], network: Network | None) -> tuple[Model, dict[str, Tensor]]:
    """Read a record of `compress.checkpoint.save.save`, trusting nothing in it: a model without values, and weights."""
    version = raw.get("version")
    if type(version) is not int or version not in VERSIONS:
        newer = type(version) is int and VERSIONS[-1] < version < 1_000_000
        raise CheckpointError(
            f"the checkpoint is of {'a newer' if newer else 'an unknown'} version",
            found=version if newer else None,
            hint=f"This program reads versions {VERSIONS[0]} to {VERSIONS[-1]}"
            + ("; install a newer one" if newer else ""),
        )
    keys = {"format", "version", "network", "edits", "pose", "history", "state_dict"}
    if version > 1:
        keys |= {"inputs", "outputs", "plan"}
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
        spec = _permit(spec, network)
        pose = None if record["pose"] is None else PoseSpec.from_dict(record["pose"])
        if version == 1:
            inputs, outputs, plan = _inputs_of(spec, pose or PoseSpec()), Outputs(), None
        else:
            inputs = tuple(InputSpec(tuple(entry["shape"]), entry["dtype"]) for entry in record["inputs"])
            outputs = Outputs.from_dict(record["outputs"])
            plan = None if record["plan"] is None else Plan.from_dict(record["plan"])
        model = Model(
            module=nn.Identity(),
            source=spec,
            inputs=inputs,
            outputs=outputs,
            pose=pose,
            edits=tuple(edit_from_dict(edit) for edit in record["edits"]),
            history=tuple(record["history"]),
            plan=plan,
        )
        return model, foreign.clean({"state_dict": raw["state_dict"]})
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's record can't be read: {error}") from error


def _permit(spec: NetworkSpec, network: Network | None) -> NetworkSpec:
    """The network to build; refuses a file whose network is not the one the user named, or that the user must name."""
    if callable(network):
        return spec
    if spec.is_custom and network is not None and NetworkSpec(network).is_custom:
        return NetworkSpec(network, spec.options)
    if network is not None and network != spec.name:
        raise CheckpointError(f"the checkpoint holds another network than {network}", found=spec.name)
    if spec.is_custom and network is None:
        raise CheckpointError(
            "the checkpoint is of a network outside the package, and no file is trusted to run code",
            found=spec.name,
            hint="Name your own code for it: --network package.module:factory, or network= in Python",
        )
    return spec


def _read_foreign(raw: object, file: str, network: Network | None) -> tuple[Model, dict[str, Tensor]]:
    state = foreign.clean(raw)
    found = foreign.identify(state)
    if callable(network):
        raise CheckpointError("bare weights of your own network: load them into it, then compress.wrap(net)")
    if network is not None and (found is None or found.name != network):
        found = NetworkSpec(network, _shared_options(found, network))
    if found is None:
        raise CheckpointError(
            "the weights are of no known network",
            found=", ".join(key[:60] for key in list(state)[:3]) + ", ...",
            hint=f"Known: {', '.join(entry.name for entry in entries())}. "
            "Name your own by --network package.module:factory",
        )
    spec = resolve(found)
    pose = pose_spec(spec.name)
    entry = {"command": "import", "file": file, "network": spec.name}
    model = Model(nn.Identity(), spec, _inputs_of(spec, pose), Outputs(), pose, history=(entry,))
    return model, state


def _shared_options(found: NetworkSpec | None, network: str) -> dict[str, Any]:
    """Detected options, such as a depth, that hold for the network that the user named instead of the detected one.

    Heads for other skeletons have names of their own; what their names stand for is theirs, the rest is the same.
    """
    if found is None or NetworkSpec(network).is_custom:
        return {}
    theirs, usual = get_entry(network).options, get_entry(found.name).options
    return {name: value for name, value in found.options.items() if name in theirs and theirs[name] == usual.get(name)}
