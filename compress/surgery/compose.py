"""Multiplying factors back into kernels, so that a network that was trained factorized can be factorized further."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from compress.errors import CheckpointError
from compress.network.duplicate import duplicate
from compress.network.factors import group_kernels
from compress.surgery.edits import register_edit
from compress.surgery.factorized import FACTORIZED
from compress.surgery.substitute import move_hooks, replace_module


@register_edit
@dataclass(frozen=True)
class ComposeEdit:
    """Factorized layers replaced by the one layer that their factors are the product of.

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
            if not isinstance(old, FACTORIZED):
                raise CheckpointError(f"the layer {name} is not factorized", found=type(old).__name__)
            new = product(old)
            # Layers that had factors in common have a weight in common again.
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
    """A network without factors, and the edit that says how it came to be."""

    module: nn.Module
    edit: ComposeEdit


def compose(module: nn.Module) -> Composed:
    """Multiply the factors of all factorized layers; the output stays as it was but for rounding.

    Parameters
    ----------
    module : nn.Module
        The network; it stays as it was.
    """
    network = duplicate(module)
    # Under its first name each: another name of the same module goes with it.
    edit = ComposeEdit(tuple(name for name, layer in network.named_modules() if isinstance(layer, FACTORIZED)))
    return Composed(edit.apply(network), edit)


def product(layer: nn.Module) -> nn.Module:
    """The one convolution or linear layer that a factorized layer computes; it shares the bias.

    Parameters
    ----------
    layer : nn.Module
        One of `compress.surgery.factorized.FACTORIZED`.

    Returns
    -------
    nn.Module
        ``nn.Conv2d``, ``nn.ConvTranspose2d`` or ``nn.Linear`` with the weight ``W = C x_3 U3 x_4 U4`` or its like:
        Kim et al. (2016, arXiv:1511.06530), equation 5.
    """
    steps: list[Any] = list(layer.children())
    first, last = steps[0], steps[-1]
    if isinstance(first, nn.Linear):
        new: Any = nn.Linear(first.in_features, last.out_features, bias=False, device="meta")
        weight = last.weight.detach() @ first.weight.detach()
    else:
        core = next((step for step in steps if isinstance(step, nn.ConvTranspose2d)), None)
        turned = core is not None
        kernel = _kernels(first)
        for step in steps[1:]:
            kernel = _chain(kernel, _kernels(step))
        weight = (kernel.transpose(1, 2) if turned else kernel).flatten(0, 1)
        geometry = _geometry(steps)
        if core is not None:
            geometry["output_padding"] = core.output_padding
        form = nn.ConvTranspose2d if turned else nn.Conv2d
        new = form(first.in_channels, last.out_channels, bias=False, device="meta", **geometry)
    new.train(layer.training)
    weight = weight.clone(memory_format=torch.contiguous_format)
    new.weight = nn.Parameter(weight, any(step.weight.requires_grad for step in steps))
    new.register_parameter("bias", last.bias)
    return new


def _kernels(step: Any) -> Tensor:
    kind = "conv_transpose" if isinstance(step, nn.ConvTranspose2d) else "conv"
    return group_kernels(step.weight.detach(), kind, step.groups)


def _chain(first: Tensor, second: Tensor) -> Tensor:
    """Kernels (G, R, S, a, b), then (G, T, R, c, d), as (G, T, S, ac, bd); along an axis one of them has one place."""
    joined = torch.einsum("grsab,gtrcd->gtsacbd", first, second)
    return joined.flatten(5, 6).flatten(3, 4)


def _geometry(steps: list[Any]) -> dict[str, Any]:
    """What the one convolution has that these have together; a step does nothing along an axis, or is alone there."""
    values: dict[str, Any] = {"groups": steps[0].groups}
    for name in ("kernel_size", "stride", "dilation"):
        values[name] = tuple(math.prod(getattr(step, name)[axis] for step in steps) for axis in range(2))
    wide = [step for step in steps if math.prod(step.kernel_size) > 1] or steps
    values["padding_mode"] = wide[0].padding_mode
    if isinstance(wide[0].padding, str):
        values["padding"] = wide[0].padding
    else:
        values["padding"] = tuple(sum(step.padding[axis] for step in steps) for axis in range(2))
    return values
