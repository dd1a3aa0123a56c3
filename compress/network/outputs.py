"""What a network returns, flattened once to named tensors: no other code knows the structure of a ``forward``.

A forward may return a tensor, a tuple, a list of supervised stages, a dict, or any nesting of these. Its *final*
outputs are those of the last stage; earlier stages are there for training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.network.inputs import Inputs, InputSpec, call, flatten, zero_inputs

#: Final outputs, or those of one stage, by name.
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Outputs:
    """How the return value of a forward is read.

    Attributes
    ----------
    stages : tuple of tuple of (str, str), or None
        For each supervised stage the pairs (name, path), paths as of `compress.network.inputs.flatten`; the last stage
        holds the final outputs. None reads by structure alone: of a list of dicts with the same keys each dict is a
        stage, and everything else is one stage with all tensors.
    """

    stages: tuple[tuple[tuple[str, str], ...], ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the final outputs; empty where they follow from the structure."""
        return () if self.stages is None else tuple(name for name, _ in self.stages[-1])

    def read(self, raw: Any) -> list[Tensors]:
        """The outputs of each stage, the final ones last.

        Raises
        ------
        NetworkError
            If the value holds no tensor, or lacks a path.
        """
        if self.stages is None:
            return _by_structure(raw)
        found = flatten(raw)
        try:
            return [{name: found[path] for name, path in stage} for stage in self.stages]
        except KeyError as error:
            raise NetworkError(
                f"the network did not return the output {error}", found=describe(found), hint="Wrap it again"
            ) from None

    def final(self, raw: Any) -> Tensors:
        """The final outputs.

        Raises
        ------
        NetworkError
            As of `read`.
        """
        return self.read(raw)[-1]

    def to_dict(self) -> list[list[list[str]]] | None:
        """Plain containers, fit for JSON."""
        return None if self.stages is None else [[list(pair) for pair in stage] for stage in self.stages]

    @classmethod
    def from_dict(cls, record: Any) -> Outputs:
        """Read what `to_dict` wrote; a ``ValueError`` if it is anything else."""
        if record is None:
            return cls()
        stages = tuple(tuple((str(name), str(path)) for name, path in stage) for stage in record)
        if not stages or not all(stages):
            raise ValueError("an output specification needs a stage, and an output in each")
        return cls(stages)


#: Reads by structure alone; right for all networks of `compress.zoo`.
BY_STRUCTURE = Outputs()


def resolve(raw: Any, expected: Mapping[str, int | None] | None = None) -> Outputs:
    """How to read return values like this one.

    Parameters
    ----------
    raw : object
        What a forward returned.
    expected : mapping of str to int or None, optional
        Names of the final outputs in order, with their number of channels (size of axis 1) where it is known. Without
        it all tensors of the last stage are outputs, by their own names.

    Returns
    -------
    Outputs
        Outputs are found by name, else by number of channels, else by order. A list whose length is a multiple of
        the number of expected outputs is taken for so many stages.

    Raises
    ------
    NetworkError
        If there is no tensor, or an expected output is not there; the message lists what is, with shapes.
    """
    if expected is None:
        return BY_STRUCTURE if _is_staged(raw) else Outputs((tuple((_label(path), path) for path in _checked(raw)),))
    if _is_staged(raw):
        stages = [_pick(flatten(stage), expected) for stage in raw]
        return Outputs(
            tuple(
                tuple((name, f"{index}.{path}" if path else str(index)) for name, path in stage)
                for index, stage in enumerate(stages)
            )
        )
    found = _checked(raw)
    if isinstance(raw, (list, tuple)) and len(found) == len(raw) > len(expected) and len(found) % len(expected) == 0:
        paths = list(found)
        parts = [paths[start : start + len(expected)] for start in range(0, len(paths), len(expected))]
        if all(_fits([found[path] for path in part], expected) for part in parts):
            return Outputs(tuple(tuple(zip(expected, part, strict=True)) for part in parts))
    return Outputs((_pick(found, expected),))


def probe_outputs(
    module: nn.Module, inputs: Sequence[InputSpec], expected: Mapping[str, int | None] | None = None
) -> Outputs:
    """`resolve` for what a network returns on inputs of zeros.

    Raises
    ------
    NetworkError
        If the forward fails on them, or its outputs are not those expected.
    """
    return resolve(read_once(module, inputs), expected)


@torch.no_grad()
def read_once(module: nn.Module, inputs: Sequence[InputSpec]) -> Any:
    """What a network returns on inputs of zeros in evaluation mode; its own mode stays.

    Raises
    ------
    NetworkError
        If the forward fails on them.
    """
    some = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    was_training = module.training
    try:
        return call(module.eval(), zero_inputs(inputs, some.device, some.dtype))
    except Exception as error:  # whatever the network's code raises
        shapes = ", ".join(str(spec.shape) for spec in inputs)
        lines = str(error).strip().splitlines() or [""]
        raise NetworkError(
            f"the network's forward fails on inputs of shape {shapes}: {type(error).__name__}: {lines[0][:300]}",
            hint="Give the shape that it reads by example=, for example example=(1, 3, 256, 192)",
        ) from error
    finally:
        module.train(was_training)


def run(module: nn.Module, inputs: Inputs, outputs: Outputs = BY_STRUCTURE) -> Tensors:
    """Final outputs of a network."""
    return outputs.final(call(module, inputs))


def describe(found: Mapping[str, Tensor]) -> str:
    """Names and shapes of outputs in words."""
    return ", ".join(f"{name or 'output'} {tuple(value.shape)}" for name, value in found.items()) or "none"


def _is_staged(raw: Any) -> bool:
    """Whether it is a list of dicts of tensors with the same keys."""
    if not isinstance(raw, (list, tuple)) or not raw or not all(isinstance(stage, Mapping) for stage in raw):
        return False
    return all(stage.keys() == raw[0].keys() and stage for stage in raw)


def _by_structure(raw: Any) -> list[Tensors]:
    if _is_staged(raw) and all(isinstance(value, Tensor) for value in raw[-1].values()):
        return [dict(stage) for stage in raw]
    return [{_label(path): tensor for path, tensor in _checked(raw).items()}]


def _checked(raw: Any) -> Tensors:
    found = flatten(raw)
    if not found:
        raise NetworkError(
            "the network returns no tensor",
            found=type(raw).__name__,
            hint="Return a tensor, or a tuple, list or dict of tensors",
        )
    return found


def _label(path: str) -> str:
    """A name for an output: its path, with a word before numbers."""
    if not path:
        return "output"
    return f"output_{path}" if path[0].isdigit() else path


def _fits(tensors: Sequence[Tensor], expected: Mapping[str, int | None]) -> bool:
    counts = zip(tensors, expected.values(), strict=True)
    return all(count is None or (value.dim() > 1 and value.shape[1] == count) for value, count in counts)


def _pick(found: Tensors, expected: Mapping[str, int | None]) -> tuple[tuple[str, str], ...]:
    """The path of each expected output: by name, by channels, or by order."""
    by_label = {_label(path): path for path in found}
    if all(name in by_label for name in expected):
        paths = [by_label[name] for name in expected]
    elif len(found) == len(expected) and _fits(list(found.values()), expected):
        paths = list(found)
    else:
        paths = []
        for name, count in expected.items():
            sized = [path for path, value in found.items() if count and value.dim() > 1 and value.shape[1] == count]
            if name in by_label:
                paths.append(by_label[name])
            elif sized:
                paths.append(sized[-1])  # a network with several stages gives its final outputs last
    if len(set(paths)) == len(expected) and _fits([found[path] for path in paths], expected):
        return tuple(zip(expected, paths, strict=True))
    wanted = ", ".join(name if count is None else f"{name} with {count} channels" for name, count in expected.items())
    raise NetworkError(
        f"the pose specification expects {wanted}, and the network returns {describe(found)}",
        hint="Name the outputs and the skeleton in the pose specification, or leave it out",
    )
