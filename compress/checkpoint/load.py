"""Loading a model from a file: how it is built, the edits it went through, its weights and its history.

A ``.pt`` file is a ``torch.save`` of plain containers and tensors; a ``.safetensors`` file holds the same record as
JSON in its metadata. Neither can carry code, and a network of the user's own is built only by code that the user names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.checkpoint.interface import find_interface
from compress.checkpoint.own_code import (
    Network,
    build_own,
    declared_inputs,
    declared_pose,
    find_factory,
    is_own,
    own_name,
)
from compress.checkpoint.reading import read
from compress.checkpoint.record import inputs_of, is_record, read_record, version_of
from compress.checkpoint.weights import Weights, find_state, fit, variants
from compress.errors import CheckpointError, CompressError, NetworkError
from compress.files import read_bytes
from compress.model import Model
from compress.network.layers import refuse_lazy
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.surgery.edits import apply_edits
from compress.zoo import foreign
from compress.zoo.registry import build, entries, get_entry, pose_spec, resolve


def load(path: str | Path, network: Network | None = None) -> Model:
    """Load a checkpoint, or a state dict from elsewhere.

    Parameters
    ----------
    path : str or Path
        The file; its kind is detected from its content.
    network : str, callable or nn.Module, optional
        The network. A state dict of a known public layout needs none. A network of the user's own always needs it,
        as a class or factory, ``"package.module:factory"`` or ``"file.py:factory"``, even where the file names it too.
        This runs the user's own code: because the user says so, never because a file does. A factory's attribute
        ``pose`` may hold its `PoseSpec`, and ``example`` the shape of its input.

    Returns
    -------
    Model
        On the CPU, in evaluation mode. Where names of weights were changed to fit, the last history entry has
        ``notices`` that say how.

    Raises
    ------
    FileError
        If there is no such file, or it is empty or a folder.
    CheckpointError
        If the file is damaged, of another kind, contains pickled code, or does not fit the network.
    NetworkError
        If the network is unknown, or can't be built or run.
    """
    path = Path(path)
    content = read_bytes(path, "checkpoint")
    try:
        raw = read(content, path.suffix.lower())
        if is_record(raw):
            assert isinstance(raw, Mapping)
            model = _load_record(raw, network)
        else:
            model = _load_foreign(find_state(raw), path.name, network)
        return replace(model, label=path.stem)
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
        If the network or an option is unknown, it has no trained weights and ``trained`` is true, or a factory of the
        user's own fails.
    """
    spec = NetworkSpec(name, dict(options or {}))
    entry = {"command": "init", "network": name, "seed": seed, "trained": False}
    if not spec.is_custom:
        spec = resolve(spec)
        shipped = get_entry(name).weights
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
        module = build_own(spec) if spec.is_custom else build(spec).eval()
    if spec.is_custom:
        return _described(Model(module, spec, (), history=(entry,), label=name), find_factory(name))
    pose = pose_spec(name)
    return Model(module, spec, inputs_of(spec, pose), pose=pose, history=(entry,), label=name)


def _load_record(raw: Mapping[str, Any], network: Network | None) -> Model:
    model = read_record(raw)
    model = replace(model, source=_permitted(model.source, network))
    model = _restored(model, find_state({"state_dict": raw["state_dict"]}), network)
    return _version_1_interface(model) if version_of(raw) == 1 and model.source.is_custom else model


def _load_foreign(weights: Weights, file: str, network: Network | None) -> Model:
    if network is not None and is_own(network):
        spec = NetworkSpec(own_name(network))
        entry = {"command": "import", "file": file, "network": spec.name}
        model = _restored(Model(nn.Identity(), spec, (), history=(entry,)), weights, network)
        return _described(model, find_factory(network))
    found = next((known for each in variants(weights) if (known := foreign.identify(each.state))), None)
    if isinstance(network, str) and (found is None or found.name != network):
        found = NetworkSpec(network, _shared_options(found, network))
    if found is None:
        raise CheckpointError(
            "the weights are of no known network",
            found=", ".join(key[:60] for key in list(weights.state)[:3]) + ", ...",
            hint=f"Known: {', '.join(entry.name for entry in entries())}. "
            "Name your own by --network package.module:factory or file.py:factory, or network= in Python",
        )
    spec = resolve(found)
    pose = pose_spec(spec.name)
    entry = {"command": "import", "file": file, "network": spec.name}
    return _restored(Model(nn.Identity(), spec, inputs_of(spec, pose), pose=pose, history=(entry,)), weights, None)


def _restored(model: Model, weights: Weights, network: Network | None) -> Model:
    """The model with its module: built, edited and given its weights."""
    own = model.source.is_custom
    # A registered network is built without values; one of the user's own may compute with them.
    with torch.random.fork_rng(devices=[]), nullcontext() if own else torch.device("meta"):
        module = build_own(model.source, network) if own else build(model.source)
        refuse_lazy(module)
        module = apply_edits(module, model.edits)
    fitted = fit(weights, module, model.name)
    # Assigned to a network without values, but copied into one of the user's own, whose weights may be tied.
    module.load_state_dict({key: value.clone() for key, value in fitted.state.items()}, assign=not own)
    history = model.history
    if fitted.notices:
        history = (*history[:-1], {**(history[-1] if history else {}), "notices": list(fitted.notices)})
    return replace(model, module=module.eval(), history=history)


def _described(model: Model, factory: Callable[..., nn.Module]) -> Model:
    """The model of a network of the user's own, with what its factory declares and one run of it shows."""
    refuse_lazy(model.module)
    found = find_interface(model.module, declared_inputs(factory), declared_pose(factory), guess=True)
    return replace(model, inputs=found.inputs, outputs=found.outputs, pose=found.pose)


def _version_1_interface(model: Model) -> Model:
    """The model of an old file of a network of the user's own: such files call every network a pose network."""
    try:
        found = find_interface(model.module, model.inputs, model.pose)
    except NetworkError:
        if model.pose != PoseSpec():
            return model
        try:
            found = find_interface(model.module, model.inputs, None)
        except NetworkError:
            return model
    return replace(model, inputs=found.inputs, outputs=found.outputs, pose=found.pose)


def _permitted(spec: NetworkSpec, network: Network | None) -> NetworkSpec:
    """The network to build; refuses a file whose network is not the one the user named, or that the user must name."""
    if spec.is_custom and network is None:
        raise CheckpointError(
            "the checkpoint is of a network outside the package, and no file is trusted to import code",
            found=spec.name,
            hint="Name your own code for it: --network package.module:factory or file.py:factory, "
            "or network= in Python",
        )
    if network is None or network == spec.name:
        return spec
    if not spec.is_custom or not is_own(network):
        name = network if isinstance(network, str) else own_name(network)
        raise CheckpointError(f"the checkpoint holds another network than {name}", found=spec.name)
    return NetworkSpec(network, spec.options) if isinstance(network, str) else spec


def _shared_options(found: NetworkSpec | None, network: str) -> dict[str, Any]:
    """Detected options, such as a depth, that hold for the network that the user named instead of the detected one.

    Networks with heads for other skeletons have other names and options; what both have means the same in both.
    """
    if found is None:
        return {}
    theirs, usual = get_entry(network).options, get_entry(found.name).options
    return {name: value for name, value in found.options.items() if name in theirs and theirs[name] == usual.get(name)}
