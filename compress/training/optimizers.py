"""The optimizers that networks can be trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from compress.training.options import FineTuneOptions


def build_optimizer(groups: Sequence[dict[str, Any]], options: FineTuneOptions) -> torch.optim.Optimizer:
    """The optimizer that the options name.

    Parameters
    ----------
    groups : sequence of dict
        Parameter groups of `torch.optim`, each with ``params`` and, where it differs, ``lr`` and ``weight_decay``. With
        Adam, SGD and RMSprop the decay is an L2 penalty in the gradient; AdamW shrinks the weights beside it.
    options : FineTuneOptions
        Optimizer, learning rate and momentum.

    Returns
    -------
    Optimizer
        All parameters are updated in one kernel where torch can.
    """
    rate, decay, groups = options.learning_rate, options.weight_decay, list(groups)
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
    if options.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=options.momentum, weight_decay=decay, fused=True)
    if options.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, momentum=options.momentum, weight_decay=decay)
    return torch.optim.Adam(groups, lr=rate, weight_decay=decay, fused=True)
