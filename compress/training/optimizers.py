"""The available optimizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compress.training.options import FineTuneOptions


def build_optimizer(groups: Sequence[dict[str, Any]], options: FineTuneOptions) -> torch.optim.Optimizer:
    """The optimizer chosen by the options.

    Parameters
    ----------
    groups : sequence of dict
        Parameter groups of `torch.optim`, each with ``params`` and, where they differ, ``lr`` and ``weight_decay``.
        With Adam, SGD and RMSprop the decay is an L2 penalty in the gradient; AdamW decouples it from the gradient.
    options : FineTuneOptions
        Optimizer, learning rate and momentum.

    Returns
    -------
    Optimizer
        A fused one where torch has it.
    """
    rate, decay, groups = options.learning_rate, options.weight_decay, list(groups)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=options.momentum, weight_decay=decay, fused=True)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, momentum=options.momentum, weight_decay=decay)
    return torch.optim.Adam(groups, lr=rate, weight_decay=decay, fused=True)
