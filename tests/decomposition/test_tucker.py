"""Tucker-2: exactness, optimality bounds, monotony, and tensorly beside it."""

from __future__ import annotations

import math

import pytest
import tensorly
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tensorly.decomposition import partial_tucker

from compress.decomposition.tucker import Tucker2, mode_spectra, tucker2, unfold
from compress.errors import RankError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA here"))]


def make_kernel(shape: tuple[int, ...], decay: float, seed: int) -> torch.Tensor:
    """A float64 kernel whose mode spectra fall as a power of the index; 0 is white noise, trained kernels have 0.3-1."""
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(shape, generator=generator, dtype=torch.float64)
    for mode in (0, 1):
        size = shape[mode]
        turn = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
        weights = torch.arange(1, size + 1, dtype=torch.float64) ** -decay
        kernel = torch.tensordot(turn * weights, kernel.movedim(mode, 0), dims=1).movedim(0, mode)
    return kernel


def rebuild(factors: Tucker2) -> torch.Tensor:
    """The kernel that the factors stand for, in float64."""
    first, core, last = (f.double() for f in (factors.first, factors.core, factors.last))
    return torch.einsum("tj,jip,is->tsp", last, core.flatten(2), first).reshape(
        last.shape[0], first.shape[1], *core.shape[2:]
    )


def true_error(kernel: torch.Tensor, factors: Tucker2) -> float:
    kernel = kernel.double()
    return float((kernel - rebuild(factors)).norm() / kernel.norm())


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, int]]:
    """A kernel and ranks that it can have."""
    extents = draw(st.sampled_from([(1, 1), (3, 3), (2, 3), (3,), (2, 2, 2)]))
    shape = (draw(st.integers(1, 14)), draw(st.integers(1, 14)), *extents)
    taps = math.prod(extents)
    r3 = draw(st.integers(1, shape[1]))
    r4 = draw(st.integers(1, shape[0]))
    assume(r3 <= r4 * taps and r4 <= r3 * taps)
    return make_kernel(shape, draw(st.floats(0, 1.5)), draw(st.integers(0, 2**32 - 1))), (r3, r4)


@given(problems())
@settings(max_examples=80, deadline=None)
def test_error_is_that_of_the_factors(problem: tuple[torch.Tensor, tuple[int, int]]) -> None:
    kernel, ranks = problem
    assert tucker2(kernel, ranks).error == pytest.approx(true_error(kernel, tucker2(kernel, ranks)), abs=1e-9)


@given(problems())
@settings(max_examples=80, deadline=None)
def test_error_lies_between_the_bounds_of_hosvd(problem: tuple[torch.Tensor, tuple[int, int]]) -> None:
    kernel, (r3, r4) = problem
    norm = float(kernel.norm())
    lost_3 = float(torch.linalg.svdvals(unfold(kernel, 3))[r3:].norm()) / norm
    lost_4 = float(torch.linalg.svdvals(unfold(kernel, 4))[r4:].norm()) / norm
    lowest = max(lost_3, lost_4)  # no approximation of these ranks is better
    for sweeps in (0, 10):
        error = tucker2(kernel, (r3, r4), sweeps).error
        assert lowest - 1e-7 <= error <= math.hypot(lost_3, lost_4) + 1e-7 <= math.sqrt(2) * lowest + 2e-7


@given(problems(), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_more_sweeps_are_never_worse(problem: tuple[torch.Tensor, tuple[int, int]], sweeps: int) -> None:
    kernel, ranks = problem
    assert tucker2(kernel, ranks, sweeps + 1).error <= tucker2(kernel, ranks, sweeps).error + 1e-7


@given(problems())
@settings(max_examples=60, deadline=None)
def test_more_rank_is_never_worse(problem: tuple[torch.Tensor, tuple[int, int]]) -> None:
    kernel, (r3, r4) = problem
    taps = kernel[0, 0].numel()
    error, before_sweeps = tucker2(kernel, (r3, r4)).error, tucker2(kernel, (r3, r4), 0).error
    for more in ((r3 + 1, r4), (r3, r4 + 1)):
        if more[0] <= min(kernel.shape[1], more[1] * taps) and more[1] <= min(kernel.shape[0], more[0] * taps):
            assert tucker2(kernel, more, 0).error <= before_sweeps + 1e-7
            # HOOI finds a local optimum, and stops when a sweep gains less than a thousandth.
            assert tucker2(kernel, more).error <= error * 1.003 + 1e-7


@pytest.mark.parametrize(
    "shape", [(6, 5, 3, 3), (5, 12, 1, 1), (16, 16, 3, 3), (9, 4, 3), (4, 6, 2, 2, 2), (8, 7, 1, 5), (7, 7, 1, 1)]
)
def test_sweeps_beat_hosvd_on_noise(shape: tuple[int, ...]) -> None:
    kernel = make_kernel(shape, 0.0, 5)
    ranks = (shape[1] // 2, shape[0] // 2)
    ranks = (max(ranks), max(ranks)) if shape[2:] == (1, 1) and ranks[0] != ranks[1] and False else ranks
    assert tucker2(kernel, ranks).error < tucker2(kernel, ranks, 0).error
