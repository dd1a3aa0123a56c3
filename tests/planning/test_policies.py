from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.decomposition.evbmf import evbmf_kernel
from compress.errors import PlanError, RankError, UsageError
from compress.forms.registry import get_form
from compress.network.cost import cost
from compress.planning.check import check_plan
from compress.planning.plan import LayerPlan, Plan
from compress.planning.policies import Energy, Policy, Ratio, Vbmf, make_plan, read_share
from compress.planning.selection import Selection

SIZE = (32, 24)
THIRD = Ratio(Fraction(1, 3))


def low_rank_kernel(outputs: int, inputs: int, r3: int, r4: int, noise: float = 0.01) -> Tensor:
    """A 3x3 kernel of known ranks with a little noise."""
    draw = torch.Generator().manual_seed(7)
    core = torch.randn(r4, r3, 3, 3, generator=draw)
    first, last = torch.randn(r3, inputs, generator=draw), torch.randn(outputs, r4, generator=draw)
    kernel = torch.einsum("ba...,as,tb->ts...", core, first, last)
    return kernel + noise * kernel.std() * torch.randn(kernel.shape, generator=draw)


class Network(nn.Module):
    """One layer for each reason."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 48, 3, stride=2, padding=1)
        self.dense = nn.Conv2d(48, 48, 3, padding=1)
        self.strided = nn.Conv2d(48, 24, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.pointwise = nn.Conv2d(24, 48, 1)
        self.up = nn.ConvTranspose2d(48, 48, 2, stride=2)
        self.normalised = nn.utils.parametrizations.weight_norm(nn.Conv2d(48, 48, 3, padding=1))
        self.never = nn.Conv2d(48, 48, 3)
        self.linear = nn.Linear(48, 40)
        with torch.no_grad():
            self.dense.weight.copy_(low_rank_kernel(48, 48, 10, 12))
            self.strided.weight.copy_(low_rank_kernel(24, 48, 5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.strided(self.dense(self.stem(x)))
        x = self.normalised(self.up(self.pointwise(self.depthwise(x))))
        return self.linear(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network()


def plan_of(module: nn.Module, policy: Policy = THIRD, selection: Selection | None = None) -> dict[str, LayerPlan]:
    plan = make_plan(module, policy, selection, network="toy", input_size=SIZE)
    return {layer.name: layer for layer in plan.layers}


def single(inputs: int, outputs: int, kernel: int = 3, **options: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, inputs, 1), nn.Conv2d(inputs, outputs, kernel, **options))


def test_ratio_on_both_modes_and_a_reason_for_every_layer(network: Network) -> None:
    layers = plan_of(network)
    assert {name: layer.reason for name, layer in layers.items()} == {
        "stem": "stem",
        "dense": "ratio",
        "strided": "ratio",
        "depthwise": "depthwise",
        "pointwise": "pointwise",
        "up": "ratio",
        "normalised": "unsupported",
        "never": "unused",
        "linear": "pointwise",
    }
    assert layers["dense"].ranks == (16, 16)
    assert layers["strided"].ranks == (16, 8)
    assert layers["dense"].params == (48 * 48 * 9 + 48, 48 * 16 + 16 * 16 * 9 + 16 * 48 + 48)
    # The first 1x1 convolution runs before the stride.
    assert layers["strided"].macs == (8 * 6 * 48 * 24 * 9, 16 * 12 * 48 * 16 + 8 * 6 * (16 * 8 * 9 + 8 * 24))
    assert all(layer.error is None for layer in layers.values())


def test_the_plan_adds_up_to_the_network(network: Network) -> None:
    plan = make_plan(network, THIRD, network="toy", input_size=SIZE)
    assert plan.params[0] == cost(network, SIZE).params
    assert plan.macs[0] == cost(network, SIZE).macs
    assert plan.params[1] < plan.params[0]
    assert Plan.from_json(plan.to_json()) == plan
    assert plan.policy["ratio"] == "1/3"


@pytest.mark.parametrize(
    ("channels", "ratio", "rank"), [(128, "1/3", 43), (10, "1/4", 3), (64, "0.001", 1), (9, "1/2", 5)]
)
def test_ratio_rounds_half_up_and_is_at_least_one(channels: int, ratio: str, rank: int) -> None:
    plan = plan_of(single(channels, channels), Ratio(ratio))
    assert plan["1"].ranks == (rank, rank)


def test_vbmf_ranks_are_those_of_the_kernel_and_weaken_towards_full(network: Network) -> None:
    layers = plan_of(network, Vbmf())
    assert layers["dense"].reason == "vbmf"
    assert layers["dense"].ranks == tuple(e.rank for e in evbmf_kernel(network.dense.weight.detach())) == (10, 12)
    assert plan_of(network, Vbmf(weaken=0.75))["dense"].ranks == (20, 21)  # 48 - 0.75 * 38 = 19.5 and 48 - 0.75 * 36
    ranks = [plan_of(network, Vbmf(weaken=w))["dense"].ranks for w in (1.0, 0.9, 0.8, 0.7)]
    assert ranks == sorted(ranks)
    assert plan_of(network, Vbmf(weaken=1e-6))["dense"].reason == "full_rank"


def test_rank_zero_is_a_policy() -> None:
    torch.manual_seed(1)
    noise = single(32, 32)
    assert plan_of(noise, Vbmf())["1"].reason == "rank_zero"
    assert plan_of(noise, Vbmf(rank_zero="min_rank"))["1"].ranks == (1, 1)


def test_energy_takes_the_smallest_sufficient_ranks(network: Network) -> None:
    share = 0.9
    layers = plan_of(network, Energy(share))
    kernel = network.dense.weight.detach().double()
    for rank, unfolding in zip(
        layers["dense"].ranks, (kernel.transpose(0, 1).flatten(1), kernel.flatten(1)), strict=True
    ):
        energy = torch.linalg.svdvals(unfolding).square()
        assert energy[:rank].sum() >= share * energy.sum() > energy[: rank - 1].sum()
    assert plan_of(network, Energy(1.0))["dense"].reason == "full_rank"


def test_energy_of_a_kernel_of_zeros() -> None:
    module = single(16, 16)
    nn.init.zeros_(module[1].weight)
    assert plan_of(module, Energy(0.9))["1"].ranks == (1, 1)


@pytest.mark.parametrize("policy", [THIRD, Vbmf(), Energy(0.8)])
def test_pointwise_layers_get_one_rank_when_asked_for(policy: Policy) -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 60, 1), nn.Conv2d(60, 30, 1), nn.Flatten(2), nn.Linear(32 * 24, 90))
    with torch.no_grad():
        module[1].weight.copy_((torch.randn(30, 4) @ torch.randn(4, 60))[..., None, None])
        module[1].weight.add_(0.01 * torch.randn(30, 60, 1, 1))
        module[3].weight.copy_(torch.randn(90, 4) @ torch.randn(4, 32 * 24) + 0.01 * torch.randn(90, 32 * 24))
    layers = plan_of(module, policy, Selection(pointwise=True))
    assert layers["0"].reason == "stem"
    ranks = (10, 30) if policy == THIRD else (4, 4)
    for name, rank in zip(("1", "3"), ranks, strict=True):
        assert layers[name].method == "svd"
        assert layers[name].ranks == (rank,) or (isinstance(policy, Energy) and layers[name].ranks[0] <= rank)
    assert all(layer.method == "keep" for layer in plan_of(module, policy).values())


def test_layers_that_would_not_gain_are_kept() -> None:
    assert plan_of(single(64, 64), Ratio(Fraction(1)))["1"].reason == "full_rank"
    assert plan_of(single(64, 64), Ratio(Fraction(19, 20)))["1"].reason == "not_smaller"
    # The first factor runs at 32x24 positions, the rest and the layer itself at 4x3: smaller, but not cheaper.
    module = single(64, 8, stride=8, padding=1)
    assert plan_of(module, Ratio(Fraction(1, 4)))["1"].reason == "not_cheaper"
    assert plan_of(single(64, 8), Ratio(Fraction(1, 4)))["1"].reason == "ratio"


def test_ranks_are_what_a_tucker_2_can_use() -> None:
    layers = plan_of(single(256, 4), Ratio(Fraction(1, 2)))
    assert layers["1"].ranks == (18, 2)


@given(st.integers(5, 40), st.integers(1, 40), st.integers(1, 3), st.integers(1, 3), st.fractions(Fraction(1, 20), 1))
def test_no_plan_is_ever_larger_or_dearer(inputs: int, outputs: int, kernel: int, stride: int, ratio: Fraction) -> None:
    layers = plan_of(single(inputs, outputs, kernel, stride=stride), Ratio(ratio), Selection(pointwise=True))
    for layer in layers.values():
        if layer.method == "keep":
            assert layer.params[0] == layer.params[1]
            assert layer.macs[0] == layer.macs[1]
        else:
            assert layer.params[1] < layer.params[0]
            assert layer.macs[1] < layer.macs[0]
            assert get_form(layer.method).clip((outputs, inputs, kernel, kernel), layer.ranks) == layer.ranks


def test_include_and_exclude(network: Network) -> None:
    def changed(**options: object) -> set[str]:
        layers = plan_of(network, THIRD, Selection(**options))  # type: ignore[arg-type]
        return {name for name, layer in layers.items() if layer.method != "keep"}

    assert changed() == {"dense", "strided", "up"}
    assert changed(include=("d*",)) == {"dense"}
    assert changed(exclude=("dense",)) == {"strided", "up"}
    assert changed(include=("d*",), exclude=("dense",)) == set()
    assert changed(include=("stem", "linear")) == {"stem", "linear"}
    assert changed(include=("*",)) == {"dense", "strided", "up"}
    assert changed(include=("*",), pointwise=True) == {"dense", "strided", "up", "pointwise", "linear"}
    layers = plan_of(network, THIRD, Selection(include=("strided",)))
    assert layers["dense"].reason == "excluded"


def test_a_shared_module_is_matched_by_any_of_its_names() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = single(32, 32)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x)[:, :3])

    layers = plan_of(Twice(), THIRD, Selection(include=("b.1",)))
    assert layers["a.1"].reason == "ratio"


def test_a_pattern_without_a_match_is_refused(network: Network) -> None:
    with pytest.raises(UsageError, match=r"similar: strided.*'stridet'.*compress inspect"):
        plan_of(network, THIRD, Selection(include=("stridet",)))
    with pytest.raises(UsageError, match="no layer matches"):
        plan_of(network, THIRD, Selection(exclude=("backbone.*",)))
    with pytest.raises(UsageError, match=r"write 0\.\*"):
        plan_of(nn.Sequential(single(8, 8)), THIRD, Selection(exclude=("0",)))


@pytest.mark.parametrize("text", ["0", "4/3", "1/0", "-1/3", "x", "", "nan", "inf", "1e-1", "1/3/3", "0.0", "1.5", "٣"])
def test_ratios_that_nothing_can_have(text: str) -> None:
    with pytest.raises(RankError):
        read_share(text)


@pytest.mark.parametrize(
    ("text", "value"), [("1/3", (1, 3)), ("0.25", (1, 4)), (".5", (1, 2)), (" 1 ", (1, 1)), ("2/4", (1, 2))]
)
def test_ratios(text: str, value: tuple[int, int]) -> None:
    assert read_share(text) == Fraction(*value)


def test_policies_refuse_impossible_numbers() -> None:
    for make in (lambda: Vbmf(weaken=0), lambda: Vbmf(weaken=1.1), lambda: Vbmf(rank_zero="full"), lambda: Energy(0)):
        with pytest.raises(RankError):
            make()


def test_weights_that_are_not_finite_are_refused() -> None:
    module = single(16, 16)
    module[1].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(RankError, match="layer 1 "):
        plan_of(module, Vbmf())


def test_tied_layers_share_their_fate() -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    module[2].weight = module[1].weight
    layers = plan_of(module)
    assert layers["1"].ranks == layers["2"].ranks == (11, 11)
    assert layers["1"].params[1] == 11 * 32 * 2 + 11 * 11 * 9 + 32
    assert layers["2"].params == (32, 32)
    layers = plan_of(module, THIRD, Selection(exclude=("2",)))
    assert (layers["1"].reason, layers["2"].reason) == ("tied", "excluded")


def test_an_untouched_plan_passes_and_an_edited_one_gets_true_numbers(network: Network) -> None:
    plan = make_plan(network, THIRD, network="toy", input_size=SIZE)
    assert check_plan(plan, network, "toy", SIZE) == plan
    edits = {
        "dense": {"ranks": (48, 48), "params": (1, 1), "error": 0.5},
        "stem": {"method": "tucker2", "ranks": (2, 12)},
        "strided": {"method": "keep", "ranks": ()},
    }
    edited = replace(plan, layers=tuple(replace(x, **edits.get(x.name, {})) for x in plan.layers if x.name != "up"))
    checked = check_plan(edited, network, "toy", SIZE)
    layers = {layer.name: layer for layer in checked.layers}
    assert list(layers) == [layer.name for layer in plan.layers]
    assert layers["dense"].params == (48 * 48 * 9 + 48, 48 * 48 * 11 + 48)
    assert layers["dense"].error is None
    assert (layers["stem"].reason, layers["strided"].reason, layers["up"].reason) == ("plan", "plan", "excluded")
    assert layers["strided"].params[0] == layers["strided"].params[1]


def entry(name: str, method: str, *ranks: int) -> LayerPlan:
    return LayerPlan(name, method, ranks, "plan", (0, 0), (0, 0))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([entry("dens", "tucker2", 4, 4)], r"no layer dens \(similar: dense"),
        ([entry("dense", "tucker2", 4, 49)], r"ranks of at most \(4, 36\)"),
        ([entry("dense", "tucker2", 40, 2)], r"at most \(18, 2\)"),
        ([entry("dense", "svd", 4)], "takes the method tucker2"),
        ([entry("linear", "tucker2", 4, 4)], "takes the method svd"),
        ([entry("depthwise", "tucker2", 4, 4)], "depthwise"),
        ([entry("normalised", "tucker2", 4, 4)], "can't be factorized"),
        ([entry("never", "tucker2", 4, 4)], "never calls it"),
        ([entry("dense", "tucker2", 4, 4), entry("dense", "keep")], "twice"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(network: Network, layers: list[LayerPlan], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        check_plan(Plan("toy", SIZE, tuple(layers)), network, "toy", SIZE)


def test_a_plan_for_another_network_is_one_error(network: Network) -> None:
    plan = make_plan(single(32, 32), THIRD, network="other", input_size=SIZE)
    with pytest.raises(PlanError, match=r"made for other; there is no layer 0.*; there is no layer 1"):
        check_plan(plan, network, "toy", SIZE)


def test_tied_layers_need_the_same_ranks_in_a_plan() -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3), nn.Conv2d(32, 32, 3))
    module[2].weight = module[1].weight
    with pytest.raises(PlanError, match="the same weight"):
        check_plan(Plan("toy", SIZE, (entry("1", "tucker2", 4, 4),)), module, "toy", SIZE)
    both = (entry("1", "tucker2", 4, 4), entry("2", "tucker2", 4, 4))
    assert len(check_plan(Plan("toy", SIZE, both), module, "toy", SIZE).changed) == 2


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tucker2"', '"tucker3"'),
        ("16,", "0,"),
        ('"ratio"', '"because"'),
        ("32,", '"a",'),
        ('"macs"', '"flops"'),
        ("null", '"x"'),
    ],
)
def test_a_plan_with_a_wrong_value_is_refused_when_read(network: Network, old: str, new: str) -> None:
    text = make_plan(network, THIRD, network="toy", input_size=SIZE).to_json()
    with pytest.raises(PlanError):
        Plan.from_json(text.replace(old, new))
