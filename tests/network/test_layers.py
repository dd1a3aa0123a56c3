from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compress.errors import NetworkError
from compress.network.cost import cost
from compress.network.layers import LayerInfo, list_layers


class Residual(nn.Module):
    """A ResNet in small: strided blocks with a projection, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.down = nn.Conv2d(8, 16, 1, stride=2, bias=False)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.depthwise(self.conv2(x) + self.down(x))
        return self.fc(x.mean((2, 3)))


class Mixed(nn.Module):
    """Deconvolutions, one shared and one twice-called layer, a layer that is never called, odd outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding="same", dilation=2)
        self.up = nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2, output_padding=1)
        self.block = nn.Sequential(nn.Conv2d(6, 6, (1, 3), padding=(0, 1)), nn.Dropout(), nn.PReLU())
        self.again = self.block
        self.never = nn.Linear(7, 7)
        self.tokens = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.up(self.first(x))
        x = self.again(self.block(x))
        x = self.block(input=nn.functional.max_pool2d(x, 2))
        noise = torch.randn(x.shape[-1])
        return {"text": "maps", "maps": [(self.tokens((x + noise).flatten(2).mT), None)], "shape": x.shape}


def named(layers: tuple[LayerInfo, ...]) -> dict[str, LayerInfo]:
    return {layer.name: layer for layer in layers}


def counted_flops(module: nn.Module, size: tuple[int, int]) -> int:
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        copy.deepcopy(module).eval()(torch.zeros(1, 3, *size))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("network", [Residual, Mixed])
@pytest.mark.parametrize("size", [(32, 24), (37, 51)])
def test_macs_are_half_the_flops_that_torch_counts(network: type[nn.Module], size: tuple[int, int]) -> None:
    module = network()
    assert 2 * sum(layer.macs for layer in list_layers(module, size)) == counted_flops(module, size) > 0
    assert 2 * cost(module, size).macs == counted_flops(module, size)


@given(
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4]),
    transposed=st.booleans(),
    bias=st.booleans(),
    size=st.tuples(st.integers(8, 20), st.integers(8, 20)),
)
@settings(max_examples=40, deadline=None)
def test_macs_of_any_convolution(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: int,
    groups: int,
    transposed: bool,
    bias: bool,
    size: tuple[int, int],
) -> None:
    form = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = form(4, 8, kernel, stride, padding, dilation=dilation, groups=groups, bias=bias)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), layer)
    info = list_layers(module, size)[1]
    assert 2 * info.macs == counted_flops(module, size) - 2 * 3 * 4 * size[0] * size[1]
    assert info.params == sum(p.numel() for p in layer.parameters())
    assert (info.kernel_size, info.stride, info.groups, info.bias) == (kernel, stride, groups, bias)
    assert info.output_size == tuple(module(torch.zeros(1, 3, *size)).shape[2:])


def test_every_layer_once_under_its_first_name() -> None:
    layers = named(list_layers(Mixed(), (16, 16)))
    assert list(layers) == ["first", "up", "block.0", "never", "tokens"]
    assert layers["block.0"].aliases == ("again.0",)
    assert layers["block.0"].calls == 3
    assert layers["block.0"].input_size == (33, 33)
    assert layers["block.0"].output_positions == 2 * 33 * 33 + 16 * 16
    assert (layers["never"].calls, layers["never"].macs, layers["never"].output_size) == (0, 0, None)
    assert layers["tokens"].output_positions == 16 * 16
    assert [layer.kind for layer in layers.values()] == ["conv", "conv_transpose", "conv", "linear", "linear"]
    assert layers["first"].padding == "same"


def test_the_network_and_the_random_state_stay_as_they_were() -> None:
    module = Mixed()
    module.block.eval()
    module.first.weight.grad = torch.ones_like(module.first.weight)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    modes = [part.training for part in module.modules()]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    list_layers(module, (16, 16))
    assert torch.equal(torch.rand(4), expected)
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(module.first.weight.grad, torch.ones_like(module.first.weight))
    assert not any(part._forward_hooks for part in module.modules())


def test_a_network_that_needs_values_is_run_for_real_and_stays_as_it_was() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.seen += 1
            noise = torch.rand(())
            return self.conv(x) if float(x.sum() + 0 * noise) == 0 else x

    module = Counting()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert list_layers(module, (8, 8))[0].macs == 3 * 4 * 9 * 36
    assert torch.equal(torch.rand(4), expected)
    assert module.seen == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    module = Residual().to(dtype)
    assert cost(module, (32, 32)).macs == cost(Residual(), (32, 32)).macs
    # Of the buffers, one counter is an integer whatever the dtype.
    assert cost(module, (32, 32)).size_bytes == 8 + dtype.itemsize * (
        sum(p.numel() for p in module.parameters()) + module.bn1.running_mean.numel() * 2
    )


def test_tied_weights_count_once() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3, padding=1))
    module[2].weight = module[1].weight
    module[2].bias = module[1].bias
    first, second = list_layers(module, (12, 12))[1:]
    assert (first.tied_to, second.tied_to) == (None, "1")
    assert (first.params, second.params) == (6 * 6 * 9 + 6, 0)
    assert first.plain
    assert second.plain
    assert sum(layer.params for layer in list_layers(module, (12, 12))) == cost(module, (12, 12)).params


class OwnForward(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input - input.mean())


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, weight / weight.norm(), bias)


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 4, 3))


def weight_normalised() -> nn.Module:
    return nn.utils.weight_norm(nn.Conv2d(3, 4, 3))


def pruned() -> nn.Module:
    from torch.nn.utils import prune

    layer = nn.Conv2d(3, 4, 3)
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def patched() -> nn.Module:
    layer = nn.Conv2d(3, 4, 3)
    layer.forward = lambda x: x  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("make", "plain"),
    [
        (lambda: nn.Conv2d(3, 4, 3), True),
        (lambda: type("Renamed", (nn.Conv2d,), {})(3, 4, 3), True),
        (lambda: OwnForward(3, 4, 3), False),
        (lambda: OwnConvolution(3, 4, 3), False),
        (parametrized, False),
        (weight_normalised, False),
        (pruned, False),
        (patched, False),
    ],
)
def test_only_torchs_own_layers_are_plain(make: Any, plain: bool) -> None:
    module = nn.Sequential(make())
    (layer,) = list_layers(module, (8, 8))
    assert layer.plain is plain
    assert layer.params == sum(p.numel() for p in module.parameters())


def test_a_weight_held_by_another_kind_of_module_is_not_plain() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 16)
            self.linear = nn.Linear(16, 9, bias=False)
            self.linear.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.flatten(1)[:, :16])

    (layer,) = list_layers(Decoder(), (8, 8))
    assert not layer.plain


def test_linear_layers_that_torch_reads_past_are_not_plain() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x.flatten(2)[..., :8]))

    layers = named(list_layers(Tokens(), (8, 8)))
    assert {name: layer.plain for name, layer in layers.items() if layer.calls} == {
        "body.linear1": False,
        "body.linear2": False,
        "head": True,
    }
    assert layers["body.linear1"].macs == 3 * 8 * 16
    assert all(layer.tied_to is None for layer in layers.values())


def test_what_cannot_run_says_so() -> None:
    with pytest.raises(NetworkError, match="can't be run on an input of shape"):
        list_layers(nn.Sequential(nn.Conv2d(3, 4, 9)), (4, 4))
    with pytest.raises(NetworkError, match="lazy"):
        list_layers(nn.Sequential(nn.LazyConv2d(4, 3)), (8, 8))


def test_the_network_may_be_a_layer_itself() -> None:
    (layer,) = list_layers(nn.Conv2d(5, 4, 3), (8, 8), channels=5)
    assert (layer.name, layer.macs) == ("", 5 * 4 * 9 * 36)
