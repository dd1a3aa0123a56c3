"""A copy of the last good training state, to roll back to on a NaN or infinite loss or gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Steps between copies. A copy is also made whenever a training state is written, so that a resumed run rolls back to
#: the same step as an uninterrupted one.
COPY_EVERY = 50

#: Factor of the learning rate at each rollback.
ROLLBACK_FACTOR = 0.5


class Diverged(Exception):
    """The loss or the gradient is NaN or infinite; the message says which. Never leaves the training loop."""


@dataclass(frozen=True)
class Rollback:
    """A rollback to the last good state.

    Attributes
    ----------
    step : int
        The step that failed, from 1.
    to : int
        Number of steps completed in the restored state.
    reason : str
        What was NaN or infinite.
    rate_factor : float
        Factor of all learning rates from now on.
    """

    step: int
    to: int
    reason: str
    rate_factor: float


class Watchdog:
    """Keeps the last good state of a run in memory.

    Parameters
    ----------
    limit : int
        Rollbacks allowed in the whole run.

    Attributes
    ----------
    rollbacks : int
        Rollbacks so far.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.rollbacks = limit, 0
        self._kept: dict[str, Any] | None = None

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rates after the rollbacks so far."""
        return ROLLBACK_FACTOR**self.rollbacks

    def keep(self, state: dict[str, Any]) -> None:
        """Copy a state of plain containers and tensors."""
        # The old copy is freed first: two copies beside the network may not fit into a GPU's memory.
        self._kept = None
        self._kept = copy.deepcopy(state)

    def roll_back(self, cause: Diverged, step: int, restore: Callable[[dict[str, Any]], int]) -> Rollback | None:
        """Pass the last good state to ``restore``, which returns its step; None if no rollback is left."""
        if self._kept is None or self.rollbacks >= self.limit:
            return None
        self.rollbacks += 1
        # Copied again: an optimizer changes the tensors that it loads.
        to = restore(copy.deepcopy(self._kept))
        return Rollback(step, to, str(cause), self.rate_factor)
