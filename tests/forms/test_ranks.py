from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from compress.forms.registry import get_form

SIZES = st.integers(1, 9)
SHAPES = st.tuples(SIZES, SIZES, st.integers(1, 3), st.integers(1, 3))


def usable(shape: tuple[int, ...], r3: int, r4: int) -> bool:
    """Whether every mode of the core and of the kernel can have its rank, from the definition."""
    outputs, inputs, places = shape[0], shape[1], math.prod(shape[2:])
    return r3 <= min(inputs, r4 * places) and r4 <= min(outputs, r3 * places)


@given(SHAPES.filter(lambda shape: math.prod(shape[2:]) > 1), st.integers(1, 12), st.integers(1, 12))
def test_clipped_ranks_are_the_largest_usable_ones(shape: tuple[int, ...], r3: int, r4: int) -> None:
    best = [(a, b) for a in range(1, r3 + 1) for b in range(1, r4 + 1) if usable(shape, a, b)]
    clipped = get_form("tucker2").clip(shape, (r3, r4))
    assert clipped in best
    assert all(a <= clipped[0] and b <= clipped[1] for a, b in best)


@given(SIZES, SIZES, st.integers(1, 12), st.sampled_from([(), (1, 1)]))
def test_a_matrix_has_one_rank(outputs: int, inputs: int, rank: int, places: tuple[int, ...]) -> None:
    shape = (outputs, inputs, *places)
    assert get_form("svd").max_ranks(shape) == (min(outputs, inputs),)
    assert get_form("svd").clip(shape, (rank,)) == (min(outputs, inputs, rank),)


def test_the_example_of_the_documentation() -> None:
    assert get_form("tucker2").clip((64, 64, 3, 3), (40, 2)) == (18, 2)
