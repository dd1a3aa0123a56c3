from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.errors import NetworkError, PlanError, RankError
from compress.forms.registry import forms_for, get_form
from compress.forms.svd import LowRankLinear
from compress.forms.tucker1_out import LowRankConv2d
from compress.forms.tucker2 import TuckerConv2d
from compress.network.cost import cost
from compress.network.kernels import layer_kernel
from compress.network.layers import list_layers
from compress.planning.plan import LayerPlan, Plan
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection
from compress.surgery.factorize import factorize

SIZE = (20, 16)


def by_hand(module: nn.Module, size: tuple[int, int] = SIZE, channels: int = 3, **ranks: tuple[int, ...]) -> Plan:
    """A plan that gives layers these ranks; ``_`` in a name stands for a dot."""
    layers = tuple(
        LayerPlan(name.replace("_", "."), "svd" if len(r) == 1 else "tucker2", r, "plan", (0, 0), (0, 0))
        for name, r in ranks.items()
    )
    return Plan("toy", size, layers)


def full(module: nn.Module, size: tuple[int, int] = SIZE) -> Plan:
    """A plan with full ranks for every layer."""
    ranks = {
        layer.name.replace(".", "_"): forms_for(layer)[0].max_ranks(layer_kernel(layer))
        for layer in list_layers(module, size)
    }
    return by_hand(module, size, **ranks)


PADDINGS = st.one_of(
    st.sampled_from(["same", "valid"]), st.integers(0, 3), st.tuples(st.integers(0, 3), st.integers(0, 3))
)
CONFIGS = st.fixed_dictionaries(
    {
        "in_channels": st.integers(1, 7),
        "out_channels": st.integers(1, 7),
        "kernel_size": st.tuples(st.integers(1, 4), st.integers(1, 4)),
        "stride": st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": PADDINGS,
        "dilation": st.integers(1, 3),
        "padding_mode": st.sampled_from(["zeros", "reflect", "replicate", "circular"]),
        "bias": st.booleans(),
        "dtype": st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    }
)


@given(CONFIGS, st.integers(0, 2**31), st.booleans())
@settings(max_examples=120, deadline=None)
def test_full_ranks_reproduce_any_convolution(config: dict[str, Any], seed: int, training: bool) -> None:
    if config["padding"] == "same":
        config["stride"] = 1
    torch.manual_seed(seed)
    conv = nn.Conv2d(**config)
    module = nn.Sequential(nn.Conv2d(3, config["in_channels"], 1, dtype=config["dtype"]), conv).train(training)
    done = factorize(module, replace(full(module), layers=full(module).layers[1:]))
    x = torch.randn(2, 3, *SIZE).to(config["dtype"])
    expected, found = module(x), done.module(x)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype == config["dtype"]
    bound = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 0.25}[config["dtype"]]
    assert float((found - expected).detach().abs().max()) <= bound
    assert all(part.training is training for part in done.module.modules())
    entry = done.plan.layers[1]
    assert entry.error is not None
    assert entry.error < (0.05 if config["dtype"] == torch.bfloat16 else 1e-5)


@given(CONFIGS, st.integers(1, 5), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_the_plan_tells_the_true_cost_of_any_factorization(config: dict[str, Any], r3: int, r4: int) -> None:
    if config["padding"] == "same":
        config["stride"] = 1
    module = nn.Sequential(nn.Conv2d(3, config["in_channels"], 1, dtype=config["dtype"]), nn.Conv2d(**config))
    shape = tuple(module[1].weight.shape)
    ranks = get_form("tucker2").clip(shape, (r3, r4)) if shape[2:].count(1) < 2 else get_form("svd").clip(shape, (r3,))
    done = factorize(module, by_hand(module, **{"1": ranks}))
    assert done.plan.params[1] == cost(done.module, SIZE).params
    assert done.plan.macs[1] == cost(done.module, SIZE).macs
    assert done.plan.macs[0] == cost(module, SIZE).macs


class Toy(nn.Module):
    """Convolutions, a shared block, a linear layer; smooth, so that errors do not jump."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.block = nn.Sequential(nn.Conv2d(24, 24, 3, padding=2, dilation=2, padding_mode="circular"), nn.SiLU())
        self.again = self.block
        self.narrow = nn.Conv2d(24, 18, 1, bias=False)
        self.wide = nn.Conv2d(18, 30, (1, 5), padding="same")
        self.linear = nn.Linear(30, 12)

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        x = self.again(self.block(self.norm(self.stem(x))))
        x = self.wide(self.narrow(x))
        return [{"maps": x}, {"scores": self.linear(x.mean((2, 3)))}]


def maps(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        first, second = module(x)
    return torch.cat([first["maps"].flatten(), second["scores"].flatten()])


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_full_ranks_reproduce_a_network(dtype: torch.dtype, bound: float) -> None:
    torch.manual_seed(0)
    module = Toy().to(dtype).eval()
    done = factorize(module, full(module))
    kinds = [type(part) for _, part in done.module.named_children()]
    assert kinds == [TuckerConv2d, nn.BatchNorm2d, nn.Sequential, LowRankConv2d, TuckerConv2d, LowRankLinear]
    x = torch.randn(2, 3, *SIZE, dtype=dtype)
    assert float((maps(done.module, x) - maps(module, x)).abs().max()) <= bound


def test_more_rank_is_never_worse() -> None:
    torch.manual_seed(0)
    module = Toy().eval()
    errors = []
    for ratio in (Fraction(1, 6), Fraction(1, 4), Fraction(1, 3), Fraction(1, 2)):
        plan = factorize(module, make_plan(module, Ratio(ratio), network="toy", input_size=SIZE)).plan
        errors.append([layer.error for layer in plan.changed])
    assert len(errors[0]) == 2
    for smaller, larger in pairwise(errors):
        assert all(a > b > 0 for a, b in zip(smaller, larger, strict=True))


@torch.no_grad()
def test_the_error_is_that_of_the_kernel() -> None:
    torch.manual_seed(0)
    module = Toy()
    done = factorize(module, by_hand(module, wide=(5, 7), linear=(3,)))
    for name, error in ((layer.name, layer.error) for layer in done.plan.changed):
        weight, new = module.get_submodule(name).weight, done.module.get_submodule(name)
        made = new.reduce.weight.flatten(1)
        if name == "wide":
            made = torch.einsum("tb,baxy,as->tsxy", new.expand.weight.flatten(1), new.core.weight, made)
        else:
            made = new.expand.weight @ made
        assert float((made - weight).norm() / weight.norm()) == pytest.approx(error, rel=1e-4)


def test_the_network_stays_as_it_was_and_shares_nothing() -> None:
    module = Toy()
    module.block.eval()
    before = copy.deepcopy(module.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    done = factorize(module, full(module))
    assert torch.equal(torch.rand(3), expected)
    assert list(before) == list(module.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    pointers = {p.data_ptr() for p in (*module.parameters(), *module.buffers())}
    assert not pointers & {p.data_ptr() for p in (*done.module.parameters(), *done.module.buffers())}
    assert not done.module.block.training
    assert not done.module.block[0].core.training
    assert done.module.stem.training


def test_a_shared_module_stays_shared() -> None:
    done = factorize(Toy(), by_hand(Toy(), block_0=(4, 4)))
    assert isinstance(done.module.block[0], TuckerConv2d)
    assert done.module.again is done.module.block
    twice = nn.Sequential(OrderedDict(a=nn.Conv2d(3, 3, 3, padding=1)))
    twice.add_module("b", twice.a)
    done = factorize(twice, by_hand(twice, a=(2, 2)))
    assert done.module.a is done.module.b
    assert isinstance(done.module.b, TuckerConv2d)


def test_tied_layers_share_their_factors() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, stride=2))
    module[2].weight = module[1].weight
    done = factorize(module, by_hand(module, **{"1": (3, 2), "2": (3, 2)}))
    first, second = done.module[1], done.module[2]
    for part in ("reduce", "core", "expand"):
        assert getattr(first, part).weight is getattr(second, part).weight
    assert first.expand.bias is not second.expand.bias
    assert second.core.stride == (2, 2)
    assert done.plan.params[1] == cost(done.module, SIZE).params
    assert done.plan.layers[1].error == done.plan.layers[2].error
    module[2].bias = module[1].bias
    done = factorize(module, by_hand(module, **{"1": (3, 2), "2": (3, 2)}))
    assert done.module[1].expand.bias is done.module[2].expand.bias
    assert done.plan.params[1] == cost(done.module, SIZE).params


def test_frozen_parameters_stay_frozen() -> None:
    module = Toy()
    module.stem.weight.requires_grad_(False)
    module.wide.bias.requires_grad_(False)
    done = factorize(module, full(module)).module
    assert [p.requires_grad for p in done.stem.parameters()] == [False, False, False, True]
    assert [p.requires_grad for p in done.wide.parameters()] == [True, True, True, False]
    maps_of = done(torch.randn(1, 3, *SIZE))[1]["scores"].sum()
    maps_of.backward()
    assert done.stem.core.weight.grad is None
    assert done.stem.expand.bias.grad is not None
    assert done.linear.reduce.weight.grad is not None


def test_hooks_move_to_the_replacement() -> None:
    module = Toy()
    seen: list[tuple[str, torch.Size]] = []
    module.wide.register_forward_hook(lambda part, args, output: seen.append(("out", output.shape)))
    module.wide.register_forward_pre_hook(lambda part, args: seen.append(("in", args[0].shape)))
    module.wide.register_full_backward_hook(lambda part, before, after: seen.append(("back", after[0].shape)))
    done = factorize(module, by_hand(module, wide=(5, 5))).module
    seen.clear()
    done(torch.randn(1, 3, *SIZE))[0]["maps"].sum().backward()
    assert seen == [("in", (1, 18, 10, 8)), ("out", (1, 30, 10, 8)), ("back", (1, 30, 10, 8))]


def test_a_network_with_derived_weights_is_copied() -> None:
    module = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.Conv2d(8, 8, 3))
    done = factorize(module, by_hand(module, **{"1": (8, 8)}))
    x = torch.randn(1, 3, *SIZE)
    assert torch.allclose(done.module(x), module(x), atol=1e-5)


def test_the_network_may_be_a_layer_itself() -> None:
    conv = nn.Conv2d(3, 8, 3)
    done = factorize(conv, Plan("toy", SIZE, (LayerPlan("", "tucker2", (3, 8), "plan", (0, 0), (0, 0)),)))
    assert isinstance(done.module, TuckerConv2d)
    x = torch.randn(1, 3, *SIZE)
    assert torch.allclose(done.module(x), conv(x), atol=1e-5)


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(PlanError, match="no layer absent"):
        factorize(Toy(), by_hand(Toy(), absent=(2, 2)))


def test_weights_that_are_not_finite_are_refused() -> None:
    module = Toy()
    module.wide.weight.data[0] = float("inf")
    with pytest.raises(RankError, match="layer wide has values"):
        factorize(module, by_hand(module, wide=(5, 5)))


def test_code_that_reaches_past_the_new_layer_is_noticed() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)
            self.parts = [self.conv]

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](x)

    class Nosy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, : self[0].out_channels // 2]

    with pytest.raises(NetworkError, match=r"never called.*'conv'.*Exclude"):
        factorize(Hidden(), by_hand(Hidden(), conv=(2, 2)))
    with pytest.raises(NetworkError, match=r"out_channels.*Exclude"):
        factorize(Nosy(nn.Conv2d(3, 8, 3)), by_hand(Nosy(), **{"0": (2, 2)}))


def test_a_factorized_network_can_be_planned_again() -> None:
    module = Toy()
    once = factorize(module, make_plan(module, Ratio(Fraction(1, 2)), network="toy", input_size=SIZE))
    names = [layer.name for layer in list_layers(once.module, SIZE)]
    assert {"block.0.reduce", "block.0.core", "block.0.expand"} < set(names)
    selection = Selection(include=("block.0.core",))
    twice = factorize(
        once.module, make_plan(once.module, Ratio(Fraction(1, 2)), selection, network="toy", input_size=SIZE)
    )
    assert isinstance(twice.module.block[0].core, TuckerConv2d)
    assert twice.plan.params[1] < once.plan.params[1]
