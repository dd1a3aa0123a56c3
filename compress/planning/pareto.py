"""What is worth choosing among many results: those that no other equals or beats in everything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.errors import RankError


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one result is nowhere worse than another and somewhere better; less is better."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_front(results: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Indices of the results that no other dominates, the Pareto front.

    Parameters
    ----------
    results : sequence of sequence of float
        Quantities of each result, as many for all; less is better.

    Returns
    -------
    tuple of int
        By rising first quantity, then second and so on; of equal results the first alone.

    Raises
    ------
    RankError
        If a quantity is not a number.
    """
    if any(math.isnan(value) for result in results for value in result):
        raise RankError("results that are not numbers can't be compared", found=list(results))
    order = sorted(range(len(results)), key=lambda i: (tuple(results[i]), i))
    front: list[int] = []
    # What dominates a result, or equals it, comes before it in this order.
    for index in order:
        found = tuple(results[index])
        if not any(tuple(results[i]) == found or dominates(results[i], found) for i in front):
            front.append(index)
    return tuple(front)
