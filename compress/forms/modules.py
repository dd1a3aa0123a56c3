"""Modules of factorized layers: steps that together stand for one layer, and the layer they can be multiplied to.

Steps have the name of their place in the formula: ``reduce`` brings the input channels down to a rank, ``core`` (where
there is one) works there, ``expand`` brings the rank up to the output channels and adds the bias.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.network.kernels import group_kernels

Convolution = nn.Conv2d | nn.ConvTranspose2d


class FactorizedLayer(nn.Module):
    """Steps that stand for one layer and run one after the other, in the order of the children.

    Parameters
    ----------
    form : str
        Name of the form in the registry.
    layer : nn.Module
        The layer to stand for: training mode and trainable parameters are taken over from it.
    steps : mapping of str to nn.Module
        The last one is ``expand`` and has the bias, if the layer has one; no other step has a bias.
    """

    def __init__(self, form: str, layer: nn.Module, steps: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.form = form
        for name, step in steps.items():
            self.add_module(name, step)
        self.train(layer.training)
        self.requires_grad_(layer.get_parameter("weight").requires_grad)
        bias = getattr(layer, "bias", None)
        if bias is not None:
            self.get_parameter("expand.bias").requires_grad_(bias.requires_grad)

    def forward(self, input: Tensor) -> Tensor:
        """Images (N, S, H, W) to (N, T, H', W'), or features (..., S) to (..., T)."""
        for step in self.children():
            input = step(input)
        return input


def placement(layer: nn.Module, device: torch.device | None) -> dict[str, Any]:
    """Keyword arguments that put a step on a device, by default the layer's, in the layer's precision."""
    weight = layer.get_parameter("weight")
    return {"device": device or weight.device, "dtype": weight.dtype}


def geometry(conv: Convolution) -> dict[str, Any]:
    """Keyword arguments for a convolution that moves over the image as this one does."""
    return {name: getattr(conv, name) for name in ("stride", "padding", "dilation", "padding_mode")}


def step_kernels(step: Any) -> Tensor:
    """Kernels (groups, T, S, *k) of a convolution."""
    kind = "conv_transpose" if isinstance(step, nn.ConvTranspose2d) else "conv"
    return group_kernels(step.weight.detach(), kind, step.groups)


def chained_kernels(steps: Sequence[Any]) -> Tensor:
    """The kernels (groups, T, S, *k) that convolutions with the same groups have together.

    Along each axis at most one of them has more than one place.
    """
    kernels = step_kernels(steps[0])
    for step in steps[1:]:
        joined = torch.einsum("grsab,gtrcd->gtsacbd", kernels, step_kernels(step))
        kernels = joined.flatten(5, 6).flatten(3, 4)
    return kernels


def multiplied(module: nn.Module, kernels: Tensor, groups: int = 1) -> nn.Module:
    """The one convolution with these kernels that does what a chain of convolutions does; it shares the bias.

    Parameters
    ----------
    module : nn.Module
        A `FactorizedLayer` of convolutions.
    kernels : Tensor, shape (groups, T, S, *k)
        The product of its steps.
    groups : int
        Groups of the convolution.

    Returns
    -------
    nn.Conv2d or nn.ConvTranspose2d
        Transposed if one of the steps is.
    """
    steps: list[Any] = list(module.children())
    core = next((step for step in steps if isinstance(step, nn.ConvTranspose2d)), None)
    options = {"groups": groups, **_joint_geometry(steps)}
    if core is None:
        new: Any = nn.Conv2d(steps[0].in_channels, steps[-1].out_channels, bias=False, device="meta", **options)
    else:
        options["output_padding"] = core.output_padding
        kernels = kernels.transpose(1, 2)
        new = nn.ConvTranspose2d(steps[0].in_channels, steps[-1].out_channels, bias=False, device="meta", **options)
    return with_weight(new, module, kernels.flatten(0, 1))


def with_weight(new: Any, module: nn.Module, weight: Tensor) -> nn.Module:
    """A new layer with a weight, and the mode and the bias of a factorized one."""
    steps: list[Any] = list(module.children())
    new.train(module.training)
    weight = weight.clone(memory_format=torch.contiguous_format)
    new.weight = nn.Parameter(weight, any(step.weight.requires_grad for step in steps))
    new.register_parameter("bias", steps[-1].bias)
    result: nn.Module = new
    return result


def _joint_geometry(steps: list[Any]) -> dict[str, Any]:
    """Kernel size, stride, padding and dilation of a chain; along each axis at most one step does anything."""
    values: dict[str, Any] = {}
    for name in ("kernel_size", "stride", "dilation"):
        values[name] = tuple(math.prod(getattr(step, name)[axis] for step in steps) for axis in range(2))
    wide = [step for step in steps if math.prod(step.kernel_size) > 1] or steps
    values["padding_mode"] = wide[0].padding_mode
    if isinstance(wide[0].padding, str):
        values["padding"] = wide[0].padding
    else:
        values["padding"] = tuple(sum(step.padding[axis] for step in steps) for axis in range(2))
    return values
