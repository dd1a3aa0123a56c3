"""Which parameters are trained, how fast, and how strongly their size is punished."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from compress.errors import NetworkError
from compress.surgery.factorized import FACTORIZED
from compress.training.options import FineTuneOptions


def find_frozen(module: nn.Module, patterns: tuple[str, ...]) -> tuple[nn.Module, ...]:
    """The submodules that the patterns name, with everything inside them.

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
    found: list[str] = []
    for pattern in patterns:
        matches = [name for name in names if fnmatchcase(name, pattern)]
        if not matches:
            tops = ", ".join(name for name, _ in module.named_children())
            raise NetworkError("no module to freeze has this name", found=pattern, hint=f"Modules: {tops}")
        found += matches
    inside = [part for name in found for part in module.get_submodule(name).modules()]
    return tuple(dict.fromkeys(inside))


def trained_parameters(module: nn.Module, frozen: tuple[nn.Module, ...]) -> list[nn.Parameter]:
    """What the optimizer may change; the parameters of the frozen submodules lose their gradient.

    Raises
    ------
    NetworkError
        If nothing is left.
    """
    for part in frozen:
        part.requires_grad_(False)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not trained:
        raise NetworkError("every parameter is frozen, so there is nothing to train", hint="Freeze less")
    return trained


def parameter_groups(module: nn.Module, trained: list[nn.Parameter], options: FineTuneOptions) -> list[dict[str, Any]]:
    """Groups of `torch.optim`, by decay and learning rate.

    Matrices and kernels have weight decay; biases and normalisation, which are vectors, none. ``rate_factor`` of a
    group is what the learning rate of the step is multiplied by.

    Raises
    ------
    NetworkError
        If factors are to have another learning rate and none is trained.
    """
    factors = {p for part in module.modules() if isinstance(part, FACTORIZED) for p in part.parameters()}
    if options.factor_rate == 1:
        factors = set()
    elif factors.isdisjoint(trained):
        raise NetworkError(
            "factor_rate is for the layers of a factorized network, and none of them is trained",
            found=options.factor_rate,
            hint="Leave it out",
        )
    return [
        {"params": some, "weight_decay": decay, "lr": factor * options.learning_rate, "rate_factor": factor}
        for inside, factor in ((False, 1.0), (True, options.factor_rate))
        for kernels, decay in ((True, options.weight_decay), (False, 0.0))
        if (some := [p for p in trained if (p in factors) == inside and (p.ndim > 1) == kernels])
    ]
