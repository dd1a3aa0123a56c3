"""EVBMF against a brute-force minimum of the textbook free energy, and the symmetries it must have."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar, root_scalar

from compress.decomposition.evbmf import Evbmf, evbmf, evbmf_kernel
from compress.decomposition.tucker import mode_spectra
from compress.errors import RankError

seeds = st.integers(0, 2**32 - 1)


def textbook(spectrum: np.ndarray, shape: tuple[int, int], points: int) -> tuple[int, float, int]:
    """Rank, lowest free energy and number of local minima, by trying every noise variance on a dense grid.

    Written from the papers' formulas as they stand: no bounds, no knots, no convexity.
    """
    rows, cols = min(shape), max(shape)
    alpha = rows / cols

    def phi(z: float) -> float:
        return math.log(z + 1) / z - 0.5

    tau_bar = root_scalar(lambda tau: phi(tau) + phi(tau / alpha), bracket=(1e-3 * math.sqrt(alpha), 20)).root
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)
    energies = (spectrum / spectrum.max()) ** 2

    def free_energy(y: np.ndarray) -> np.ndarray:
        x = energies * np.exp(-y[:, None])
        signal = x > x_bar
        gap = np.where(signal, x, x_bar) - (1 + alpha)
        tau = 0.5 * (gap + np.sqrt(gap**2 - 4 * alpha))
        psi = x - np.log(x) + signal * (np.log(tau + 1) + alpha * np.log(tau / alpha + 1) - tau)
        return psi.sum(1) + (rows - len(spectrum)) * y

    y = np.linspace(math.log(energies.min() / x_bar) - 1, math.log(energies.sum() / rows) + 1, points)
    values = free_energy(y)
    dips = [i for i in range(1, points - 1) if values[i] <= values[i - 1] and values[i] < values[i + 1]]
    lowest, where = math.inf, math.nan
    for i in sorted(dips, key=values.__getitem__)[:3]:
        found = minimize_scalar(
            lambda point: free_energy(np.array([point]))[0], bounds=(y[i - 1], y[i + 1]), options={"xatol": 1e-10},
            method="bounded",
        )  # fmt: skip
        if found.fun < lowest:
            lowest, where = found.fun, found.x
    return int((energies > x_bar * math.exp(where)).sum()), lowest, len(dips)


def draw_spectrum(rng: np.random.Generator, largest_side: int) -> tuple[np.ndarray, tuple[int, int]]:
    """Singular values of one of four kinds: noise, low rank in noise, a power law, or anything."""
    rows = int(rng.integers(2, largest_side))
    cols = rows + int(rng.integers(0, 12 * rows))
    noise = rng.normal(size=(rows, cols))
    rank = int(rng.integers(0, rows))
    spectrum = (
        lambda: np.linalg.svd(noise, compute_uv=False),
        lambda: np.linalg.svd(
            noise + rng.uniform(0, 3) * rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, cols)), compute_uv=False
        ),
        lambda: np.arange(1, rows + 1.0) ** -rng.uniform(0.1, 2),
        lambda: rng.uniform(0.01, 1, rows),
    )[rng.integers(4)]()
    return spectrum, (rows, cols)


def brute_force_agrees(count: int, largest_side: int, points: int, seed: int) -> int:
    """Compare ``count`` random spectra; the most local minima that one of them had."""
    rng = np.random.default_rng(seed)
    most_dips = 0
    for _ in range(count):
        spectrum, shape = draw_spectrum(rng, largest_side)
        rank, lowest, dips = textbook(spectrum, shape, points)
        found = evbmf(torch.from_numpy(spectrum), shape)
        assert found.free_energy == pytest.approx(lowest, abs=1e-7), (shape, spectrum)
        assert found.rank == rank, (shape, spectrum)
        most_dips = max(most_dips, dips)
    return most_dips


def test_global_minimum_is_that_of_brute_force() -> None:
    # Without spectra of several local minima this would show nothing about finding the global one.
    assert brute_force_agrees(count=600, largest_side=14, points=20_000, seed=0) >= 4


@pytest.mark.slow
def test_global_minimum_is_that_of_brute_force_on_thousands() -> None:
    assert brute_force_agrees(count=10_000, largest_side=24, points=3000, seed=1) >= 5


@pytest.mark.real
@pytest.mark.slow
def test_global_minimum_on_a_trained_network(assets: Path) -> None:
    path = assets / "weights" / "human-pose-estimation-0001" / "human-pose-estimation-0001.pth"
    weights = torch.load(path, weights_only=True)
    kernels = [w for w in weights.get("state_dict", weights).values() if w.ndim == 4 and w.shape[1:] == (128, 3, 3)]
    assert len(kernels) == 14
    for kernel in kernels:
        for spectrum, found in zip(mode_spectra(kernel), evbmf_kernel(kernel), strict=True):
            rank, lowest, _ = textbook(spectrum.numpy(), (128, 1152), 4000)
            assert (found.rank, found.free_energy) == (rank, pytest.approx(lowest, abs=1e-6))


@given(seed=seeds, rows=st.integers(2, 40), extra=st.integers(0, 200), power=st.floats(-8, 8))
@settings(max_examples=60, deadline=None)
def test_scale_changes_nothing_but_the_units(seed: int, rows: int, extra: int, power: float) -> None:
    spectrum = torch.from_numpy(np.random.default_rng(seed).uniform(0.01, 1, rows) ** 3)
    shape, scale = (rows, rows + extra), 10**power
    one, other = evbmf(spectrum, shape), evbmf(spectrum * scale, shape)
    assert other.rank == one.rank
    assert other.free_energy == pytest.approx(one.free_energy, rel=1e-9, abs=1e-8)
    assert other.noise_variance == pytest.approx(one.noise_variance * scale**2, rel=1e-4)
    assert other.threshold == pytest.approx(one.threshold * scale, rel=1e-4)


@given(seed=seeds, rows=st.integers(1, 30), cols=st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_transposition_and_order_change_nothing(seed: int, rows: int, cols: int) -> None:
    spectrum = torch.from_numpy(np.random.default_rng(seed).exponential(size=min(rows, cols)))
    assert evbmf(spectrum, (rows, cols)) == evbmf(spectrum.flip(0), (cols, rows))


def test_tall_matrices_are_transposed() -> None:
    # These two are where public code fails: an exception for the first, one rank less for the second.
    for shape, rank in (((1152, 128), 20), ((256, 17), 6)):
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(shape, generator=generator)
        signal = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
        for matrix in (noise + 3 * signal, (noise + 3 * signal).T):
            assert [found.rank for found in evbmf_kernel(matrix)] == [rank, rank]


def test_rotation_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(24, 16, 3, 3, generator=generator, dtype=torch.float64)
    kernel *= torch.arange(1, 25)[:, None, None, None] ** -0.7
    turn_out = torch.linalg.qr(torch.randn(24, 24, generator=generator, dtype=torch.float64)).Q
    turn_in = torch.linalg.qr(torch.randn(16, 16, generator=generator, dtype=torch.float64)).Q
    turned = torch.einsum("at,tskl,bs->abkl", turn_out, kernel, turn_in)
    for plain, rotated in zip(evbmf_kernel(kernel), evbmf_kernel(turned), strict=True):
        assert rotated.rank == plain.rank > 0
        assert rotated.free_energy == pytest.approx(plain.free_energy, abs=1e-7)


@given(seed=seeds, rank=st.integers(1, 12), power=st.floats(-6, 4))
@settings(max_examples=30, deadline=None)
def test_planted_rank_is_found_in_noise(seed: int, rank: int, power: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(40, rank, generator=generator) @ torch.randn(rank, 27 * 9, generator=generator)
    kernel = (signal + 0.2 * torch.randn(40, 27 * 9, generator=generator)).reshape(40, 27, 3, 3) * 10**power
    assert evbmf_kernel(kernel)[1].rank == rank
    assert evbmf_kernel(kernel)[1].noise_variance == pytest.approx(0.04 * 100**power, rel=0.1)


@given(seed=seeds, outputs=st.integers(24, 60), inputs=st.integers(24, 60), extent=st.integers(1, 3))
@settings(max_examples=40, deadline=None, derandomize=True)  # a smaller matrix of noise may have rank 1 by chance
def test_noise_has_rank_zero(seed: int, outputs: int, inputs: int, extent: int) -> None:
    kernel = torch.randn(outputs, inputs, extent, extent, generator=torch.Generator().manual_seed(seed))
    assert [found.rank for found in evbmf_kernel(kernel)] == [0, 0]


@given(seed=seeds, dead=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_dead_channels_do_not_change_the_ranks(seed: int, dead: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(20, 24, 3, 3, generator=generator) * torch.arange(1, 21)[:, None, None, None] ** -0.8
    padded = torch.zeros(20 + dead, 24 + dead, 3, 3)
    alive_out = torch.randperm(20 + dead, generator=generator)[:20]
    alive_in = torch.randperm(24 + dead, generator=generator)[:24]
    padded[alive_out[:, None], alive_in] = kernel
    # What weight decay leaves of a dead filter is no more alive than a zero.
    padded[padded == 0] = 1e-20
    for plain, found in zip(evbmf_kernel(kernel), evbmf_kernel(padded), strict=True):
        assert found.rank == plain.rank
        assert found.noise_variance == pytest.approx(plain.noise_variance, rel=1e-4)


@pytest.mark.parametrize("rank", [1, 3, 9])
def test_exactly_low_rank_means_no_noise(rank: int) -> None:
    generator = torch.Generator().manual_seed(rank)
    matrix = torch.randn(20, rank, generator=generator) @ torch.randn(rank, 30, generator=generator)
    expected = Evbmf(rank=rank, noise_variance=0.0, threshold=0.0, free_energy=-math.inf)
    assert evbmf_kernel(matrix) == (expected, expected)


def test_some_null_singular_values_leave_the_minimum_finite() -> None:
    spectrum = np.concatenate([np.linspace(1, 2, 18), [0.0, 0.0]])
    found = evbmf(torch.from_numpy(spectrum), (20, 30))
    rank, lowest, _ = textbook(spectrum[:18], (20, 30), 20_000)
    assert (found.rank, found.free_energy) == (rank, pytest.approx(lowest, abs=1e-7))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (1, 1), (3, 2, 3, 3)])
def test_zeros_have_rank_zero(shape: tuple[int, ...]) -> None:
    nothing = Evbmf(rank=0, noise_variance=0.0, threshold=0.0, free_energy=-math.inf)
    assert evbmf_kernel(torch.zeros(shape)) == (nothing, nothing)
    assert evbmf(torch.zeros(min(shape)), shape[:2] if len(shape) == 2 else (min(shape), 9)) == nothing


def test_one_row_can_not_be_told_from_noise() -> None:
    assert evbmf(torch.tensor([3.0]), (1, 50)).rank == 0
    assert evbmf(torch.tensor([3.0]), (1, 50)).noise_variance == pytest.approx(9 / 50)


def test_rank_counts_the_values_above_the_threshold() -> None:
    spectrum = torch.arange(1, 41, dtype=torch.float64) ** -1.0
    found = evbmf(spectrum, (40, 360))
    assert found.rank == int((spectrum > found.threshold).sum()) > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_precision_of_weights(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    signal = torch.randn(30, 4, generator=generator) @ torch.randn(4, 270, generator=generator)
    kernel = (signal + 0.3 * torch.randn(30, 270, generator=generator)).reshape(30, 30, 3, 3).to(dtype)
    assert evbmf_kernel(kernel.requires_grad_())[1].rank == 4


@pytest.mark.parametrize(
    ("spectrum", "shape"),
    [
        (torch.ones(3), (4, 5)),
        (torch.ones(5), (4, 5)),
        (torch.ones(2, 2), (4, 5)),
        (torch.ones(4, dtype=torch.complex64), (4, 5)),
        (torch.tensor([1.0, math.nan]), (2, 5)),
        (torch.tensor([math.inf, 1.0]), (2, 5)),
        (torch.tensor([1.0, -1.0]), (2, 5)),
        (torch.ones(0), (0, 5)),
        (torch.ones(2), (2, 5, 1)),
        (torch.ones(2), (2.0, 5)),
    ],
)
def test_bad_spectra_are_refused(spectrum: torch.Tensor, shape: tuple[int, int]) -> None:
    with pytest.raises(RankError):
        evbmf(spectrum, shape)


@pytest.mark.parametrize(
    "kernel",
    [
        torch.full((2, 3, 3, 3), math.nan),
        torch.tensor([[1.0, math.inf], [0.0, 1.0]]),
        torch.ones(5),
        torch.ones(0, 3, 3, 3),
        torch.ones(3, 3, dtype=torch.int64),
        torch.ones(3, 3, dtype=torch.complex64),
    ],
)
def test_bad_kernels_are_refused(kernel: torch.Tensor) -> None:
    with pytest.raises(RankError):
        evbmf_kernel(kernel)
