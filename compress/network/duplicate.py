"""Copying a network whatever its layers hold."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def duplicate(module: nn.Module, device: str | None = None) -> nn.Module:
    """A deep copy; what was shared inside the network is shared inside the copy.

    ``copy.deepcopy`` alone refuses networks with a weight that a hook derives from others (``weight_norm``); such
    tensors are computed anew at the next call, so their current values are enough.

    Parameters
    ----------
    module : nn.Module
        The network; it is only read.
    device : str, optional
        ``"meta"`` leaves all values out, so that a network of any size is copied at once; None keeps them.

    Returns
    -------
    nn.Module
        The copy, in the same training mode and without gradients.
    """
    memo: dict[int, object] = {}
    for part in module.modules():
        own = (*part.parameters(recurse=False), *part.buffers(recurse=False), *vars(part).values())
        for tensor in own:
            if not isinstance(tensor, Tensor):
                continue
            if device is not None:
                empty = torch.empty_like(tensor, device=device, requires_grad=False)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
            elif not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)
