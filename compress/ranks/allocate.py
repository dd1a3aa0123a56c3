"""Spending one budget on many layers: the multiple-choice knapsack problem.

Every layer becomes exactly one of its choices; the sum of errors shall be least with the sum of costs within a budget.
It is solved by dynamic programming over costs in units that do not depend on the budget, so the tables of a small
budget are the beginning of those of a larger one: a larger budget never gives a larger error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import RankError

#: The dearest allocation costs so many units; costs are rounded up to whole ones, so no budget is ever exceeded.
UNITS = 20_000

# A cost within this share of a unit above a whole number of units is that number: it is rounding.
_SLACK = 1e-6


@dataclass(frozen=True)
class Choice:
    """One thing that a layer could become.

    Attributes
    ----------
    cost : float
        In the unit of the budget, at least 0.
    error : float
        At least 0; errors of layers add up.
    """

    cost: float
    error: float


@dataclass(frozen=True)
class Allocation:
    """One choice for each layer.

    Attributes
    ----------
    picks : tuple of int
        Index of the choice of each layer.
    cost, error : float
        Sums over the layers.
    """

    picks: tuple[int, ...]
    cost: float
    error: float


def cheapest(layers: Sequence[Sequence[Choice]]) -> float:
    """The least that all layers together can cost, up to the rounding of `allocate`."""
    unit = _unit(layers)
    return sum(min(_units(choices, unit)) for choices in layers) * unit


def allocate(layers: Sequence[Sequence[Choice]], budget: float) -> Allocation | None:
    """The choices of least total error within a budget.

    Parameters
    ----------
    layers : sequence of sequence of Choice
        What each layer could become, at least one choice each.
    budget : float
        Bound of the total cost.

    Returns
    -------
    Allocation or None
        None if the budget is below `cheapest`. The error is at most that of any other choices whose costs, each
        rounded up to a whole unit (`UNITS`), are within the budget.

    Raises
    ------
    RankError
        If a cost or error is negative or not finite, or a layer has no choices.
    """
    tables = _tables(layers)
    unit = _unit(layers)
    room = min(math.floor(budget / unit + _SLACK), tables.errors.shape[1] - 1)
    if room < 0 or not math.isfinite(tables.errors[-1, room]):
        return None
    return _read(layers, tables, room)


def least_cost(layers: Sequence[Sequence[Choice]], error: float) -> Allocation:
    """The cheapest choices with a total error of at most ``error``; parameters as of `allocate`.

    Without any such choices it is the one of least error.
    """
    tables = _tables(layers)
    final = tables.errors[-1]
    bound = max(error, float(final[-1]))
    return _read(layers, tables, int(np.argmax(final <= bound * (1 + 1e-12))))


@dataclass(frozen=True)
class _Tables:
    errors: NDArray[np.float64]  # [layers + 1, units + 1]: least error of the first layers within so many units
    picks: NDArray[np.int32]  # [layers, units + 1]
    costs: list[NDArray[np.int64]]


def _tables(layers: Sequence[Sequence[Choice]]) -> _Tables:
    unit = _unit(layers)
    costs = [_units(choices, unit) for choices in layers]
    size = sum(int(units.max()) for units in costs) + 1
    errors = np.full((len(layers) + 1, size), np.inf)
    errors[0] = 0.0
    picks = np.full((len(layers), size), -1, dtype=np.int32)
    for row, (choices, units) in enumerate(zip(layers, costs, strict=True)):
        for index, choice in enumerate(choices):
            start = int(units[index])
            total = errors[row, : size - start] + choice.error
            best, pick = errors[row + 1, start:], picks[row, start:]
            better = total < best
            np.copyto(best, total, where=better)
            pick[better] = index
    return _Tables(errors, picks, costs)


def _read(layers: Sequence[Sequence[Choice]], tables: _Tables, room: int) -> Allocation:
    chosen = []
    for row in range(len(layers) - 1, -1, -1):
        pick = int(tables.picks[row, room])
        chosen.append(pick)
        room -= int(tables.costs[row][pick])
    picks = tuple(reversed(chosen))
    made = [choices[pick] for choices, pick in zip(layers, picks, strict=True)]
    return Allocation(picks, sum(x.cost for x in made), sum(x.error for x in made))


def _unit(layers: Sequence[Sequence[Choice]]) -> float:
    for choices in layers:
        values = [value for choice in choices for value in (choice.cost, choice.error)]
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise RankError("every layer needs choices of finite cost and error, neither below 0", found=list(choices))
    return sum(max(choice.cost for choice in choices) for choices in layers) / UNITS or 1.0


def _units(choices: Sequence[Choice], unit: float) -> NDArray[np.int64]:
    return np.array([math.ceil(choice.cost / unit - _SLACK) for choice in choices], dtype=np.int64)
