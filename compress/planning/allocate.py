"""Spending one budget on many layers: the multiple-choice knapsack problem.

Every layer becomes exactly one of its choices, and the sum of errors is minimised with the sum of costs within a
budget. Dynamic programming solves it, layer after layer: of all allocations of the first layers whose costs fall into
the same bin, the one of least error is kept, with its true cost. The bins do not depend on the budget, so all budgets
choose from the same allocations and a larger budget never gives a larger error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import RankError
from compress.planning.pareto import pareto_front

#: Number of bins that the cost of the most expensive allocation is divided into.
BINS = 20_000

# Budgets that differ by this share are equal: sums of costs are rounded.
_SLACK = 1e-12


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
    """The least total cost."""
    _check(layers)
    return sum(min(choice.cost for choice in choices) for choices in layers)


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
        None if the budget is below `cheapest`. The error is at most the optimum for a budget that is smaller by one bin
        (`BINS`) for each layer.

    Raises
    ------
    RankError
        If a cost or error is negative or not finite, or a layer has no choices.
    """
    front = _front(layers)
    within = front.cost <= budget + abs(budget) * _SLACK
    return front.read(int(np.count_nonzero(within)) - 1) if within.any() else None


def least_cost(layers: Sequence[Sequence[Choice]], error: float) -> Allocation:
    """The cheapest choices with a total error of at most ``error``; parameters as of `allocate`.

    Without any such choices it is the one of least error.
    """
    front = _front(layers)
    bound = max(error * (1 + _SLACK), float(front.error[-1]))
    return front.read(int(np.argmax(front.error <= bound)))


@dataclass(frozen=True)
class _Front:
    """The Pareto front of allocations: cost rising, error falling."""

    cost: NDArray[np.float64]
    error: NDArray[np.float64]
    places: NDArray[np.int64]  # in the last of the tables
    tables: list[tuple[NDArray[np.int32], NDArray[np.int32]]]  # for each layer: choice, and place one layer before

    def read(self, index: int) -> Allocation:
        picks, place = [], int(self.places[index])
        for choice, before in reversed(self.tables):
            picks.append(int(choice[place]))
            place = int(before[place])
        return Allocation(tuple(reversed(picks)), float(self.cost[index]), float(self.error[index]))


def _front(layers: Sequence[Sequence[Choice]]) -> _Front:
    _check(layers)
    width = sum(max(choice.cost for choice in choices) for choices in layers) / BINS or 1.0
    cost, error = np.zeros(1), np.zeros(1)
    tables = []
    for choices in layers:
        cost, error, choice, before = _extend(cost, error, _worthwhile(choices), width)
        tables.append((choice, before))
    falling = np.minimum.accumulate(error)
    places = np.flatnonzero(np.concatenate([[True], falling[1:] < falling[:-1]]))
    return _Front(cost[places], error[places], places, tables)


def _extend(
    cost: NDArray[np.float64], error: NDArray[np.float64], choices: Sequence[tuple[int, Choice]], width: float
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int32], NDArray[np.int32]]:
    """Allocations extended by one layer, by rising cost: cost, error, choice and index of the one extended."""
    size = int((cost[-1] + max(choice.cost for _, choice in choices)) / width) + 2
    best = np.full(size, np.inf)
    costs = np.full(size, np.inf)
    picks, before = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.int32)
    for index, choice in choices:
        total, sums = cost + choice.cost, error + choice.error
        bins = (total / width).astype(np.int64)
        better = np.flatnonzero(sums < best[bins])
        # Errors fall along a front, so of several in one bin the last one written is the best.
        at = bins[better]
        best[at], costs[at], picks[at], before[at] = sums[better], total[better], index, better
    # The cheapest of all is kept first, whatever else is in its bin, so that every feasible budget is met.
    index, choice = choices[0]
    first = (cost[0] + choice.cost, error[0] + choice.error)
    kept = np.flatnonzero(np.isfinite(best))
    # Along the front errors fall, so that it can be extended again.
    kept = kept[np.concatenate([[True], best[kept][1:] < np.minimum.accumulate(best[kept])[:-1]])]
    extended = [costs[kept], best[kept], picks[kept], before[kept]]
    if costs[kept[0]] > first[0]:
        ahead = (first[0], first[1], index, 0)
        extended = [np.concatenate([[value], listed]) for value, listed in zip(ahead, extended, strict=True)]
    return extended[0], extended[1], extended[2].astype(np.int32), extended[3].astype(np.int32)


def _worthwhile(choices: Sequence[Choice]) -> list[tuple[int, Choice]]:
    """The choices on the Pareto front, with their indices: cost rising, error falling."""
    return [(index, choices[index]) for index in pareto_front([(x.cost, x.error) for x in choices])]


def _check(layers: Sequence[Sequence[Choice]]) -> None:
    for choices in layers:
        values = [value for choice in choices for value in (choice.cost, choice.error)]
        if not values or not all(math.isfinite(value) and value >= 0 for value in values):
            raise RankError("every layer needs choices of finite cost and error, neither below 0", found=list(choices))
