"""CP decomposition against constructed kernels, another library and the definition of its error."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorly.decomposition import parafac
from torch import Tensor

from compress.decomposition.cp import CpProblem, als, full_rank, nested_terms, squared_error
from compress.decomposition.metric import Metric
from compress.decomposition.problems import Problems
from compress.errors import RankError

SIZES = st.integers(1, 6)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(size: int, seed: int, decades: float = 2.0) -> Tensor:
    """A positive definite matrix whose eigenvalues span some decades."""
    basis = torch.linalg.qr(random(size, size, seed=seed)).Q
    return (basis * torch.logspace(0, -decades, size, dtype=torch.float64)) @ basis.T


def planted(rank: int, shape: tuple[int, int, int] = (9, 8, 9), seed: int = 0) -> Tensor:
    """A kernel of known CP rank."""
    factors = (random(rank, size, seed=seed + mode) for mode, size in enumerate(shape))
    return torch.einsum("rt,rs,rp->tsp", *factors)


def data_metric(kernel: Tensor, seed: int = 5) -> Metric:
    return Metric(spread(kernel[0].numel(), seed), spread(len(kernel), seed + 1, 1.0))


def by_definition(kernel: Tensor, fitted: Tensor, metric: Metric) -> float:
    assert metric.inputs is not None
    whole, left = kernel.flatten(1), kernel.flatten(1) - fitted
    return float(
        torch.trace(metric.outputs @ left @ metric.inputs @ left.T)
        / torch.trace(metric.outputs @ whole @ metric.inputs @ whole.T)
    )


@given(st.tuples(SIZES, SIZES, SIZES), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_all_nested_terms_reproduce_a_tensor_and_fewer_leave_more_out(shape: tuple[int, ...], seed: int) -> None:
    tensor = random(*shape, seed=seed)
    total = float(tensor.square().sum())
    full = full_rank(shape)
    whole = nested_terms(tensor, full)
    assert [tuple(part.shape) for part in whole] == [(full, size) for size in shape]
    assert squared_error(tensor, whole) <= 1e-20 * total
    errors = [squared_error(tensor, tuple(part[:rank] for part in whole)) for rank in range(full + 1)]  # type: ignore[arg-type]
    assert errors[0] == pytest.approx(total)
    assert all(more <= fewer + 1e-12 * total for fewer, more in pairwise(errors))


@given(st.tuples(SIZES, SIZES, SIZES), st.integers(1, 8), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_als_never_raises_the_error(shape: tuple[int, ...], rank: int, seed: int) -> None:
    tensor = random(*shape, seed=seed)
    start = nested_terms(tensor, min(rank, full_rank(shape)))
    errors = [squared_error(tensor, als(tensor, start, sweeps)) for sweeps in (0, 1, 5, 20)]
    assert all(more <= fewer + 1e-12 * float(tensor.square().sum()) for fewer, more in pairwise(errors))


@pytest.mark.parametrize("rank", [1, 3])
def test_a_kernel_of_that_rank_is_found(rank: int) -> None:
    tensor = planted(rank)
    terms = als(tensor, nested_terms(tensor, rank), 500)
    assert squared_error(tensor, terms) < 1e-4 * float(tensor.square().sum())


@pytest.mark.parametrize("rank", [2, 6, 12])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_another_library_is_hardly_better(rank: int, seed: int) -> None:
    tensor = random(12, 10, 9, seed=seed) + planted(4, (12, 10, 9), seed)
    ours = squared_error(tensor, als(tensor, nested_terms(tensor, rank), 200)) ** 0.5
    _, errors = parafac(tensor.numpy(), rank, n_iter_max=200, init="svd", random_state=seed, return_errors=True)
    theirs = float(errors[-1]) * float(tensor.norm())
    assert ours <= 1.05 * theirs


@pytest.mark.parametrize("sweeps", [0, 2])
@pytest.mark.parametrize("rank", [2, 7, 20])
def test_the_error_of_a_fit_is_that_of_its_kernel(rank: int, sweeps: int) -> None:
    kernel = random(7, 5, 3, 3)
    metric = data_metric(kernel)
    fit = CpProblem(Problems(kernel, metric)).fit(rank, sweeps)
    assert fit.error == pytest.approx(by_definition(kernel, fit.kernel, metric), rel=1e-4, abs=1e-9)
    product = torch.einsum("tr,rs,rp->tsp", *(fit.parts[name] for name in ("expand", "reduce", "core")))
    torch.testing.assert_close(product.flatten(1), fit.kernel)
    norms = torch.stack(
        [fit.parts["reduce"].norm(dim=1), fit.parts["core"].norm(dim=1), fit.parts["expand"].norm(dim=0)]
    )
    torch.testing.assert_close(norms, norms[:1].expand(3, -1))


@given(st.tuples(SIZES, SIZES, st.integers(1, 3), st.integers(1, 3)), st.integers(1, 9), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_sweeps_in_the_true_metric_never_raise_the_error(shape: tuple[int, ...], rank: int, seed: int) -> None:
    kernel = random(*shape, seed=seed)
    problem = CpProblem(Problems(kernel, data_metric(kernel, seed)))
    rank = min(rank, full_rank((shape[0], shape[1], shape[2] * shape[3])))
    errors = [problem.fit(rank, sweeps).error for sweeps in (1, 2, 5)]
    assert all(more <= fewer * (1 + 1e-9) + 1e-12 for fewer, more in pairwise(errors))


def test_data_lowers_the_error_in_its_metric() -> None:
    kernel = random(12, 10, 3, 3)
    metric = data_metric(kernel)
    for rank in (8, 24):
        blind = CpProblem(Problems(kernel, Metric.plain(12))).fit(rank)
        aware = CpProblem(Problems(kernel, metric)).fit(rank)
        assert aware.error < 0.8 * by_definition(kernel, blind.kernel, metric)


def test_errors_of_the_nested_start_fall_and_end_at_nothing() -> None:
    kernel = random(7, 5, 3, 3)
    problem = CpProblem(Problems(kernel, data_metric(kernel)))
    errors = problem.errors(range(1, 36))
    assert all(more <= fewer for fewer, more in pairwise(errors))
    assert errors[0] < problem.energy
    assert errors[-1] < 1e-7 * problem.energy


def test_scales_of_weights_and_metric_change_nothing() -> None:
    kernel = random(7, 5, 3, 3)
    metric = data_metric(kernel)
    assert metric.inputs is not None
    plain = CpProblem(Problems(kernel, metric)).fit(9)
    scaled = CpProblem(Problems(kernel * 1e-6, Metric(metric.inputs * 1e8, metric.outputs))).fit(9)
    assert scaled.error == pytest.approx(plain.error, rel=1e-3)


def test_a_kernel_of_zeros_stays_zero() -> None:
    kernel = torch.zeros(4, 3, 3, 3)
    fit = CpProblem(Problems(kernel, data_metric(kernel))).fit(5)
    assert fit.error == 0
    assert not fit.kernel.any()
    assert all(part.isfinite().all() for part in fit.parts.values())


@pytest.mark.parametrize("rank", [0, 13, True])
def test_ranks_out_of_range_are_refused(rank: int) -> None:
    problem = CpProblem(Problems(random(4, 3, 2, 2), Metric.plain(4)))
    with pytest.raises(RankError, match="1 to 12"):
        problem.fit(rank)


def test_a_metric_of_another_layer_is_refused() -> None:
    with pytest.raises(RankError, match="another layer"):
        CpProblem(Problems(random(4, 3, 2, 2), Metric.plain(5)))
