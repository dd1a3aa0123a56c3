"""Which parameters are trained, at which learning rate and with which weight decay."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from compress.errors import NetworkError
from compress.forms.registry import is_factorized
from compress.training.options import FineTuneOptions


def find_frozen(module: nn.Module, patterns: tuple[str, ...]) -> tuple[nn.Module, ...]:
    """The submodules that match the patterns, with everything inside them.

    Parameters
    ----------
    module : Module
        The network.
    patterns : tuple of str
        Exact names or patterns with ``*``, ``?`` and ``[...]``.

    Raises
    ------
    NetworkError
        If a pattern matches no submodule.
    """
    names = [name for name, _ in module.named_modules() if name]
    matched: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            tops = ", ".join(name for name, _ in module.named_children())
            raise NetworkError("no module matches this pattern to freeze", found=pattern, hint=f"Modules: {tops}")
        matched += matches
    inside = [part for name in matched for part in module.get_submodule(name).modules()]
    return tuple(dict.fromkeys(inside))


def trained_parameters(module: nn.Module, frozen: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    """The parameters to optimize; gradients of those in frozen submodules are switched off.

    Raises
    ------
    NetworkError
        If none is left.
    """
    for part in frozen:
        part.requires_grad_(False)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise NetworkError("every parameter is frozen, so there is nothing to train", hint="Freeze less")
    return trained


def parameter_groups(module: nn.Module, trained: list[nn.Parameter], options: FineTuneOptions) -> list[dict[str, Any]]:
    """Parameter groups of `torch.optim`, by weight decay and learning rate.

    Matrices and kernels have weight decay; biases and normalisation, which are vectors, have none. ``rate_factor`` of
    a group multiplies the learning rate of the step.

    Raises
    ------
    NetworkError
        If factors have their own learning rate and none is trained.
    """
    factors = {p for part in module.modules() if is_factorized(part) for p in part.parameters()}
    if options.factor_rate == 1:
        factors = set()
    elif factors.isdisjoint(trained):
        raise NetworkError(
            "factor_rate applies to factorized layers, and none is trained",
            found=options.factor_rate,
            hint="Leave out factor_rate",
        )
    return [
        {"params": chosen, "weight_decay": decay, "lr": factor * options.learning_rate, "rate_factor": factor}
        for inside, factor in ((False, 1.0), (True, options.factor_rate))
        for kernels, decay in ((True, options.weight_decay), (False, 0.0))
        if (chosen := [p for p in trained if (p in factors) == inside and (p.ndim > 1) == kernels])
    ]
