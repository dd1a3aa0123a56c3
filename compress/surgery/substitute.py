"""Putting other modules in the place of layers, with everything that was tied to them kept."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn

from compress.errors import CheckpointError
from compress.forms.registry import applicable, get_form
from compress.network.kernels import kernel_shape
from compress.network.layers import is_plain, kind_of

#: Builds the factorized form of a layer: (layer, method, ranks) -> module.
Build = Callable[[nn.Module, str, tuple[int, ...]], nn.Module]

# What torch keeps of the hooks a user has put on a module; they see the same inputs and outputs as before.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_is_full_backward_hook",
)


def build_like(layer: nn.Module, method: str, ranks: tuple[int, ...], device: torch.device | None = None) -> nn.Module:
    """The factorized form of a layer, freshly initialised.

    Parameters
    ----------
    layer : nn.Module
        A plain convolution or linear layer.
    method : str
        Name of a form that the layer can have.
    ranks : tuple of int
        As in a plan.
    device : torch.device, optional
        Where to make the weights; without it where the layer's are.
    """
    return get_form(method).build(layer, ranks, device)


def factorize_in_place(
    module: nn.Module,
    layers: Mapping[str, tuple[str, tuple[int, ...]]],
    build: Build = build_like,
    biases: Collection[str] = (),
) -> nn.Module:
    """Replace layers by their factorized form.

    A module that is reached under several names is replaced under all of them. Layers that share a weight get shared
    factors, so ``build`` is called for the first only. Hooks move to the replacement.

    Parameters
    ----------
    module : nn.Module
        The network; it is changed.
    layers : mapping
        Layer name to (method, ranks).
    build : callable
        Makes the replacement of a layer.
    biases : collection of str
        Layers among them that get a bias, zero at first, if they have none.

    Returns
    -------
    nn.Module
        The network; another object only if the network itself is a layer that was replaced.

    Raises
    ------
    CheckpointError
        If there is no such layer, or it can't have that method or those ranks.
    """
    done: dict[Any, nn.Module] = {}
    for name, (method, ranks) in layers.items():
        layer = _layer(module, name, method, ranks)
        key = (layer.weight, method, ranks)
        if key in done:
            new = build_like(layer, method, ranks, torch.device("meta"))  # has no weight of its own
            for part, child in done[key].named_children():
                new.get_submodule(part).register_parameter("weight", child.get_parameter("weight"))
        else:
            new = done[key] = build(layer, method, ranks)
        # The very parameter, not a copy: another layer may have it too.
        bias = layer.bias
        if bias is None and name in biases:
            outputs = new.get_submodule("expand").get_parameter("weight").shape[0]
            bias = nn.Parameter(layer.weight.new_zeros(outputs), layer.weight.requires_grad)
        new.get_submodule("expand").register_parameter("bias", bias)
        move_hooks(layer, new)
        module = replace_module(module, layer, new)
    return module


def move_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a module the hooks of the one that it stands for."""
    for hooks in _HOOKS:
        setattr(new, hooks, getattr(old, hooks))


def _layer(module: nn.Module, name: str, method: str, ranks: tuple[int, ...]) -> Any:
    """The layer of that name, if it can be factorized so."""
    try:
        layer: Any = module.get_submodule(name)
    except AttributeError:
        raise CheckpointError("an edit names a layer that the network does not have", found=name) from None
    kind = kind_of(layer)
    if not isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)) or kind is None or not is_plain(layer):
        raise CheckpointError(f"the layer {name} can't be factorized", found=type(layer).__name__)
    groups = getattr(layer, "groups", 1)
    shape = kernel_shape(kind, layer.weight.shape, groups)
    forms = {form.name: form for form in applicable(shape, kind, groups)}
    if not forms:
        raise CheckpointError(f"the layer {name} can't be factorized", found=f"{groups} groups of {shape[:2]} channels")
    form = forms.get(method)
    if form is None or len(ranks) != form.rank_count or form.clip(shape, ranks) != ranks:
        raise CheckpointError(f"the layer {name} of shape {tuple(shape)} can't have these ranks", found=(method, ranks))
    return layer


def replace_module(module: nn.Module, old: nn.Module, new: nn.Module) -> nn.Module:
    """Put a module in the place of another, under every name it has; returns the network, which may be ``new``."""
    if module is old:
        return new
    for parent in module.modules():
        # named_children would list a child once, even if its parent has it under two names.
        for name in [name for name, child in parent._modules.items() if child is old]:
            parent.register_module(name, new)
    return module
