"""`compress.plan` and `compress.factorize`: any network, any policy, and what they report."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.compression.factorize import factorize_model
from compress.compression.options import FactorizeOptions
from compress.errors import CompressError, Infeasible, PlanError, RankError, UsageError
from compress.model import Model
from compress.planning.plan import Plan
from compress.planning.policies import Energy, Ratio, Vbmf


class Depth(nn.Module):
    """Two inputs, one of one channel; a tuple of maps and a dict of points; labels that are no floating numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU())
        self.maps = nn.Conv2d(24, 4, 3, padding=1)
        self.points = nn.Linear(24 + 2, 6)

    def forward(self, image: Tensor, camera: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.body(self.stem(image).relu())
        points = self.points(torch.cat([x.mean((2, 3)), camera], 1)).view(-1, 3, 2)
        return self.maps(x), {"points": points, "nearest": points.argmax(1)}


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return compress.wrap(Depth(), [(1, 1, 20, 16), (1, 2)])


def inputs(count: int, batch: int = 1) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (torch.rand(batch, 1, 20, 16, generator=generator), torch.rand(batch, 2, generator=generator))
        for _ in range(count)
    ]


def run(model: Model) -> dict[str, Tensor]:
    return model.run(inputs(1)[0])


def test_a_ratio_as_text_number_fraction_or_policy_is_the_same(model: Model) -> None:
    plans = [
        compress.plan(model, ratio="1/4"),
        compress.plan(model, ratio=0.25),
        compress.plan(model, ratio=Fraction(1, 4)),
        compress.plan(model, Ratio("1/4")),
    ]
    assert all(plan == plans[0] for plan in plans)
    assert {layer.name: layer.ranks for layer in plans[0].changed} == {"body.0": (6, 6), "maps": (6, 1)}
    assert all(layer.error is not None and 0 < layer.error < 1 for layer in plans[0].changed)


def test_the_new_model_keeps_plan_edit_history_and_interface(model: Model) -> None:
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    small = compress.factorize(model, ratio="1/2")
    assert small.plan is not None
    assert small.cost.macs - small.plan.macs[1] == model.cost.macs - small.plan.macs[0] == 0
    assert small.cost.params < model.cost.params
    assert [edit.kind for edit in small.edits] == ["factorize"]
    assert small.history[:-1] == model.history
    entry = small.history[-1]
    assert list(entry) == ["command", "policy", "layers"]
    assert (entry["command"], entry["policy"]["ratio"]) == ("factorize", "1/2")
    assert (small.inputs, small.outputs, small.source) == (model.inputs, model.outputs, model.source)
    assert {name: value.shape for name, value in run(small).items()} == {
        name: value.shape for name, value in run(model).items()
    }
    assert model.plan is None
    for name, value in model.module.state_dict().items():
        assert torch.equal(value, before[name])


def test_full_ranks_by_a_plan_reproduce_the_outputs(model: Model) -> None:
    plan = compress.plan(model, ratio="1/2")
    record = plan.to_dict()
    for layer in record["layers"]:
        if layer["name"] == "body.0":
            layer["ranks"] = [24, 24]
        elif layer["method"] != "keep":
            layer.update(method="keep", ranks=[], reason="plan")
    full = compress.factorize(model, Plan.from_json(json.dumps(record)))
    assert [layer.name for layer in full.plan.changed] == ["body.0"]  # type: ignore[union-attr]
    for name, value in run(model).items():
        if value.is_floating_point():
            torch.testing.assert_close(run(full)[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("budget", ["macs=0.5", "params=0.6", "size=0.6", "error=0.05"])
def test_a_budget_is_met_with_images_in_memory(model: Model, budget: str) -> None:
    done = factorize_model(model, budget=budget, images=inputs(20))
    assert done.reached is not None
    assert done.reached.budget == budget
    assert 0 < done.reached.reached <= done.reached.asked
    assert done.after.macs < done.before.macs
    assert done.after == done.model.cost
    assert done.plan.policy["budget"] == budget
    assert done.output_error is not None
    assert list(done.output_error) == ["output_0", "output_1.points"]
    assert all(0 <= error < 0.5 for error in done.output_error.values())
    assert any("fitted to 18 images" in notice for notice in done.notices)
    assert any("2 images that factors were not fitted to" in notice for notice in done.notices)


def test_images_in_batches_are_the_same_images(model: Model) -> None:
    single = factorize_model(model, budget="macs=0.5", images=inputs(1, 4))
    whole = inputs(1, 4)[0]
    parts = [tuple(part[index : index + 1] for part in whole) for index in range(4)]
    assert factorize_model(model, budget="macs=0.5", images=parts).plan == single.plan


def test_data_aware_factors_have_less_error_than_weights_alone(model: Model) -> None:
    errors = [
        factorize_model(model, ratio="1/3", images=inputs(20), options=FactorizeOptions(factors=factors)).output_error
        for factors in ("data", "weights")
    ]
    assert errors[0] is not None
    assert errors[1] is not None
    assert all(errors[0][name] < errors[1][name] for name in errors[0])


def test_a_budget_without_images_says_what_that_means(model: Model) -> None:
    done = factorize_model(model, compress.Budget.parse("macs=0.5"))
    assert done.output_error is None
    assert done.notices == ("factors come from weights alone and all layers count alike",)
    assert done.after.macs <= 0.5 * done.before.macs


def test_earlier_factors_are_multiplied_out_and_norms_folded_on_request(model: Model) -> None:
    small = compress.factorize(model, ratio="1/2")
    done = factorize_model(small, ratio="1/4", options=FactorizeOptions(again=True, fold=True))
    assert [edit.kind for edit in done.model.edits] == ["factorize", "compose", "fold", "factorize"]
    assert done.before == small.cost
    assert done.after.macs < small.cost.macs
    assert any("2 factorized layers multiplied out" in notice for notice in done.notices)
    assert any("1 layers folded" in notice for notice in done.notices)


def test_costs_are_counted_at_the_size_that_is_asked_for(model: Model) -> None:
    done = factorize_model(model, ratio="1/2", options=FactorizeOptions(size=(40, 16)))
    assert done.plan.input_size == (40, 16)
    assert done.before.macs == model.at_size((40, 16)).cost.macs > model.cost.macs
    assert done.model.size == model.size


def test_vbmf_reports_the_noise_of_each_kernel(model: Model) -> None:
    done = factorize_model(model, Vbmf(rank_zero="min_rank"))
    assert done.noise is not None
    assert set(done.noise) == {layer.name for layer in done.plan.changed} != set()
    for noise in done.noise.values():
        assert 0 < noise.mode3 <= 1.1 * noise.kernel
        assert 0 < noise.mode4 <= 1.1 * noise.kernel
    assert factorize_model(model, Energy(0.9)).noise is None


def test_a_plan_prints_every_layer_with_totals(model: Model) -> None:
    plan = compress.plan(model, ratio="1/4")
    lines = str(plan).splitlines()
    assert lines[0] == f"Plan for {model.name} at 20x16: 2 of 4 layers replaced"
    rows = {line.split()[0]: line for line in lines[3:]}
    for layer in plan.layers:
        assert all(part in rows[layer.name] for part in (layer.method, layer.reason, f"{layer.macs[1]:,}"))
    assert "0.0" not in rows["stem"]
    assert f"{plan.params[1]:,}" in rows["total"]
    assert f"{plan.macs[1] / plan.macs[0]:.1%} of the MACs" in rows["total"]
    html = plan._repr_html_()
    assert html.count("<tr") == 1 + len(plan.layers) + 1
    assert all(f">{layer.name}</td>" in html for layer in plan.layers)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, UsageError, "exactly one"),
        ({"ratio": "1/3", "budget": "macs=0.5"}, UsageError, "ratio and budget"),
        ({"policy": Ratio("1/3"), "ratio": "1/3"}, UsageError, "a policy and ratio"),
        ({"policy": "1/3"}, UsageError, "ratio="),
        ({"ratio": "4/3"}, RankError, "at most 1"),
        ({"ratio": "third"}, RankError, "third"),
        ({"budget": "macs=0.001"}, Infeasible, "nearest"),
        ({"budget": "error=0.1"}, RankError, "images"),
        ({"budget": "drop=0.1", "images": inputs(2)}, RankError, "annotated"),
        ({"ratio": 1}, RankError, "no layer"),
        ({"ratio": "1/3", "options": FactorizeOptions(prior="vbmf")}, UsageError, "budget"),
        ({"ratio": "1/3", "options": FactorizeOptions(reconstruct=3)}, UsageError, "images"),
        ({"ratio": "1/3", "options": FactorizeOptions(include=("nothing",))}, UsageError, "nothing"),
    ],
)
def test_what_does_not_go_together_is_one_clear_error(
    model: Model, arguments: dict[str, object], error: type[CompressError], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        compress.factorize(model, **arguments)  # type: ignore[arg-type]
    assert caught.value.hint or caught.value.found is not None


def test_the_nearest_budget_of_an_infeasible_one_can_be_met(model: Model) -> None:
    with pytest.raises(Infeasible) as caught:
        compress.factorize(model, budget="macs=0.001", images=inputs(2))
    small = compress.factorize(model, budget=caught.value.nearest, images=inputs(2))
    assert small.cost.macs < model.cost.macs


def test_a_plan_with_another_selection_or_for_another_network_is_refused(model: Model) -> None:
    plan = compress.plan(model, ratio="1/2")
    with pytest.raises(UsageError, match="plan already says"):
        compress.factorize(model, plan, options=FactorizeOptions(exclude=("maps",)))
    other = compress.wrap(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), (1, 3, 16, 16))
    with pytest.raises(PlanError, match="it was made for"):
        compress.factorize(other, plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate": 1}, "at least 2"),
        ({"rounds": -1}, "from 0 on"),
        ({"reconstruct": -1}, "from 0 on"),
        ({"align": "8x"}, "auto"),
        ({"align": 0}, "auto"),
        ({"prior": "svd"}, "vbmf"),
        ({"factors": "both"}, "data or weights"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FactorizeOptions(**options)  # type: ignore[arg-type]
