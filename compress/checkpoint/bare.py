"""The network inside what training programs put around it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

#: Attributes under which ``torch.compile``, activation checkpointing and FSDP keep the module that they wrap.
HELD_AS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")

_CONTAINERS = (nn.ModuleList, nn.ModuleDict)


def bare(module: nn.Module) -> nn.Module:
    """A network without its wrappers: those around it, and, changed in place, those around its parts.

    Taken off are ``DataParallel``, ``DistributedDataParallel``, ``torch.compile``, ``AveragedModel``, activation
    checkpointing, FSDP, and holders of another module that have no forward of their own.
    """
    while (inner := _wrapped(module)) is not None or (inner := _held(module)) is not None:
        module = inner
    for part in list(module.modules()):
        if getattr(part, "_compiled_call_impl", None) is not None:  # compiled in place, by module.compile()
            part._compiled_call_impl = None
        for name, child in list(part.named_children()):
            while (inner := _wrapped(child)) is not None:
                child = inner
            part._modules[name] = child
    return module


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module inside a known wrapper."""
    parts: dict[str, Any] = dict(module.named_children())
    if isinstance(module, (nn.DataParallel, DistributedDataParallel, AveragedModel)):
        return parts["module"]
    return next((parts[name] for name in HELD_AS if name in parts), None)


def _held(module: nn.Module) -> nn.Module | None:
    """The only child of a module that can't be called itself."""
    children = list(module.children())
    unable = type(module).forward is nn.Module.forward and not isinstance(module, _CONTAINERS)
    return children[0] if unable and len(children) == 1 and "forward" not in vars(module) else None
