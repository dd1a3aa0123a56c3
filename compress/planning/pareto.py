"""The Pareto front: results that no other equals or beats in everything."""

from __future__ import annotations

import math
from collections.abc import Sequence

from compress.errors import RankError


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether one result is nowhere worse than another and somewhere better; less is better."""
    pairs = list(zip(one, other, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def pareto_front(results: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Indices of the results that no other dominates.

    Parameters
    ----------
    results : sequence of sequence of float
        Quantities of each result, the same number for all; less is better.

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
    # What dominates a result, or equals it, comes before it in this order. Of two quantities the first rises along the
    # front and the second falls, so the last member alone decides.
    for index in order:
        rivals = front[-1:] if len(results[index]) == 2 else front
        result = tuple(results[index])
        if not any(tuple(results[i]) == result or dominates(results[i], result) for i in rivals):
            front.append(index)
    return tuple(front)
