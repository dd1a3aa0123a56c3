"""The Pareto front of results with any number of quantities."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import RankError
from compress.planning.pareto import dominates, pareto_front

RESULTS = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 5).map(float), min_size=width, max_size=width), max_size=14)
)


@given(RESULTS)
def test_the_front_is_what_brute_force_finds(results: list[list[float]]) -> None:
    front = pareto_front(results)
    values = {tuple(results[i]) for i in front}
    assert len(values) == len(front)
    assert values == {tuple(x) for x in results if not any(dominates(y, x) for y in results)}
    assert [results[i] for i in front] == sorted(results[i] for i in front)


@given(RESULTS)
def test_adding_results_one_by_one_ends_in_the_same_front(results: list[list[float]]) -> None:
    kept: list[list[float]] = []
    for result in results:
        kept.append(result)
        kept = [kept[i] for i in pareto_front(kept)]
    assert kept == [results[i] for i in pareto_front(results)]


def test_of_equal_results_the_first_stays() -> None:
    assert pareto_front([[2.0, 1.0], [1.0, 2.0], [1.0, 2.0], [2.0, 2.0]]) == (1, 0)


def test_a_result_does_not_dominate_itself_and_one_that_is_better_somewhere_does() -> None:
    assert not dominates([1.0, 2.0], [1.0, 2.0])
    assert dominates([1.0, 1.0], [1.0, 2.0])
    assert not dominates([0.0, 3.0], [1.0, 2.0])


def test_what_is_not_a_number_is_refused() -> None:
    with pytest.raises(RankError, match="not numbers"):
        pareto_front([[1.0, float("nan")], [1.0, 2.0]])
