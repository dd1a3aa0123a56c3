from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import RankError
from compress.planning.allocate import BINS, Allocation, Choice, allocate, cheapest, least_cost

VALUES = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.integers(0, 20).map(float))
CHOICES = st.lists(st.builds(Choice, VALUES, VALUES), min_size=1, max_size=4)
LAYERS = st.lists(CHOICES, min_size=1, max_size=4)


def totals(layers: Sequence[Sequence[Choice]]) -> list[tuple[float, float]]:
    """Cost and error of every allocation there is."""
    return [(sum(x.cost for x in made), sum(x.error for x in made)) for made in itertools.product(*layers)]


def random_layers(count: int, choices: int, seed: int = 0) -> list[list[Choice]]:
    """Layers as a network has them: the first choice is the layer itself, others are cheaper and lose something."""
    random = np.random.default_rng(seed)
    layers = []
    for _ in range(count):
        dense, weight = random.uniform(0.5, 4), random.lognormal(-4, 2)
        shares = random.uniform(0.05, 1, choices - 1)
        cheaper = [Choice(dense * x, weight * (1 - x) ** 2 * random.uniform(0.8, 1.2)) for x in shares]
        layers.append([Choice(dense, 0.0), *cheaper])
    return layers


def assert_adds_up(layers: Sequence[Sequence[Choice]], found: Allocation) -> None:
    assert len(found.picks) == len(layers)
    made = [choices[pick] for choices, pick in zip(layers, found.picks, strict=True)]
    assert found.cost == pytest.approx(sum(x.cost for x in made), rel=1e-12)
    assert found.error == pytest.approx(sum(x.error for x in made), rel=1e-12)


@settings(deadline=None, max_examples=150)
@given(layers=LAYERS, share=st.floats(0, 1.2))
def test_an_allocation_is_feasible_and_optimal_up_to_a_bin_for_each_layer(
    layers: list[list[Choice]], share: float
) -> None:
    dearest = sum(max(x.cost for x in choices) for choices in layers)
    budget = share * dearest
    found = allocate(layers, budget)
    everything = totals(layers)
    if min(cost for cost, _ in everything) > budget * (1 + 1e-9):
        assert found is None
    if found is None:
        assert min(cost for cost, _ in everything) > budget * (1 - 1e-9)
        return
    assert_adds_up(layers, found)
    assert found.cost <= budget * (1 + 1e-9)
    lower = budget - len(layers) * dearest / BINS
    assert all(found.error <= error * (1 + 1e-9) for cost, error in everything if cost <= lower)


@settings(deadline=None, max_examples=60)
@given(layers=LAYERS, shares=st.lists(st.floats(0, 1.1), min_size=2, max_size=8))
def test_a_larger_budget_never_gives_a_larger_error(layers: list[list[Choice]], shares: list[float]) -> None:
    dearest = sum(max(x.cost for x in choices) for choices in layers)
    found = [allocate(layers, share * dearest) for share in sorted(shares)]
    errors = [math.inf if x is None else x.error for x in found]
    assert errors == sorted(errors, reverse=True)


def test_a_network_of_many_layers_is_monotone_and_meets_its_budgets() -> None:
    layers = random_layers(60, 40)
    dense = sum(choices[0].cost for choices in layers)
    errors = []
    for share in np.linspace(0.2, 1, 9):
        found = allocate(layers, share * dense)
        assert found is not None
        assert_adds_up(layers, found)
        assert share * dense * 0.995 <= found.cost <= share * dense * (1 + 1e-12)
        errors.append(found.error)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0.0


def test_a_budget_of_everything_keeps_all_layers() -> None:
    layers = random_layers(60, 20, seed=1)
    found = allocate(layers, sum(choices[0].cost for choices in layers))
    assert found is not None
    assert found.picks == (0,) * 60


@settings(deadline=None, max_examples=60)
@given(layers=LAYERS)
def test_the_cheapest_can_be_had_and_nothing_below_it(layers: list[list[Choice]]) -> None:
    least = cheapest(layers)
    assert least == pytest.approx(min(cost for cost, _ in totals(layers)))
    found = allocate(layers, least)
    assert found is not None
    assert found.cost == pytest.approx(least)
    assert allocate(layers, least * 0.999 - 1e-9) is None


@settings(deadline=None, max_examples=100)
@given(layers=LAYERS, share=st.floats(0, 1))
def test_the_dual_is_the_cheapest_within_the_error(layers: list[list[Choice]], share: float) -> None:
    everything = totals(layers)
    bound = share * max(error for _, error in everything)
    found = least_cost(layers, bound)
    assert_adds_up(layers, found)
    least = min(error for _, error in everything)
    assert found.error <= max(bound, least) * (1 + 1e-9)
    slack = len(layers) * sum(max(x.cost for x in choices) for choices in layers) / BINS + 1e-9
    assert all(found.cost <= cost + slack for cost, error in everything if error <= bound * (1 - 1e-9))


def test_layers_without_choices_or_with_nonsense_are_refused() -> None:
    for choices in ([], [Choice(-1.0, 0.0)], [Choice(1.0, math.nan)], [Choice(math.inf, 0.0)]):
        with pytest.raises(RankError, match="finite cost"):
            allocate([[Choice(1.0, 0.0)], choices], 1.0)
