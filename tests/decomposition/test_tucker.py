"""Tucker-2: exactness, optimality bounds, monotony, and tensorly beside it."""

from __future__ import annotations

import math
import random

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
    """A float64 kernel whose mode spectra fall as a power of the index; 0 is noise, trained kernels have 0.3 to 1."""
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


@pytest.mark.parametrize("shape", [(16, 16, 3, 3), (32, 12, 3, 3), (12, 20, 5), (10, 10, 2, 2, 2)])
def test_sweeps_gain_on_noise(shape: tuple[int, ...]) -> None:
    kernel, ranks = make_kernel(shape, 0.0, 5), (shape[1] // 2, shape[0] // 2)
    assert tucker2(kernel, ranks).error < 0.998 * tucker2(kernel, ranks, 0).error


def tensorly_error(kernel: torch.Tensor, ranks: tuple[int, int]) -> float:
    """Relative error of tensorly's Tucker-2 with its default settings."""
    with tensorly.backend_context("pytorch"):
        (core, (last, first)), _ = partial_tucker(kernel, rank=[ranks[1], ranks[0]], modes=[0, 1])
        return float(
            (kernel - tensorly.tenalg.multi_mode_dot(core, [last, first], modes=[0, 1])).norm() / kernel.norm()
        )


@pytest.mark.parametrize("extents", [(3, 3), (2, 3), (3,), (2, 2, 2)])
def test_small_kernels_are_as_good_as_tensorly(extents: tuple[int, ...]) -> None:
    # Either may end in the better local optimum of a single kernel; over many, neither may be worse.
    draw = random.Random(0)
    excess = []
    for seed in range(40):
        shape = (draw.randint(4, 14), draw.randint(4, 14), *extents)
        ranks = (draw.randint(2, shape[1] - 1), draw.randint(2, shape[0] - 1))
        if max(ranks) <= min(ranks) * math.prod(extents):
            kernel = make_kernel(shape, draw.uniform(0, 1.2), seed)
            excess.append(tucker2(kernel, ranks).error / tensorly_error(kernel, ranks) - 1)
    assert len(excess) > 25
    assert sum(excess) / len(excess) < 5e-4
    assert max(excess) < 0.03


@pytest.mark.parametrize("decay", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("ranks", [(12, 16), (16, 16), (24, 8), (24, 40)])
def test_kernels_like_trained_ones_are_as_good_as_tensorly(decay: float, ranks: tuple[int, int]) -> None:
    kernel = make_kernel((48, 32, 3, 3), decay, 7)
    assert tucker2(kernel, ranks).error <= (1 + 2e-4) * tensorly_error(kernel, ranks)


@given(problems(), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=60, deadline=None)
def test_factors_are_orthogonal_and_balanced(problem: tuple[torch.Tensor, tuple[int, int]], dtype: torch.dtype) -> None:
    kernel, (r3, r4) = problem
    found = tucker2(kernel.to(dtype), (r3, r4))
    level = float(found.core.double().norm())
    for rows, rank in ((found.first.double(), r3), (found.last.double().T, r4)):
        torch.testing.assert_close(
            rows @ rows.T, torch.eye(rank, dtype=torch.float64) * level**2 / rank, atol=1e-5 * level**2, rtol=0
        )
        assert float(rows.norm()) == pytest.approx(level, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (5, 12, 3, 3), (9, 4, 3), (7, 7, 1, 1), (4, 6, 2, 2, 2), (1, 1, 3, 3)])
def test_full_ranks_are_exact(shape: tuple[int, ...]) -> None:
    kernel = make_kernel(shape, 1.0, 1)
    assert true_error(kernel, tucker2(kernel, (shape[1], shape[0]))) < 1e-12
    assert true_error(kernel.float(), tucker2(kernel.float(), (shape[1], shape[0]))) < 1e-6


@given(
    seed=st.integers(0, 2**32 - 1),
    r3=st.integers(2, 6),
    r4=st.integers(2, 6),
    spread=st.floats(0, 5),
    more=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_planted_ranks_are_exact(seed: int, r3: int, r4: int, spread: float, more: bool) -> None:
    # ``spread``: orders of magnitude between the strongest and the weakest component, beyond what float32 could see.
    generator = torch.Generator().manual_seed(seed)
    core = torch.randn(r4, r3, 3, 3, generator=generator, dtype=torch.float64)
    core *= torch.logspace(0, -spread, r3, dtype=torch.float64)[:, None, None]
    first = torch.linalg.qr(torch.randn(12, r3, generator=generator, dtype=torch.float64)).Q
    last = torch.linalg.qr(torch.randn(15, r4, generator=generator, dtype=torch.float64)).Q
    kernel = torch.einsum("tj,jikl,si->tskl", last, core, first)
    found = tucker2(kernel, (r3 + more, r4 + more))
    assert true_error(kernel, found) < 1e-9
    assert found.error == pytest.approx(true_error(kernel, found), abs=1e-12)


def test_planted_rank_in_noise_leaves_the_noise() -> None:
    generator = torch.Generator().manual_seed(2)
    core = torch.randn(8, 6, 3, 3, generator=generator)
    first, last = torch.randn(64, 6, generator=generator), torch.randn(48, 8, generator=generator)
    signal = torch.einsum("tj,jikl,si->tskl", last, core, first)
    noise = 0.1 * signal.std() * torch.randn(signal.shape, generator=generator)
    found = tucker2(signal + noise, (6, 8))
    assert float((rebuild(found) - signal).norm()) < 0.3 * float(noise.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_device_and_input_are_kept(dtype: torch.dtype, device: str) -> None:
    kernel = make_kernel((16, 12, 3, 3), 0.5, 3).to(device, dtype).requires_grad_()
    before = kernel.detach().clone()
    found = tucker2(kernel, (5, 6))
    assert {f.dtype for f in (found.first, found.core, found.last)} == {dtype}
    assert {f.device.type for f in (found.first, found.core, found.last)} == {device}
    assert not any(f.requires_grad for f in (found.first, found.core, found.last))
    assert (found.first.shape, found.core.shape, found.last.shape) == ((5, 12), (6, 5, 3, 3), (16, 6))
    assert found.error == pytest.approx(true_error(kernel.detach(), found), rel=1e-6)
    assert torch.equal(kernel.detach(), before)


def test_same_input_same_factors() -> None:
    kernel = make_kernel((20, 16, 3, 3), 0.4, 4).float()
    one, other = tucker2(kernel, (6, 7)), tucker2(kernel.clone(memory_format=torch.channels_last), (6, 7))
    assert torch.equal(one.first, other.first)
    assert torch.equal(one.core, other.core)
    assert torch.equal(one.last, other.last)
    negative = tucker2(-kernel, (6, 7))
    assert torch.equal(one.first, negative.first)
    assert torch.equal(one.core, -negative.core)


@given(problems(), st.floats(-30, 30))
@settings(max_examples=40, deadline=None)
def test_scale_does_not_change_the_error(problem: tuple[torch.Tensor, tuple[int, int]], power: float) -> None:
    kernel, ranks = problem
    assert tucker2(kernel * 10**power, ranks).error == pytest.approx(tucker2(kernel, ranks).error, rel=1e-4, abs=1e-7)


def test_zeros_stay_zeros() -> None:
    found = tucker2(torch.zeros(6, 5, 3, 3), (2, 3))
    assert found.error == 0
    assert not rebuild(found).any()
    assert found.first.norm() > 0  # or training could never move the factors again


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (5, 60, 1), (40, 3, 3, 3), (4, 4)])
def test_mode_spectra_are_singular_values(shape: tuple[int, ...]) -> None:
    kernel = make_kernel(shape, 0.7, 6)
    for mode, found in zip((3, 4), mode_spectra(kernel * 1e-3), strict=True):
        unfolded = unfold(kernel, mode)
        assert torch.equal(unfolded, tensorly_unfold(kernel, 4 - mode))
        torch.testing.assert_close(found, torch.linalg.svdvals(unfolded) * 1e-3, rtol=1e-6, atol=1e-10)


def tensorly_unfold(kernel: torch.Tensor, mode: int) -> torch.Tensor:
    with tensorly.backend_context("pytorch"):
        return tensorly.unfold(kernel, mode)


def test_mode_spectra_of_low_rank_are_exact_zeros() -> None:
    kernel = torch.outer(torch.arange(1, 9.0), torch.arange(1, 7.0))[:, :, None, None].expand(8, 6, 3, 3)
    assert [int((s > 0).sum()) for s in mode_spectra(kernel)] == [1, 1]
    assert not any(s.any() for s in mode_spectra(torch.zeros(3, 4, 3, 3)))


KERNEL = torch.ones(6, 5, 3, 3)


@pytest.mark.parametrize(
    ("kernel", "ranks", "sweeps"),
    [
        (KERNEL, (6, 3), 10),  # r3 > S
        (KERNEL, (3, 7), 10),  # r4 > T
        (KERNEL, (0, 3), 10),
        (KERNEL, (3, -1), 10),
        (KERNEL, (2.0, 3), 10),
        (KERNEL, (True, 3), 10),
        (KERNEL, (2, 3, 3), 10),
        (KERNEL, (2, 3), -1),
        (KERNEL, (2, 3), 1.5),
        (torch.ones(6, 5, 1, 1), (2, 3), 10),  # r4 > r3 P
        (torch.ones(6, 5, 1, 1), (3, 2), 10),  # r3 > r4 P
        (torch.ones(40, 5, 2, 2), (1, 5), 10),
        (torch.ones(5, 40, 2, 2), (5, 1), 10),
        (torch.ones(6), (1, 1), 10),
        (torch.ones(0, 5, 3, 3), (1, 1), 10),
        (torch.ones(6, 5, 3, 3, dtype=torch.int32), (1, 1), 10),
        (torch.full((6, 5, 3, 3), math.nan), (1, 1), 10),
        (torch.full((6, 5, 3, 3), -math.inf), (1, 1), 10),
    ],
)
def test_what_no_kernel_can_have_is_refused(kernel: torch.Tensor, ranks: tuple[int, int], sweeps: int) -> None:
    with pytest.raises(RankError):
        tucker2(kernel, ranks, sweeps)


def test_modes_are_three_and_four() -> None:
    with pytest.raises(RankError, match="mode 3"):
        unfold(KERNEL, 1)
