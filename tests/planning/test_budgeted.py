"""Plans by a budget for a whole network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.errors import Infeasible
from compress.network.cost import cost
from compress.network.layers import LayerInfo, list_layers
from compress.network.statistics import Calibration, Sampling, measure_sensitivity
from compress.planning.budgeted import (
    Budgeted,
    Curves,
    eligible,
    fronts_of,
    measure_curves,
    plan_for_error,
    plan_within,
    weight_curves,
    with_prior,
)
from compress.planning.curves import Candidate
from compress.planning.plan import REASONS
from compress.planning.selection import Selection
from compress.surgery.factorize import factorize

SIZE = (16, 24)
EVERYTHING = Selection(pointwise=True)


class Net(nn.Module):
    """All sorts of layers, some of which no budget can judge."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.first = nn.Conv2d(12, 12, 3, padding=1)
        self.tied = nn.Conv2d(12, 12, 3, padding=1)
        self.tied.weight = self.first.weight
        self.shared = nn.Conv2d(12, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.down = nn.Conv2d(12, 20, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(20, 12, 4, 2, 1)
        self.narrow = nn.Conv2d(12, 16, 1, bias=False)
        self.head = nn.Conv2d(16, 5, 3, padding=1)
        self.spare = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.tied(self.first(self.stem(x).relu()).relu()).relu()
        x = self.shared(self.shared(x).relu()).relu()
        x = self.up(self.down(self.depthwise(self.grouped(x))).relu()).relu()
        return [{"maps": self.head(self.narrow(x))}]


JUDGED = ("shared", "down", "narrow", "head")
KEPT = {
    "stem": "stem", "first": "tied", "tied": "tied", "grouped": "by_weight_only", "depthwise": "depthwise",
    "up": "by_weight_only", "spare": "unused",
}  # fmt: skip


@pytest.fixture(scope="module")
def module() -> nn.Module:
    torch.manual_seed(0)
    made = Net().eval()
    for layer in made.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):  # so that the images reach the maps, not biases alone
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return made


@pytest.fixture(scope="module")
def layers(module: nn.Module) -> tuple[LayerInfo, ...]:
    return list_layers(module, SIZE)


@pytest.fixture(scope="module")
def calibration(module: nn.Module) -> Calibration:
    torch.manual_seed(1)
    images = [torch.randn(1, 3, *SIZE) for _ in range(4)]
    return Calibration(images, measure_sensitivity(module, images, JUDGED, sampling=Sampling(positions=200)))


@pytest.fixture(scope="module", params=["data", "weights"])
def curves(
    request: pytest.FixtureRequest, module: nn.Module, layers: tuple[LayerInfo, ...], calibration: Calibration
) -> Curves:
    if request.param == "weights":
        return weight_curves(module, layers, EVERYTHING)
    return measure_curves(module, layers, eligible(layers, EVERYTHING)[1], calibration)


def by_macs(_: str, candidate: Candidate) -> float:
    return candidate.macs


def by_params(_: str, candidate: Candidate) -> float:
    return candidate.params


def rest(module: nn.Module, curves: Curves, price: Callable[[str, Candidate], float]) -> float:
    """What everything outside of the curves costs."""
    whole = cost(module, SIZE)
    total = whole.macs if price is by_macs else whole.params
    return total - sum(price(name, listed[0]) for name, listed in curves.candidates.items())


def plan(module: nn.Module, curves: Curves, share: float, price: Callable[[str, Candidate], float]) -> Budgeted:
    whole = cost(module, SIZE)
    total = whole.macs if price is by_macs else whole.params
    fixed = rest(module, curves, price)
    return plan_within(curves, share * total, price, fixed=fixed, network="toy", input_size=SIZE)


def test_layers_that_no_budget_can_judge_stay_for_a_reason(layers: tuple[LayerInfo, ...]) -> None:
    names, kept = eligible(layers, EVERYTHING)
    assert names == JUDGED
    assert kept == KEPT
    assert set(KEPT.values()) <= set(REASONS)
    names, kept = eligible(layers, Selection(exclude=("d*",)))
    assert names == ("shared", "head")
    assert (kept["down"], kept["narrow"]) == ("excluded", "pointwise")


@pytest.mark.parametrize("price", [by_macs, by_params])
def test_a_plan_is_within_its_budget_and_true(
    module: nn.Module, curves: Curves, price: Callable[[str, Candidate], float]
) -> None:
    whole = cost(module, SIZE)
    for share in (0.7, 0.85, 1.0):
        found = plan(module, curves, share, price)
        made = cost(factorize(module, found.plan).module, SIZE)
        reached, total = (made.macs, whole.macs) if price is by_macs else (made.params, whole.params)
        assert found.price == pytest.approx(reached)
        assert reached <= share * total
    assert found.error == 0
    assert not found.plan.changed


def test_kept_layers_keep_their_reasons_and_replaced_ones_have_theirs(module: nn.Module, curves: Curves) -> None:
    found = plan(module, curves, 0.7, by_macs)
    entries = {entry.name: entry for entry in found.plan.layers}
    assert list(entries) == [layer.name for layer in curves.layers]
    assert {name: entries[name].reason for name in KEPT} == KEPT
    assert found.plan.changed
    for name in JUDGED:
        assert entries[name].reason == ("budget_kept" if entries[name].method == "keep" else "budget")


def test_a_larger_budget_never_has_a_larger_error(module: nn.Module, curves: Curves) -> None:
    least = nearest_price(module, curves, 0.01) / cost(module, SIZE).macs
    shares = [share for share in (0.6, 0.65, 0.7, 0.75, 0.8, 0.9, 0.95, 1.0) if share > least]
    errors = [plan(module, curves, share, by_macs).error for share in shares]
    assert len(errors) > 5
    assert errors[0] > errors[-1]
    assert all(more <= fewer for fewer, more in pairwise(errors))


def nearest_price(module: nn.Module, curves: Curves, share: float) -> float:
    """The least price, from the refusal of a budget."""
    with pytest.raises(Infeasible, match="no plan is within this budget") as caught:
        plan(module, curves, share, by_macs)
    return float(caught.value.nearest)


def test_a_budget_that_cannot_be_met_tells_the_least(module: nn.Module, curves: Curves) -> None:
    total = cost(module, SIZE).macs
    least = nearest_price(module, curves, 0.01)
    assert 0.01 * total < least < total
    met = plan(module, curves, least / total, by_macs)
    assert met.price == pytest.approx(least)
    assert nearest_price(module, curves, least / total * 0.999) == least


def test_the_cheapest_plan_for_an_error_is_the_dual(module: nn.Module, curves: Curves) -> None:
    within = plan(module, curves, 0.75, by_macs)
    fixed = rest(module, curves, by_macs)
    found = plan_for_error(curves, within.error, by_macs, fixed=fixed, network="toy", input_size=SIZE)
    assert found.error <= within.error * (1 + 1e-9)
    assert found.price <= within.price * (1 + 1e-3)
    nothing = plan_for_error(curves, 0.0, by_macs, fixed=fixed, network="toy", input_size=SIZE)
    assert nothing.error == 0
    assert nothing.price == pytest.approx(cost(module, SIZE).macs)


def test_a_price_may_make_the_layer_itself_the_cheapest(curves: Curves) -> None:
    def price(name: str, candidate: Candidate) -> float:
        return 1.0 if candidate.method == "keep" else 2.0

    fronts = fronts_of(curves, price)
    assert {name: [x.method for x in front] for name, front in fronts.items()} == {name: ["keep"] for name in JUDGED}
    found = plan_within(curves, 4.0, price, network="toy", input_size=SIZE)
    assert not found.plan.changed
    # A layer that costs more than its factors and loses by them is always among the choices.
    assert all(front[-1].method == "keep" for front in fronts_of(curves, by_macs).values())


def test_measured_errors_scale_a_layers_curve(
    module: nn.Module, layers: tuple[LayerInfo, ...], calibration: Calibration
) -> None:
    told: list[tuple[int, int]] = []
    kept = eligible(layers, EVERYTHING)[1]
    found = measure_curves(module, layers, kept, calibration, align=4, progress=lambda *x: told.append(x))
    assert told == [(place, 4) for place in range(1, 5)]
    assert set(found.candidates) == set(JUDGED)
    assert dict(found.kept) == KEPT
    # Errors are of the final maps: leaving out nearly everything of a layer costs a good part of them.
    assert all(0.001 < max(x.error for x in listed) < 100 for listed in found.candidates.values())


def test_a_layer_whose_inputs_never_vary_is_kept(layers: tuple[LayerInfo, ...], module: nn.Module) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead = nn.Conv2d(3, 12, 3)
            self.after = nn.Conv2d(12, 12, 3)
            self.live = nn.Conv2d(3, 12, 3)

        def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
            return [{"maps": self.after(0 * self.dead(x)).mean() + self.live(x)}]

    net = Constant().eval()
    images = [torch.randn(1, 3, *SIZE) for _ in range(2)]
    names = ("after", "live")
    found = measure_curves(
        net, list_layers(net, SIZE), {}, Calibration(images, measure_sensitivity(net, images, names))
    )
    assert [x.method for x in found.candidates["after"]] == ["keep"]
    assert len(found.candidates["live"]) > 1


def test_nothing_to_judge_gives_a_plan_that_keeps_everything(
    module: nn.Module, layers: tuple[LayerInfo, ...], calibration: Calibration
) -> None:
    selection = Selection(exclude=("*",))
    names, kept = eligible(layers, selection)
    assert names == ()
    empty = measure_curves(module, layers, kept, replace(calibration, sensitivities={}))
    for curves in (empty, weight_curves(module, layers, selection)):
        assert not curves.candidates
        found = plan(module, curves, 1.0, by_macs)
        assert not found.plan.changed
        assert nearest_price(module, curves, 0.5) == cost(module, SIZE).macs


def test_a_prior_keeps_ranks_above_those_of_vbmf(module: nn.Module, layers: tuple[LayerInfo, ...]) -> None:
    module = Net().eval()
    with torch.no_grad():  # so that VBMF finds something
        for name, rank in (("shared", 3), ("down", 4), ("narrow", 2), ("head", 2)):
            weight = module.get_submodule(name).get_parameter("weight")
            matrix = torch.randn(len(weight), rank) @ torch.randn(rank, weight[0].numel())
            weight.copy_((matrix + 0.05 * torch.randn_like(matrix)).view_as(weight))
    plain = weight_curves(module, layers, EVERYTHING)
    found = with_prior(module, plain)
    assert found.kept == plain.kept
    for name, listed in found.candidates.items():
        weight = module.get_submodule(name).get_parameter("weight").detach()
        first, last = evbmf_kernel(weight.flatten(1) if name == "narrow" else weight)
        assert first.rank > 0
        assert last.rank > 0
        assert set(listed) <= set(plain.candidates[name])
        assert listed[0].method == "keep"
        for x in listed:
            if x.method == "tucker2":
                assert x.ranks[0] >= first.rank
                assert x.ranks[1] >= last.rank
    assert sum(map(len, found.candidates.values())) < sum(map(len, plain.candidates.values()))
