"""A copy of the last good state of a run, for when its numbers stop being numbers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: Steps after which the copy is renewed; also where a training state is written, so that a resumed run goes back to
#: the same step as one that was never stopped.
KEPT_EVERY = 50

#: What the learning rate is multiplied by at each return.
SLOWER = 0.5


class Diverged(Exception):
    """Loss or gradient are no numbers any more; says which. Never leaves the training loop."""


@dataclass(frozen=True)
class Rollback:
    """A return to the last good state.

    Attributes
    ----------
    step : int
        The step that failed, from 1.
    to : int
        Steps done in the state that the run went back to.
    reason : str
        What was no number.
    rate_factor : float
        What all learning rates are multiplied by from now on.
    """

    step: int
    to: int
    reason: str
    rate_factor: float


class Watchdog:
    """Keeps the state of a run at its last good step in memory.

    Parameters
    ----------
    most : int
        Returns in the whole run.

    Attributes
    ----------
    returns : int
        How often the run went back so far.
    """

    def __init__(self, most: int) -> None:
        self.most, self.returns = most, 0
        self._kept: dict[str, Any] | None = None

    @property
    def rate_factor(self) -> float:
        """What learning rates are multiplied by after the returns so far."""
        return SLOWER**self.returns

    def keep(self, state: dict[str, Any]) -> None:
        """Copy a state of plain containers and tensors."""
        # Not before the old copy is gone: two of them beside the network may be more than a GPU holds.
        self._kept = None
        self._kept = copy.deepcopy(state)

    def roll_back(self, trouble: Diverged, step: int, restore: Callable[[dict[str, Any]], int]) -> Rollback | None:
        """Give the last good state to ``restore``, which says its step; None if there is no return left."""
        if self._kept is None or self.returns >= self.most:
            return None
        self.returns += 1
        # A copy again: an optimizer that takes up tensors goes on to change them.
        to = restore(copy.deepcopy(self._kept))
        return Rollback(step, to, str(trouble), self.rate_factor)
