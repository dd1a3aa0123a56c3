"""What training reports while it runs and returns at the end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass(frozen=True)
class StepLog:
    """One training step.

    Attributes
    ----------
    step : int
        Number of the step, from 1.
    steps : int
        Total number of steps.
    loss : float
        Loss before the update, the sum of ``parts``.
    parts : dict of str to float
        Weighted terms: ``labels.heatmaps``, ``teacher.maps.pafs``, ``teacher.features.<module>`` and so on.
    learning_rate : float
        Learning rate of the step.
    images_per_second : float
        Throughput of all processes over the last steps, including loading and excluding evaluation.
    score : float or None
        Validation score after the step, if it was evaluated.
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
    """Something that happened between steps.

    Attributes
    ----------
    kind : str
        ``"score"`` (before the first step), ``"resume"``, ``"rollback"`` or ``"early stop"``.
    step : int
        Number of steps completed at that time; for a rollback, that of the restored state.
    text : str
        A description to print.
    values : dict
        The same as plain data.
    """

    kind: str
    step: int
    text: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Best:
    """The best evaluation: the number of steps completed before it, and its score."""

    step: int
    score: float


@dataclass(frozen=True)
class FineTuneResult:
    """The outcome of a training run.

    Attributes
    ----------
    module : Module
        A new network in eval mode on the CPU, with the best-scoring weights if there was an evaluation and the last
        ones otherwise.
    log : tuple of StepLog
        Every step.
    scores : tuple of (int, float)
        Every evaluation: steps completed (0 before training) and score.
    best : Best or None
        The evaluation whose weights were kept; step 0 if training never improved on the initial weights.
    distilled : tuple of str
        Submodules whose features were compared with the teacher's.
    rollbacks : int
        Number of rollbacks after a NaN or infinite loss or gradient.
    """

    module: nn.Module
    log: tuple[StepLog, ...]
    scores: tuple[tuple[int, float], ...]
    best: Best | None
    distilled: tuple[str, ...]
    rollbacks: int = 0
