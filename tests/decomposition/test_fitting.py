"""Factors in the metric of data and output sensitivity, against brute force and closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.decomposition.fitting import Fit, Problem, Split
from compress.decomposition.metric import OUTPUT_RIDGE, RIDGE, Metric
from compress.decomposition.tucker import tucker2
from compress.errors import RankError
from compress.forms.registry import get_form

SPLITS = {
    "tucker2": Split((1,), (2, 3)),
    "tucker1_in": Split((1,), (2, 3)),
    "tucker1_out": Split((1, 2, 3)),
    "spatial_vh": Split((1, 2), (3,)),
    "spatial_hv": Split((1, 3), (2,)),
    "svd": Split((1,)),
}
METHODS = tuple(SPLITS)
SHAPE = (7, 5, 3, 2)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(size: int, seed: int, decades: float = 2.0) -> Tensor:
    """A positive definite matrix whose eigenvalues span some decades."""
    basis = torch.linalg.qr(random(size, size, seed=seed)).Q
    return (basis * torch.logspace(0, -decades, size, dtype=torch.float64)) @ basis.T


def make(method: str, shape: tuple[int, ...] = SHAPE, seed: int = 0, decades: float = 2.0) -> tuple[Tensor, Metric]:
    """A kernel (or a matrix, for svd) and a metric of correlated patches and outputs."""
    kernel = random(*(shape[:2] if method == "svd" else shape), seed=seed)
    places = kernel[0].numel()
    return kernel, Metric(spread(places, seed + 1, decades), spread(shape[0], seed + 2, decades / 2))


def some_ranks(kernel: Tensor, method: str) -> tuple[int, ...]:
    form = get_form(method)
    return form.clip(tuple(kernel.shape), (3, 4)[: form.rank_count])


def by_definition(kernel: Tensor, fitted: Tensor, metric: Metric) -> float:
    """``tr(H E G E')`` over the same of the kernel itself."""
    whole, left = kernel.flatten(1), kernel.flatten(1) - fitted
    return float(
        torch.trace(metric.outputs @ left @ metric.inputs @ left.T)
        / torch.trace(metric.outputs @ whole @ metric.inputs @ whole.T)
    )


def layer_of(kernel: Tensor, fit: Fit, method: str, ranks: tuple[int, ...]) -> nn.Module:
    """The layer that surgery builds, with these factors in it."""
    like: nn.Module
    if kernel.ndim == 2:
        like = nn.Linear(kernel.shape[1], kernel.shape[0], bias=False)
    else:
        like = nn.Conv2d(kernel.shape[1], kernel.shape[0], tuple(kernel.shape[2:]), padding=(1, 2), bias=False)  # type: ignore[arg-type]
    new = get_form(method).build(like.double(), ranks)
    for name, values in fit.parts.items():
        weight = new.get_submodule(name).get_parameter("weight")
        weight.data = values.reshape(weight.shape)
    return new


@pytest.mark.parametrize("shape", [SHAPE, (6, 4, 5, 4)], ids=["few places", "many places"])
@pytest.mark.parametrize("method", METHODS)
def test_the_error_is_the_mean_squared_error_of_outputs(method: str, shape: tuple[int, ...]) -> None:
    kernel, metric = make(method, shape)
    x = random(kernel[0].numel(), 400, seed=7) * torch.linspace(0.1, 3, 400, dtype=torch.float64)
    metric = Metric(x @ x.T / 400, metric.outputs)
    fit = Problem(kernel, metric, SPLITS[method]).fit(*some_ranks(kernel, method))
    root = torch.linalg.cholesky(metric.outputs).T
    lost, whole = root @ (kernel.flatten(1) - fit.kernel) @ x, root @ kernel.flatten(1) @ x
    assert 1e-3 < fit.error < 1
    assert fit.error == pytest.approx(float(lost.square().sum() / whole.square().sum()), rel=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_the_kernel_is_what_the_built_layer_computes(method: str) -> None:
    kernel, metric = make(method)
    ranks = some_ranks(kernel, method)
    fit = Problem(kernel, metric, SPLITS[method]).fit(*ranks)
    new = layer_of(kernel, fit, method, ranks)
    if kernel.ndim == 2:
        x = random(3, kernel.shape[1], seed=5)
        expected = x @ fit.kernel.T
    else:
        x = random(2, kernel.shape[1], 6, 5, seed=5)
        expected = nn.functional.conv2d(x, fit.kernel.view(kernel.shape), padding=(1, 2))
    torch.testing.assert_close(new(x), expected, rtol=1e-9, atol=1e-9)


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    method=st.sampled_from(METHODS[:-1]),
    wanted=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_errors_never_rise_with_sweeps_and_are_true(
    shape: tuple[int, ...], method: str, wanted: tuple[int, int], seed: int
) -> None:
    if math.prod(shape[2:]) == 1:
        shape = (*shape[:2], 2, 2)
    kernel, metric = make(method, shape, seed, decades=4)
    ranks = get_form(method).clip(shape, wanted[: get_form(method).rank_count])
    fits = [Problem(kernel, metric, SPLITS[method]).fit(*ranks, sweeps=sweeps) for sweeps in (0, 1, 2, 6)]
    for fewer, more in pairwise(fits):
        assert more.error <= fewer.error * (1 + 1e-9) + 1e-12
    for fit in fits:
        assert fit.error == pytest.approx(by_definition(kernel, fit.kernel, metric), rel=1e-4, abs=1e-8)


def test_sweeps_improve_what_the_start_leaves() -> None:
    for method in ("tucker2", "tucker1_in", "spatial_vh", "spatial_hv"):
        kernel, metric = make(method, decades=4)
        problem = Problem(kernel, metric, SPLITS[method])
        ranks = some_ranks(kernel, method)
        assert problem.fit(*ranks, sweeps=10).error < 0.99 * problem.fit(*ranks, sweeps=0).error, method


@pytest.mark.parametrize("method", ["svd", "tucker1_out"])
@pytest.mark.parametrize("rank", [1, 3, 5])
def test_a_matrix_gets_the_reduced_rank_regression(method: str, rank: int) -> None:
    kernel, metric = make(method)
    fit = Problem(kernel, metric, SPLITS[method]).fit(rank)
    # Eckart-Young between triangular roots: another way to the same optimum.
    left, right = torch.linalg.cholesky(metric.outputs), torch.linalg.cholesky(metric.inputs)
    u, s, v = torch.linalg.svd(left.T @ kernel.flatten(1) @ right, full_matrices=False)
    best = torch.linalg.solve(left.T, u[:, :rank] * s[:rank]) @ torch.linalg.solve(right.T, v[:rank].T).T
    torch.testing.assert_close(fit.kernel, best, rtol=1e-6, atol=1e-8)
    assert fit.error == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("method", ["tucker1_in", "spatial_vh", "spatial_hv"])
def test_the_optimum_is_reached_where_it_is_known(method: str) -> None:
    kernel, metric = make(method)
    _, inputs, rows, columns = kernel.shape
    if method == "tucker1_in":
        parts = kernel.flatten(2)
    else:
        parts = (kernel if method == "spatial_vh" else kernel.transpose(2, 3)).flatten(1, 2)
    a, b = parts.shape[1:]
    # A covariance that is a product of one for the reduced part and one for the rest makes it one truncated SVD.
    first, rest = spread(a, 5), spread(b, 6, 1.0)
    inputs_covariance = torch.einsum("ij,pq->ipjq", first, rest)
    if method == "spatial_hv":
        inputs_covariance = inputs_covariance.view(inputs, columns, rows, inputs, columns, rows)
        inputs_covariance = inputs_covariance.permute(0, 2, 1, 3, 5, 4)
    metric = Metric(inputs_covariance.reshape(kernel[0].numel(), -1), metric.outputs)
    roots = [torch.linalg.cholesky(x) for x in (metric.outputs, first, rest)]
    s = torch.linalg.svdvals(torch.einsum("tab,ts,ai,bp->isp", parts, *roots).flatten(1))
    best = float(s[3:].square().sum() / s.square().sum())
    assert best > 0.01
    found = Problem(kernel, metric, SPLITS[method]).fit(3, sweeps=60).error
    assert best * (1 - 1e-9) <= found <= best * 1.001


@pytest.mark.parametrize("method", ["tucker1_in", "tucker1_out", "spatial_vh", "spatial_hv"])
def test_without_correlations_it_is_eckart_young(method: str) -> None:
    kernel = random(*SHAPE)
    plain = Metric(torch.eye(30, dtype=torch.float64), torch.eye(7, dtype=torch.float64))
    unfolded = {
        "tucker1_in": kernel.transpose(0, 1).flatten(1),
        "tucker1_out": kernel.flatten(1),
        "spatial_vh": kernel.permute(1, 2, 0, 3).flatten(0, 1).flatten(1),
        "spatial_hv": kernel.permute(1, 3, 0, 2).flatten(0, 1).flatten(1),
    }[method]
    s = torch.linalg.svdvals(unfolded)
    for rank in (1, 3):
        fit = Problem(kernel, plain, SPLITS[method]).fit(rank, sweeps=0)
        assert fit.error == pytest.approx(float(s[rank:].square().sum() / s.square().sum()), rel=1e-7)


@pytest.mark.parametrize("ranks", [(2, 3), (4, 5), (5, 2)])
def test_without_correlations_it_is_tucker_2(ranks: tuple[int, int]) -> None:
    kernel = random(9, 8, 3, 3)
    plain = Metric(torch.eye(72, dtype=torch.float64), torch.eye(9, dtype=torch.float64))
    fit = Problem(kernel, plain, SPLITS["tucker2"]).fit(*ranks, sweeps=20)
    assert fit.error**0.5 == pytest.approx(tucker2(kernel, ranks, sweeps=20).error, rel=5e-3)


@pytest.mark.parametrize("method", METHODS)
def test_no_covariance_is_the_identity(method: str) -> None:
    kernel, metric = make(method)
    length, ranks = kernel[0].numel(), some_ranks(kernel, method)
    identity = Metric(torch.eye(length, dtype=torch.float64), metric.outputs)
    wanted, given = (Problem(kernel, one, SPLITS[method]) for one in (identity, Metric(None, metric.outputs)))
    assert given.energy == pytest.approx(wanted.energy)
    for sweeps in (0, 2):
        expected, found = (problem.fit(*ranks, sweeps=sweeps) for problem in (wanted, given))
        assert found.error == pytest.approx(expected.error, rel=1e-6)
        torch.testing.assert_close(found.kernel, expected.kernel, rtol=1e-5, atol=1e-6)
    if given.b > 1:
        for first, second in zip(*(x.tails(wanted.start, (1, given.a)) for x in (wanted, given)), strict=True):
            torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7 * given.energy)


@pytest.mark.parametrize("method", METHODS)
def test_full_ranks_reproduce_the_kernel(method: str) -> None:
    for shape in (SHAPE, (3, 8, 2, 3), (9, 2, 3, 3)):
        kernel, metric = make(method, shape, decades=4)
        fit = Problem(kernel, metric, SPLITS[method]).fit(*get_form(method).max_ranks(tuple(kernel.shape)))
        torch.testing.assert_close(fit.kernel, kernel.flatten(1), rtol=0, atol=1e-5)
        assert fit.error < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_scales_of_weights_inputs_and_metric_change_nothing(method: str) -> None:
    kernel, metric = make(method)
    ranks = some_ranks(kernel, method)
    plain = Problem(kernel, metric, SPLITS[method]).fit(*ranks)
    scaled = Problem(kernel * 1e-6, Metric(metric.inputs * 1e8, metric.outputs * 1e-5), SPLITS[method]).fit(*ranks)
    assert scaled.error == pytest.approx(plain.error, rel=1e-6)
    torch.testing.assert_close(scaled.kernel * 1e6, plain.kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["tucker1_in", "spatial_vh", "spatial_hv", "tucker2"])
def test_tails_are_the_errors_of_fits_without_sweeps(method: str) -> None:
    kernel, metric = make(method)
    problem = Problem(kernel, metric, SPLITS[method])
    rows = problem.start
    assert rows.shape == (problem.a, problem.a)
    ranks = (1, 3, problem.a)
    totals = problem.totals(rows, ranks)
    for rank, tails, total in zip(ranks, problem.tails(rows, ranks), totals, strict=True):
        assert float(total) == pytest.approx(float(tails[-1]), abs=1e-9 * problem.energy)
        assert tails.shape == (8,)
        assert float(tails[0]) == pytest.approx(problem.energy)
        bounds = [x for x in range(1, 8) if x <= rank * 6] if method == "tucker2" else [7]
        for bound in bounds:
            fit = problem.fit(rank, bound if method == "tucker2" else None, sweeps=0)
            assert float(tails[bound]) / problem.energy == pytest.approx(fit.error, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("method", ["svd", "tucker1_out"])
def test_matrix_tails_are_the_errors_of_fits(method: str) -> None:
    kernel, metric = make(method)
    problem = Problem(kernel, metric, SPLITS[method])
    tails = problem.matrix_tails()
    assert tails.shape == (8,)
    for rank in range(1, 6):
        assert float(tails[rank]) / problem.energy == pytest.approx(problem.fit(rank).error, rel=1e-6, abs=1e-8)


def test_the_factors_share_the_scale() -> None:
    for method in METHODS:
        kernel, metric = make(method)
        fit = Problem(kernel * 1e4, metric, SPLITS[method]).fit(*some_ranks(kernel, method))
        if "core" not in fit.parts:
            rank = len(fit.parts["reduce"])
            expand = fit.parts["expand"].unflatten(1, (rank, -1)).norm(dim=(0, 2))
            torch.testing.assert_close(fit.parts["reduce"].norm(dim=1), expand)
        else:
            scales = [x.norm() / x.shape[0] ** 0.5 for x in (fit.parts["reduce"], fit.parts["core"])]
            scales.append(fit.parts["expand"].norm() / fit.parts["expand"].shape[1] ** 0.5)
            assert max(scales) / min(scales) < 3


@pytest.mark.parametrize("method", METHODS)
def test_a_kernel_of_zeros_stays_zero(method: str) -> None:
    kernel, metric = make(method)
    fit = Problem(torch.zeros_like(kernel), metric, SPLITS[method]).fit(*some_ranks(kernel, method))
    assert fit.error == 0
    assert not fit.kernel.any()
    assert fit.parts["reduce"].isfinite().all()
    assert fit.parts["expand"].isfinite().all()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e10])
def test_a_kernel_of_lower_rank_than_asked_is_reproduced(method: str, scale: float) -> None:
    kernel, metric = make(method)
    planted = torch.full((), scale, dtype=torch.float64)
    for place, size in enumerate(kernel.shape):
        planted = planted[..., None] * random(size, seed=place)
    fit = Problem(planted, metric, SPLITS[method]).fit(*some_ranks(kernel, method), sweeps=5)
    torch.testing.assert_close(fit.kernel, planted.flatten(1), rtol=0, atol=1e-5 * float(planted.abs().max()))
    assert fit.error < 1e-8


@pytest.mark.parametrize("method", METHODS)
def test_inputs_that_never_vary_and_outputs_that_nothing_feels_do_no_harm(method: str) -> None:
    kernel, _ = make(method)
    places = kernel[0].numel()
    narrow, one = random(places, 2, seed=3), random(7, 1, seed=4)
    metric = Metric.of(narrow @ narrow.T, one @ one.T)
    fit = Problem(kernel, metric, SPLITS[method]).fit(*some_ranks(kernel, method))
    assert fit.kernel.isfinite().all()
    assert fit.error == pytest.approx(by_definition(kernel, fit.kernel, metric), rel=1e-3, abs=1e-6)
    assert float(fit.kernel.norm()) < 100 * float(kernel.norm())


def test_a_metric_is_ridged_and_normalised() -> None:
    inputs, outputs = spread(6, 1) * 5, spread(4, 2) * 7
    metric = Metric.of(inputs.float(), outputs.float())
    level = inputs.diagonal().mean()
    torch.testing.assert_close(metric.inputs, inputs + RIDGE * level * torch.eye(6), rtol=1e-5, atol=1e-6)
    scaled = outputs / outputs.diagonal().mean()
    torch.testing.assert_close(metric.outputs, scaled + OUTPUT_RIDGE * torch.eye(4), rtol=1e-5, atol=1e-6)
    assert metric.inputs.dtype == metric.outputs.dtype == torch.float64
    for plain in (Metric.of(inputs, outputs_count=3), Metric.of(inputs, torch.zeros(3, 3))):
        assert torch.equal(plain.outputs, torch.eye(3, dtype=torch.float64))


def test_a_metric_is_the_symmetric_part_however_long() -> None:
    skew = spread(5, 1).repeat(150, 150).add(random(750, 750) / 100)
    metric = Metric.of(skew, outputs_count=2)
    expected = (skew + skew.T) / 2 + RIDGE * skew.diagonal().mean() * torch.eye(750)
    torch.testing.assert_close(metric.inputs, expected, rtol=0, atol=1e-12)
    assert torch.equal(metric.inputs, metric.inputs.T)


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (torch.ones(4, 3), None),
        (torch.ones(4), None),
        (torch.eye(4), torch.ones(2, 3)),
        (torch.full((4, 4), math.nan), None),
        (torch.eye(4), torch.full((2, 2), math.inf)),
        (torch.zeros(4, 4), None),
    ],
)
def test_what_is_no_metric_is_refused(inputs: Tensor, outputs: Tensor | None) -> None:
    with pytest.raises(RankError):
        Metric.of(inputs, outputs, outputs_count=2)


@pytest.mark.parametrize(
    ("method", "ranks"),
    [
        ("tucker2", (6, 2)),
        ("tucker2", (2, 8)),
        ("tucker2", (0, 2)),
        ("tucker1_in", (6,)),
        ("tucker1_out", (8,)),
        ("tucker1_out", (0,)),
        ("spatial_vh", (16,)),
        ("spatial_hv", (11,)),
        ("svd", (6,)),
        ("svd", (True,)),
    ],
)
def test_ranks_out_of_range_are_refused(method: str, ranks: tuple[int, ...]) -> None:
    kernel, metric = make(method)
    with pytest.raises(RankError, match="rank"):
        Problem(kernel, metric, SPLITS[method]).fit(*ranks)


def test_metrics_of_other_layers_and_splits_of_other_axes_are_refused() -> None:
    kernel, metric = make("tucker2")
    with pytest.raises(RankError, match="another layer"):
        Problem(kernel[:, :4], metric, SPLITS["tucker2"])
    with pytest.raises(RankError, match="another layer"):
        Problem(kernel[:5], metric, SPLITS["tucker2"])
    for split in (Split((1,)), Split((1, 2, 3), (3,)), Split((0, 1), (2, 3))):
        with pytest.raises(RankError, match="can't be split"):
            Problem(kernel, metric, split)
    with pytest.raises(RankError, match="can't be split"):
        Problem(*make("svd"), SPLITS["spatial_vh"])
