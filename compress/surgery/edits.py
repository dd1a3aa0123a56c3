"""Changes of a network's structure as plain data, to be replayed on a freshly built network.

A checkpoint stores them in the order in which they were made; weights are loaded after the last. A new kind of edit is
a class with the members of `Edit`, registered by `register_edit`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

from torch import nn

from compress.errors import CheckpointError
from compress.forms.registry import FORMS
from compress.network.duplicate import duplicate
from compress.planning.plan import Plan
from compress.surgery.substitute import factorize_in_place


class Edit(Protocol):
    """One change of structure; a frozen dataclass."""

    kind: ClassVar[str]

    def apply(self, module: nn.Module) -> nn.Module:
        """Change ``module`` in place and return it, or its replacement; weights may be anything.

        Raises `CheckpointError` if the edit does not fit the network.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Plain containers with the key ``"kind"``."""
        ...

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Self:
        """Read what `to_dict` wrote, without ``"kind"``; `CheckpointError` if it is anything else."""
        ...


EditClass = TypeVar("EditClass", bound=type[Edit])

_KINDS: dict[str, type[Edit]] = {}


def register_edit(edit: EditClass) -> EditClass:
    """Register a kind of edit for `edit_from_dict`; a class decorator."""
    if edit.kind in _KINDS:
        raise ValueError(f"the edit {edit.kind!r} is registered already")
    _KINDS[edit.kind] = edit
    return edit


def edit_from_dict(record: Mapping[str, Any]) -> Edit:
    """Read an edit of any kind, as its ``to_dict`` wrote it.

    Raises
    ------
    CheckpointError
        If the kind is unknown or the record is not one of its kind.
    """
    if not isinstance(record, Mapping):
        raise CheckpointError("an edit must be a mapping", found=record)
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CheckpointError("unknown kind of edit", found=kind, hint=f"Known: {', '.join(_KINDS)}")
    return _KINDS[kind].from_dict({key: value for key, value in record.items() if key != "kind"})


def apply_edits(module: nn.Module, edits: Iterable[Edit]) -> nn.Module:
    """Replay edits in order.

    Parameters
    ----------
    module : nn.Module
        The network before the first edit; it stays as it was.
    edits : iterable of Edit
        Later ones use the names that earlier ones made.

    Returns
    -------
    nn.Module
        A new network of the final structure; new layers have fresh weights.

    Raises
    ------
    CheckpointError
        If an edit does not fit.
    """
    module = duplicate(module)
    for edit in edits:
        module = edit.apply(module)
    return module


@register_edit
@dataclass(frozen=True)
class FactorizeEdit:
    """Layers replaced by their factorized form.

    Attributes
    ----------
    layers : mapping
        Layer name to (method, ranks), as in a plan.
    biases : tuple of str
        Layers that had no bias and got one: it carries the mean of what the factors leave out.
    """

    layers: Mapping[str, tuple[str, tuple[int, ...]]]
    biases: tuple[str, ...] = ()

    kind: ClassVar[str] = "factorize"

    @classmethod
    def from_plan(cls, plan: Plan, biases: tuple[str, ...] = ()) -> FactorizeEdit:
        """The structure that a plan asks for; ``biases`` as of `Factorized`."""
        return cls({entry.name: (entry.method, entry.ranks) for entry in plan.changed}, biases)

    def apply(self, module: nn.Module) -> nn.Module:
        """Replace the layers; the new ones have fresh weights."""
        return factorize_in_place(module, self.layers, biases=self.biases)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        layers = {name: {"method": method, "ranks": list(ranks)} for name, (method, ranks) in self.layers.items()}
        return {"kind": self.kind, "layers": layers, **({"biases": list(self.biases)} if self.biases else {})}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> FactorizeEdit:
        """Read what `to_dict` wrote; `CheckpointError` if it is anything else."""
        if not {"layers"} <= set(record) <= {"layers", "biases"} or not isinstance(record["layers"], Mapping):
            raise CheckpointError("a factorize edit has the keys layers and biases", found=sorted(map(str, record)))
        layers = {name: _read_ranks(name, entry) for name, entry in record["layers"].items()}
        biases = record.get("biases", [])
        if not isinstance(biases, (list, tuple)) or not all(isinstance(x, str) and x in layers for x in biases):
            raise CheckpointError("the biases of a factorize edit must name layers that it replaces", found=biases)
        return cls(layers, tuple(biases))


def _read_ranks(name: Any, entry: Any) -> tuple[str, tuple[int, ...]]:
    try:
        if not isinstance(name, str) or set(entry) != {"method", "ranks"}:
            raise ValueError
        method, ranks = entry["method"], tuple(entry["ranks"])
        if (
            FORMS[method].rank_count != len(ranks)
            or not ranks
            or any(type(rank) is not int or rank < 1 for rank in ranks)
        ):
            raise ValueError
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(f"a factorize edit can't be read at layer {name}", found=entry) from None
    return method, ranks
