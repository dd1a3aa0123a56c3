"""What layers could become, what it costs and what it loses."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.decomposition.metric import Metric
from compress.decomposition.problems import Problems
from compress.forms.registry import forms_for, get_form
from compress.network.kernels import layer_kernel
from compress.network.layers import LayerInfo, list_layers
from compress.network.moments import Moments
from compress.planning.curves import (
    MAX_CORRECTION,
    Candidate,
    bounded,
    candidates,
    corrected,
    keep,
    pareto,
    reference_changes,
    weight_only,
)

LAYERS = {
    "square": nn.Conv2d(12, 12, 3, padding=1),
    "strided": nn.Conv2d(6, 20, (3, 5), stride=2),
    "row": nn.Conv2d(10, 8, (1, 5)),
    "pointwise": nn.Conv2d(24, 16, 1),
    "linear": nn.Linear(20, 12),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def known(name: str) -> tuple[LayerInfo, Tensor, Moments, Tensor]:
    """A layer with a random weight, moments of correlated patches and a sensitivity."""
    layer = LAYERS[name]
    if isinstance(layer, nn.Linear):
        (info,) = list_layers(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer), (8, 8), 20)
    else:
        (info,) = list_layers(layer, (12, 10), layer.in_channels)
    weight = random(*layer.weight.shape, seed=1)
    x = random(weight[0].numel(), 4 * weight[0].numel(), seed=2)
    x = x * torch.logspace(0, -2, len(x), dtype=torch.float64)[:, None]
    covariance = x @ x.T / x.shape[1]
    slopes = random(len(weight), 3, seed=3) / 100
    target = weight.flatten(1)
    moments = Moments(random(len(x)), covariance, random(len(weight)), target @ covariance, 100)
    return info, weight, moments, slopes @ slopes.T


def posed(name: str) -> tuple[LayerInfo, Problems]:
    """The layer of `known` with its problems."""
    info, weight, moments, sensitivity = known(name)
    return info, Problems.of(weight, moments.covariance, sensitivity)


def precision(candidate: Candidate, exact: float) -> float:
    """Relative precision of a predicted error: curves of CP are interpolated, all others are exact."""
    return 0.35 if candidate.method == "cp_separable" else exact


@pytest.mark.parametrize("name", LAYERS)
def test_candidates_are_cheaper_than_the_layer_and_their_costs_true(name: str) -> None:
    info, problems = posed(name)
    first, *others = candidates(info, problems)
    assert first == keep(info) == Candidate("keep", (), info.params, info.macs, 0.0)
    assert {x.method for x in others} == {form.name for form in forms_for(info)}
    assert len({(x.method, x.ranks) for x in others}) == len(others)
    for x in others:
        assert (x.params, x.macs) == get_form(x.method).cost(info, x.ranks)
        assert x.params < info.params
        assert x.macs < info.macs
        assert get_form(x.method).clip(layer_kernel(info), x.ranks) == x.ranks
        assert math.isfinite(x.error)
        assert x.error >= 0


@pytest.mark.parametrize("name", LAYERS)
def test_predicted_errors_fall_with_rank(name: str) -> None:
    curves: dict[tuple[object, ...], list[tuple[int, float]]] = defaultdict(list)
    for x in candidates(*posed(name))[1:]:
        if x.method == "tucker2":
            curves["r3", x.ranks[0]].append((x.ranks[1], x.error))
            curves["r4", x.ranks[1]].append((x.ranks[0], x.error))
        else:
            curves[(x.method,)].append((x.ranks[0], x.error))
    assert any(len(points) > 2 for points in curves.values())
    for points in curves.values():
        errors = [error for _, error in sorted(points)]
        assert all(more <= fewer * (1 + 1e-9) + 1e-12 for fewer, more in pairwise(errors))
        assert len(errors) < 2 or errors[-1] < errors[0]


@pytest.mark.parametrize("name", LAYERS)
def test_predicted_errors_are_those_of_the_outputs(name: str) -> None:
    _, weight, moments, sensitivity = known(name)
    for x in candidates(*posed(name))[1::5]:
        metric = Metric.of(moments.covariance, sensitivity)
        fit = get_form(x.method).fit(Problems(weight, metric), x.ranks, sweeps=0)
        change = fit.kernel - weight.flatten(1)
        # The ridges of the metric are part of the prediction: it is a little above the change of the outputs.
        change_of_outputs = float(torch.trace(sensitivity @ change @ moments.covariance @ change.T))
        ridged = metric.outputs * sensitivity.diagonal().mean() @ change @ metric.inputs
        assert x.error == pytest.approx(float((ridged * change).sum()), rel=precision(x, 1e-4))
        assert change_of_outputs <= x.error * (1 + precision(x, 1e-6))


@pytest.mark.parametrize("align", [4, 8])
def test_aligned_ranks_are_multiples_or_full(align: int) -> None:
    for name in LAYERS:
        info, problems = posed(name)
        shape = layer_kernel(info)
        for x in candidates(info, problems, align=align)[1:]:
            fulls = (shape[1], shape[0]) if x.method == "tucker2" else (0,)
            assert all(rank % align == 0 or rank == full for rank, full in zip(x.ranks, fulls, strict=True))


def test_methods_can_be_named() -> None:
    found = candidates(*posed("square"), methods=("svd", "tucker1_out"))
    assert {x.method for x in found} == {"keep", "tucker1_out"}


@pytest.mark.parametrize("name", LAYERS)
def test_without_data_the_error_is_that_of_the_kernel(name: str) -> None:
    info, weight, *_ = known(name)
    found = weight_only(info, weight * 1e3)
    assert len(found) > 3
    plain = Metric(*(torch.eye(n, dtype=torch.float64) for n in (weight[0].numel(), len(weight))))
    for x in found[1::4]:
        expected = get_form(x.method).fit(Problems(weight, plain), x.ranks, sweeps=0).error
        assert x.error == pytest.approx(expected, rel=precision(x, 1e-6), abs=1e-9)


def test_a_kernel_of_zeros_loses_nothing() -> None:
    info, weight, *_ = known("square")
    found = weight_only(info, torch.zeros_like(weight))
    assert len(found) > 1
    assert all(x.error == 0 for x in found)


CANDIDATES = st.lists(
    st.builds(
        lambda cost, error: Candidate("svd", (1,), cost, cost, float(error)), st.integers(0, 8), st.integers(0, 8)
    ),
    min_size=1,
    max_size=12,
)


@given(CANDIDATES)
def test_a_front_is_what_nothing_cheaper_equals(listed: list[Candidate]) -> None:
    front = pareto(listed, lambda x: x.macs)
    assert [x.macs for x in front] == sorted({x.macs for x in front})
    assert [x.error for x in front] == sorted({x.error for x in front}, reverse=True)
    assert set(front) <= set(listed)
    for x in listed:
        assert any(y.macs <= x.macs and y.error <= x.error for y in front)


def test_bounds_hold_for_the_mode_that_a_form_reduces() -> None:
    listed = [
        Candidate(method, ranks, 0, 0, 0.0)
        for method, ranks in [
            ("keep", ()),
            ("tucker2", (4, 6)),
            ("tucker2", (3, 6)),
            ("tucker2", (4, 5)),
            ("tucker1_in", (4,)),
            ("tucker1_in", (3,)),
            ("tucker1_out", (6,)),
            ("tucker1_out", (5,)),
            ("svd", (6,)),
            ("svd", (5,)),
            ("spatial_vh", (1,)),
        ]
    ]
    kept = [(x.method, x.ranks) for x in bounded(listed, 4, 6)]
    assert kept == [
        ("keep", ()), ("tucker2", (4, 6)), ("tucker1_in", (4,)), ("tucker1_out", (6,)), ("svd", (6,)),
        ("spatial_vh", (1,)),
    ]  # fmt: skip
    assert list(bounded(listed, 0, 0)) == listed


def test_reference_points_lie_along_the_curve_and_keep_the_mean() -> None:
    for name in LAYERS:
        info, weight, moments, sensitivity = known(name)
        problems = Problems.of(weight, moments.covariance, sensitivity)
        listed = candidates(info, problems)
        points = reference_changes(listed, moments.mean, problems)
        assert 1 <= len(points) <= 2
        assert len({x for x, _ in points}) == len(points)
        for x, change in points:
            assert x in listed[1:]
            assert 0.1 < x.macs / info.macs < 0.9
            fit = get_form(x.method).fit(problems, x.ranks, sweeps=0)
            torch.testing.assert_close(change.weight, (fit.kernel - weight.flatten(1)).float())
            moved = change.weight.double() @ moments.mean + change.bias
            torch.testing.assert_close(moved, torch.zeros_like(moved), rtol=0, atol=1e-4)
    assert reference_changes([keep(info)], moments.mean, problems) == []


def test_measured_errors_scale_the_whole_curve_within_reason() -> None:
    listed = [Candidate("svd", (rank,), rank, rank, error) for rank, error in ((1, 4.0), (2, 2.0), (3, 1.0))]
    scaled = corrected(listed, listed[1:], [4.0, 8.0])
    assert [x.error for x in scaled] == pytest.approx([16.0, 8.0, 4.0])
    assert [x.ranks for x in scaled] == [x.ranks for x in listed]
    assert [x.error for x in corrected(listed, listed[:1], [1e9])] == pytest.approx(
        [4 * MAX_CORRECTION, 2 * MAX_CORRECTION, MAX_CORRECTION]
    )
    assert corrected(listed, listed[:1], [1e-9])[0].error == pytest.approx(4 / MAX_CORRECTION)
    for points, measured in (([], []), (listed[:1], [0.0])):
        assert list(corrected(listed, points, measured)) == listed
