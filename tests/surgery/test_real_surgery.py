"""Surgery on the real pretrained network."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.checkpoint.load import load
from compress.forms.registry import get_form
from compress.network.cost import cost
from compress.network.kernels import layer_kernel
from compress.network.layers import list_layers
from compress.planning.plan import LayerPlan, Plan
from compress.planning.policies import Ratio, Vbmf, make_plan
from compress.surgery.factorize import factorize

SIZE = (256, 456)


@pytest.fixture(scope="module")
def network(assets: Path) -> nn.Module:
    (path,) = assets.glob("weights/human-pose-estimation-0001/**/*.pth")
    return load(path).module


@pytest.mark.real
def test_full_ranks_reproduce_the_real_network(network: nn.Module) -> None:
    layers = [layer for layer in list_layers(network, SIZE) if layer.groups == 1]
    entries = []
    for layer in layers:
        method = "svd" if layer.pointwise else "tucker2"
        ranks = get_form(method).max_ranks(layer_kernel(layer))
        entries.append(LayerPlan(layer.name, method, ranks, "plan", (0, 0), (0, 0)))
    done = factorize(network, Plan("omz", SIZE, tuple(entries)))
    assert len(done.plan.changed) == len(layers) > 40
    torch.manual_seed(0)
    images = torch.rand(1, 3, 128, 160) - 0.5
    with torch.no_grad():
        for expected, found in zip(network(images), done.module(images), strict=True):
            for name in expected:
                assert float((expected[name] - found[name]).abs().max()) <= 1e-4


@pytest.mark.real
def test_plans_of_the_real_network_touch_its_fourteen_dense_convolutions(network: nn.Module) -> None:
    third = make_plan(network, Ratio(Fraction(1, 3)), network="omz", input_size=SIZE)
    assert {layer.ranks for layer in third.changed} == {(43, 43)}
    assert len(third.changed) == 14
    assert third.macs[0] == cost(network, SIZE).macs == 7_685_898_240
    vbmf = make_plan(network, Vbmf(), network="omz", input_size=SIZE)
    assert [layer.name for layer in vbmf.changed] == [layer.name for layer in third.changed]
    assert vbmf.macs[1] < third.macs[1]
