"""The two-factor form against torch's SVD."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.decomposition.matrix import low_rank
from compress.errors import RankError

sides = st.integers(1, 24)


def make_matrix(outputs: int, inputs: int, decades: float, seed: int) -> torch.Tensor:
    """A float64 matrix whose singular values fall from 1 to ``10 ** -decades``."""
    generator = torch.Generator().manual_seed(seed)
    size = min(outputs, inputs)
    left = torch.linalg.qr(torch.randn(outputs, size, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(inputs, size, generator=generator, dtype=torch.float64)).Q
    return (left * torch.logspace(0, -decades, size, dtype=torch.float64)) @ right.T


@given(sides, sides, st.data(), st.floats(0, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_as_good_as_the_svd(outputs: int, inputs: int, data: st.DataObject, decades: float, seed: int) -> None:
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    matrix = make_matrix(outputs, inputs, decades, seed)
    found = low_rank(matrix, rank)
    best = float(torch.linalg.svdvals(matrix)[rank:].norm() / matrix.norm())
    true = float((matrix - found.last @ found.first).norm() / matrix.norm())
    assert found.error == pytest.approx(true, rel=1e-6, abs=1e-14)
    assert best * (1 - 1e-6) - 1e-14 <= true <= best * (1 + 1e-6) + 1e-9


@given(sides, sides, st.data(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_factors_are_balanced(outputs: int, inputs: int, data: st.DataObject, seed: int) -> None:
    rank = data.draw(st.integers(1, min(outputs, inputs)))
    matrix = make_matrix(outputs, inputs, 2, seed)
    found = low_rank(matrix, rank)
    values = torch.diag(torch.linalg.svdvals(matrix)[:rank])
    torch.testing.assert_close(found.first @ found.first.T, values, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.last.T @ found.last, values, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (16, 16)])
def test_full_and_planted_ranks_are_exact(shape: tuple[int, int]) -> None:
    matrix = make_matrix(*shape, 3, 0)
    assert low_rank(matrix, min(shape)).error < 1e-12
    planted = matrix[:, :5] @ matrix[:5, :]
    for rank in (5, 9):
        assert low_rank(planted, rank).error < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_and_input_are_kept(dtype: torch.dtype) -> None:
    matrix = make_matrix(12, 30, 1, 1).to(dtype).requires_grad_()
    before = matrix.detach().clone()
    found = low_rank(matrix, 4)
    assert (found.first.dtype, found.last.dtype) == (dtype, dtype)
    assert (found.first.shape, found.last.shape) == ((4, 30), (12, 4))
    assert not found.first.requires_grad
    rebuilt = found.last.double() @ found.first.double()
    true = float((before.double() - rebuilt).norm() / before.double().norm())
    assert found.error == pytest.approx(true, rel=1e-6)
    assert torch.equal(matrix.detach(), before)


def test_same_input_same_factors() -> None:
    matrix = make_matrix(18, 25, 1, 2).float()
    one, other, negative = low_rank(matrix, 6), low_rank(matrix.clone(), 6), low_rank(-matrix, 6)
    assert torch.equal(one.first, other.first)
    assert torch.equal(one.last, other.last)
    assert torch.equal(one.first, negative.first)
    assert torch.equal(one.last, -negative.last)


@pytest.mark.parametrize("power", [-30, -8, 8, 30])
def test_scale_does_not_change_the_error(power: int) -> None:
    matrix = make_matrix(18, 25, 1, 2)
    assert low_rank(matrix * 10.0**power, 6).error == pytest.approx(low_rank(matrix, 6).error, rel=1e-9)


def test_zeros_stay_zeros() -> None:
    found = low_rank(torch.zeros(4, 7), 2)
    assert found.error == 0
    assert not (found.last @ found.first).any()


@pytest.mark.parametrize(
    ("matrix", "rank"),
    [
        (torch.ones(4, 7), 5),
        (torch.ones(4, 7), 0),
        (torch.ones(4, 7), 2.0),
        (torch.ones(4, 7), True),
        (torch.ones(4, 7, 1, 1), 2),
        (torch.ones(4), 1),
        (torch.ones(0, 7), 1),
        (torch.ones(4, 7, dtype=torch.int64), 2),
        (torch.full((4, 7), math.nan), 2),
    ],
)
def test_what_no_matrix_can_have_is_refused(matrix: torch.Tensor, rank: int) -> None:
    with pytest.raises(RankError):
        low_rank(matrix, rank)
