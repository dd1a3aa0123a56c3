"""What training tells on the way and gives at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class StepLog:
    """One step of training.

    Attributes
    ----------
    step : int
        Number of the step, from 1.
    steps : int
        Steps in all.
    loss : float
        Loss before the step, the sum of ``parts``.
    parts : dict of str to float
        Weighted summands: ``labels.heatmaps``, ``maps.pafs``, ``features.<module>`` and so on.
    learning_rate : float
        Learning rate of the step.
    images_per_second : float
        Over the last steps, loading included, evaluation not; of all processes together.
    score : float or None
        Score after the step, where it was evaluated.
    best : bool
        Whether that is the best score so far, so that these weights are kept.
    """

    step: int
    steps: int
    loss: float
    parts: dict[str, float]
    learning_rate: float
    images_per_second: float
    score: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Event:
    """Something beside the steps.

    Attributes
    ----------
    kind : str
        ``"score"`` (before the first step), ``"resume"``, ``"rollback"`` or ``"early stop"``.
    step : int
        Steps done when it happened, after a return to an earlier step the one that was returned to.
    text : str
        For people.
    values : dict
        For programs, plain data.
    """

    kind: str
    step: int
    text: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The best evaluation and the step it came after."""

    step: int
    score: float


@dataclass(frozen=True)
class FineTuneResult:
    """What training gave.

    Attributes
    ----------
    module : Module
        A new network in eval mode on the CPU: the best-scoring weights if there was an evaluation, otherwise the
        last.
    log : tuple of StepLog
        Every step.
    scores : tuple of (int, float)
        Every evaluation: steps done, 0 before training, and the score.
    best : Best or None
        Where the weights come from; step 0 means that training never improved on the start.
    distilled : tuple of str
        Submodules whose features were compared with the teacher's.
    rollbacks : int
        How often the run went back because its numbers were none.
    """

    module: nn.Module
    log: tuple[StepLog, ...]
    scores: tuple[tuple[int, float], ...]
    best: Best | None
    distilled: tuple[str, ...]
    rollbacks: int = 0
