"""Conventions of counting, on networks small enough to count by hand, and building networks without values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.network.conventions import CONVENTIONS, LAYER_CONVENTIONS, at_output_size, counted_once, published_number
from compress.network.cost import cost
from compress.network.layers import list_layers
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.zoo.registry import build


class Small(nn.Module):
    """One layer of each kind; the convolution runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.same = nn.Conv2d(4, 4, 3, 1, 1, groups=2)
        self.up = nn.Upsample(scale_factor=2.0)
        self.deconv = nn.ConvTranspose2d(4, 2, 4, 2, 1)
        self.pool = nn.AvgPool2d(4)
        self.linear = nn.Linear(2 * 8 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        x = self.deconv(self.up(self.same(self.same(x))))
        y: Tensor = self.linear(functional.relu(self.pool(x)).flatten(1))
        return y


#: Positions of the feature maps of Small at an input of 16 x 8.
HALF, WHOLE, DOUBLE = 8 * 4, 16 * 8, 32 * 16


def test_the_conventions_by_hand() -> None:
    stem, same, linear = HALF * 3 * 4 * 9, HALF * 2 * 4 * 9, 64 * 5
    deconv = 4 * 2 * 16
    executed = stem + 2 * same + WHOLE * deconv + linear
    at_output = stem + 2 * same + DOUBLE * deconv + linear
    once = stem + same + DOUBLE * deconv + linear  # multiply-adds
    once += 4 * HALF + 2 * DOUBLE + 5  # biases
    once += 2 * 4 * HALF + 4 * HALF  # normalised twice, ReLU layer
    once += 4 * HALF + 2 * DOUBLE  # inputs of the upsampling and the pooling
    module, size = Small(), (16, 8)
    assert published_number("mac", module, size) == executed / 1e9
    assert published_number("2mac", module, size) == 2 * executed / 1e9
    assert published_number("hrnet", module, size) == at_output / 1024**3
    assert published_number("lite-hrnet", module, size) == once / 1024**2
    assert counted_once(module, size) == once
    assert cost(module, size).macs == executed


def test_without_transposed_convolutions_the_size_they_are_counted_at_is_nothing() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2), nn.Conv2d(5, 7, 1))
    layers = list_layers(module, (9, 11))
    assert at_output_size(layers) == sum(layer.macs for layer in layers) > 0


def test_counting_leaves_the_network_as_it_was() -> None:
    module = Small().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    counted_once(module, (16, 8))
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks for part in module.modules())


def test_every_convention_is_implemented_and_says_what_it_counts() -> None:
    assert set(LAYER_CONVENTIONS) == set(CONVENTIONS) - {"lite-hrnet"}
    for name, convention in CONVENTIONS.items():
        assert convention.name == name
        assert convention.summary
        assert published_number(name, Small(), (16, 8)) > 0


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("lightweight-openpose", {}, (64, 96)),
        ("attention-cpm", {"stages": 2, "width": 16, "attention": "coord"}, (64, 96)),
        ("context-cpm", {"stages": 2, "context": "pyramid"}, (64, 96)),
        ("simple-baseline", {}, (64, 96)),
        ("esa", {"attention": "cbam"}, (64, 96)),
        ("hrnet", {}, (64, 96)),
        ("lite-hrnet", {}, (64, 96)),
        ("cbam-lite-hrnet", {}, (64, 96)),
        ("repose", {"blocks": 1}, (64, 64)),
    ],
)
def test_leaving_values_out_changes_no_count(name: str, options: dict[str, object], size: tuple[int, int]) -> None:
    spec = NetworkSpec(name, options)
    with torch.device("meta"):
        plain = build(spec).eval()
    with ShapesOnly():
        module = build(spec).eval()
        quick = list_layers(module, size)
    assert quick == list_layers(plain, size)
    assert {k: v.shape for k, v in module.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}


def test_leaving_values_out_ends_with_the_context() -> None:
    with ShapesOnly():
        assert torch.zeros(2).is_meta
    assert torch.equal(torch.zeros(2), torch.tensor([0.0, 0.0]))
    assert nn.Conv2d(1, 1, 1).weight.device.type == "cpu"


def test_values_that_are_there_are_kept_inside_the_context() -> None:
    x, layer = torch.randn(1, 2, 4, 4), nn.BatchNorm2d(2).eval()

    def several() -> list[Tensor]:
        return [layer(x), functional.relu(x), torch.cat([x, x], 1), functional.interpolate(x, scale_factor=2.0), x + x]

    expected = several()
    with ShapesOnly():
        found = several()
        shapes = [torch.cat([x.to("meta")] * 2, 1).shape, torch.stack([x.to("meta")] * 2, -1).shape]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert shapes == [(1, 4, 4, 4), (1, 2, 4, 4, 2)]
