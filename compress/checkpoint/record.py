"""The record that describes a model in a file, as plain values: writing it, and reading it without trusting it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from torch import nn

from compress.checkpoint.reading import FORMAT
from compress.errors import CheckpointError, PlanError
from compress.model import Model
from compress.network.inputs import InputSpec, image_input
from compress.network.outputs import Outputs
from compress.network.source import NetworkSpec
from compress.planning.plan import Plan
from compress.pose.spec import PoseSpec
from compress.surgery.edits import edit_from_dict
from compress.zoo.registry import get_entry, recorded

#: Versions of the record that are read; the last one is written.
VERSIONS = (1, 2)

_KEYS_1 = {"format", "version", "network", "edits", "pose", "history", "state_dict"}
_KEYS_2 = _KEYS_1 | {"inputs", "outputs", "plan"}


def to_record(model: Model) -> dict[str, Any]:
    """Everything of a model but its weights, fit for JSON.

    Raises
    ------
    TypeError
        If an option, an edit or the history holds a value that JSON can't.
    """
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
    plain: dict[str, Any] = json.loads(json.dumps(record))
    return plain


def is_record(raw: object) -> bool:
    """Whether a file holds a record of ours."""
    return isinstance(raw, Mapping) and isinstance(raw.get("format"), str) and raw["format"] == FORMAT


def version_of(raw: Mapping[str, Any]) -> int:
    """The version of a record.

    Raises
    ------
    CheckpointError
        If it is of a version that is not read, or lacks a key or has others.
    """
    version = raw.get("version")
    if type(version) is not int or version not in VERSIONS:
        newer = type(version) is int and VERSIONS[-1] < version < 1_000_000
        raise CheckpointError(
            f"the checkpoint is of {'a newer' if newer else 'an unknown'} version",
            found=version if newer else None,
            hint=f"This program reads versions {VERSIONS[0]} to {VERSIONS[-1]}"
            + ("; install a newer one" if newer else ""),
        )
    wrong = raw.keys() ^ (_KEYS_1 if version == 1 else _KEYS_2)
    if wrong:
        listed = ", ".join(sorted(key[:40] if isinstance(key, str) else type(key).__name__ for key in wrong))
        raise CheckpointError(f"the checkpoint's record has missing or unknown keys: {listed}")
    return version


def read_record(raw: Mapping[str, Any]) -> Model:
    """The model that a record describes, without a module.

    Raises
    ------
    CheckpointError
        If a value is missing or of another kind.
    """
    version = version_of(raw)
    try:
        # Through JSON, so that nothing but plain values comes in.
        record = json.loads(json.dumps({key: value for key, value in raw.items() if key != "state_dict"}))
        name, history = record["network"]["name"], record["history"]
        source = recorded(NetworkSpec(name, dict(record["network"]["options"])))
        if not isinstance(name, str) or not all(isinstance(entry, dict) for entry in history):
            raise TypeError("a name or a history entry is of another type")
        pose = None if record["pose"] is None else PoseSpec.from_dict(record["pose"])
        if version == 1:
            inputs, outputs = inputs_of(source, pose or PoseSpec()), Outputs()
            plan = _last_plan(history, source, inputs)
        else:
            inputs = tuple(InputSpec(tuple(entry["shape"]), entry["dtype"]) for entry in record["inputs"])
            if not inputs:
                raise ValueError("it has no inputs")
            outputs = Outputs.from_dict(record["outputs"])
            plan = None if record["plan"] is None else Plan.from_dict(record["plan"])
        return Model(
            module=nn.Identity(),
            source=source,
            inputs=inputs,
            outputs=outputs,
            pose=pose,
            edits=tuple(edit_from_dict(edit) for edit in record["edits"]),
            history=tuple(history),
            plan=plan,
        )
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(f"the checkpoint's record can't be read: {error}") from error


def inputs_of(source: NetworkSpec, pose: PoseSpec) -> tuple[InputSpec, ...]:
    """What a network reads of which no file says it."""
    return image_input(pose.size if source.is_custom else get_entry(source.name).input_size, pose.channels)


def _last_plan(history: Sequence[Mapping[str, Any]], source: NetworkSpec, inputs: tuple[InputSpec, ...]) -> Plan | None:
    """The plan of the last factorization in the history of a version 1 file, which holds none of its own."""
    entry = next((entry for entry in reversed(history) if entry.get("command") == "factorize"), None)
    if entry is None or not {"policy", "layers"} <= entry.keys():
        return None
    record = {
        "format": "compress-plan",
        "version": 1,
        "network": source.name,
        "input_size": inputs[0].shape[-2:],
        "layers": entry["layers"],
        "policy": entry["policy"],
    }
    try:
        return Plan.from_dict(record)
    except PlanError:  # the history is a log, no part of the network
        return None
