"""Multiplying factors back into kernels, so that a network that was trained factorized can be factorized further."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from compress.errors import CheckpointError
from compress.forms.registry import form_of, is_factorized
from compress.network.duplicate import duplicate
from compress.surgery.edits import register_edit
from compress.surgery.substitute import move_hooks, replace_module


@register_edit
@dataclass(frozen=True)
class ComposeEdit:
    """Factorized layers replaced by the one layer that is the product of their factors.

    Attributes
    ----------
    layers : tuple of str
        Names of the factorized layers.
    """

    layers: tuple[str, ...]

    kind: ClassVar[str] = "compose"

    def apply(self, module: nn.Module) -> nn.Module:
        """Multiply the factors."""
        made: dict[Any, nn.Parameter] = {}
        for name in self.layers:
            try:
                old = module.get_submodule(name)
            except AttributeError:
                raise CheckpointError("an edit names a layer that the network does not have", found=name) from None
            form = form_of(old)
            if form is None:
                raise CheckpointError(f"the layer {name} is not factorized", found=type(old).__name__)
            new = form.compose(old)
            # Layers that shared factors share a weight again.
            key = tuple(part.get_parameter("weight") for part in old.children())
            new.register_parameter("weight", made.setdefault(key, new.get_parameter("weight")))
            move_hooks(old, new)
            module = replace_module(module, old, new)
        return module

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return {"kind": self.kind, "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> ComposeEdit:
        """Read what `to_dict` wrote; `CheckpointError` if it is anything else."""
        layers = record.get("layers")
        if set(record) != {"layers"} or not isinstance(layers, (list, tuple)):
            raise CheckpointError("a compose edit has the one key layers", found=sorted(map(str, record)))
        if not all(isinstance(name, str) for name in layers):
            raise CheckpointError("the layers of a compose edit must be names", found=layers)
        return cls(tuple(layers))


@dataclass(frozen=True)
class Composed:
    """A network without factorized layers, and the edit that made it."""

    module: nn.Module
    edit: ComposeEdit


def compose(module: nn.Module) -> Composed:
    """Multiply the factors of all factorized layers; the output changes by rounding only.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was.
    """
    network = duplicate(module)
    # Under its first name each: another name of the same module goes with it.
    edit = ComposeEdit(tuple(name for name, layer in network.named_modules() if is_factorized(layer)))
    return Composed(edit.apply(network), edit)
