"""Attention blocks: parameter counts, formulas and identity initialisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.zoo.attention import KINDS, Attention, MeanSpatialGate, SpatialOptions, build_attention

#: Parameters at C channels and a bottleneck of C / r, as in the papers' tables.
COUNTS = {
    "none": lambda c, m: 0,
    "se": lambda c, m: 2 * c * m + m + c,
    "se_spatial": lambda c, m: c + 1 + 2 * c * m + m + c,
    "cbam": lambda c, m: 2 * c * m + m + c + 98 + 2,
    "esa_seq": lambda c, m: 2 * c * m + 18,
    "esa_par": lambda c, m: 2 * c * m + 18,
    "esa_7": lambda c, m: 2 * c * m + 49,
    "coord": lambda c, m: (c * m + m) + 2 * m + 2 * (m * c + c),
}

#: Number of blend scalars of an identity-initialised block.
BLENDS = {"none": 0, "se": 1, "se_spatial": 2, "cbam": 2, "esa_seq": 1, "esa_par": 1, "esa_7": 1, "coord": 1}


def scalars(block: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in block.named_parameters() if name.endswith("blend")]


def settled(block: Attention) -> Attention:
    """Random statistics of normalisation, so that it is not the identity by chance."""
    for part in block.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-1, 1)
            part.running_var.uniform_(0.5, 2)
    return block.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("channels", "reduction"), [(256, 16), (256, 8), (64, 32), (512, None)])
def test_parameter_counts_follow_the_definitions(kind: str, channels: int, reduction: int | None) -> None:
    block = build_attention(kind, channels, reduction)
    divisor = reduction or (32 if kind == "coord" else 16)
    middle = max(8, channels // divisor) if kind == "coord" else channels // divisor
    assert sum(p.numel() for p in block.parameters()) == COUNTS[kind](channels, middle)
    fresh = build_attention(kind, channels, reduction, identity=True)
    assert sum(p.numel() for p in fresh.parameters()) == COUNTS[kind](channels, middle) + BLENDS[kind]
    assert (block.kind, block.channels, block.reduction) == (kind, channels, divisor)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    channels=st.integers(1, 40),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    identity=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_maps_keep_their_size_and_under_identity_initialisation_their_values(
    kind: str, channels: int, height: int, width: int, identity: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    block = settled(build_attention(kind, channels, identity=identity))
    x = torch.randn(2, channels, height, width)
    y = block(x)
    assert y.shape == x.shape
    assert y.isfinite().all()
    assert torch.equal(y, x) == (identity or kind == "none")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
def test_a_block_with_blend_1_is_that_of_the_paper_and_blend_0_can_be_trained(kind: str) -> None:
    torch.manual_seed(0)
    plain, fresh = settled(build_attention(kind, 32)), build_attention(kind, 32, identity=True).eval()
    fresh.load_state_dict({**fresh.state_dict(), **plain.state_dict()})
    x = torch.randn(2, 32, 6, 5)
    fresh(x).square().sum().backward()
    gradients = [p.grad for p in scalars(fresh)]
    assert gradients
    assert all(g is not None and float(g.abs()) > 0 for g in gradients)
    for scalar in scalars(fresh):
        scalar.data.fill_(1)
    assert torch.allclose(fresh(x), plain(x), atol=1e-6)
    fresh.zero_grad()
    fresh(x).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in fresh.parameters())


def mlp(x: Tensor, block: Attention) -> Tensor:
    """Scores of the channels from (N, C), by matrix products."""
    gate = block.get_submodule("channel")
    first, last = gate.get_submodule("reduce"), gate.get_submodule("expand")
    middle = gate.get_submodule("activation")(x @ first.weight.flatten(1).T + (0 if first.bias is None else first.bias))
    return middle @ last.weight.flatten(1).T + (0 if last.bias is None else last.bias)


def test_the_attention_cpm_block_weights_positions_then_channels() -> None:
    torch.manual_seed(1)
    block = build_attention("se_spatial", 32, 8)
    x = torch.randn(2, 32, 4, 3)
    score = block.get_submodule("place.score")
    places = torch.einsum("nchw,c->nhw", x, score.weight.flatten()) + score.bias
    weighed = x * places.sigmoid()[:, None]
    expected = weighed * mlp(weighed.flatten(2).mean(2), block).sigmoid()[:, :, None, None]
    assert torch.allclose(block(x), expected, atol=1e-6)
    assert isinstance(block.get_submodule("channel.activation"), nn.LeakyReLU)


def test_cbam_adds_means_and_maxima_and_pools_the_maximum_first() -> None:
    torch.manual_seed(2)
    block = settled(build_attention("cbam", 32, 8))
    x = torch.randn(2, 32, 9, 8)
    flat = x.flatten(2)
    weighed = x * (mlp(flat.mean(2), block) + mlp(flat.max(2).values, block)).sigmoid()[:, :, None, None]
    pooled = torch.stack([weighed.max(1).values, weighed.mean(1)], dim=1)
    weight, norm = block.get_submodule("place.score").weight, block.get_submodule("place.norm")
    scores = nn.functional.conv2d(pooled, weight, padding=3)
    scores = (scores - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    assert torch.allclose(block(x), weighed * scores.sigmoid(), atol=1e-5)
    assert norm.momentum == 0.01


@pytest.mark.parametrize("kind", ["esa_seq", "esa_par", "esa_7"])
def test_esa_adds_its_weighted_map_to_the_input(kind: str) -> None:
    torch.manual_seed(3)
    block = build_attention(kind, 32)
    x = torch.randn(2, 32, 9, 8)
    weighed = x * mlp(x.flatten(2).mean(2), block).sigmoid()[:, :, None, None]
    mean = weighed.mean(1, keepdim=True)
    weights = [p for name, p in block.named_parameters() if name.startswith("place.")]
    scores = [nn.functional.conv2d(mean, w, padding=w.shape[-1] // 2) for w in weights]
    if kind == "esa_seq":
        scores = [nn.functional.conv2d(scores[0], weights[1], padding=1)]
    assert torch.allclose(block(x), x + weighed * sum(scores).sigmoid(), atol=1e-6)


def conv(x: Tensor, weight: Tensor) -> Tensor:
    return nn.functional.conv2d(x, weight, padding=weight.shape[-1] // 2)


def test_two_parallel_3x3_are_one_and_two_in_sequence_are_a_5x5_inside_the_border() -> None:
    torch.manual_seed(3)
    x = torch.randn(1, 1, 9, 8)
    parallel, sequence = (MeanSpatialGate(form, None) for form in ("sum", "chain"))
    a, b = (p.detach() for p in parallel.parameters())
    assert torch.allclose(parallel(x), conv(x, a + b).sigmoid(), atol=1e-6)
    a, b = (p.detach() for p in sequence.parameters())
    wide = nn.functional.conv_transpose2d(a, b)  # the convolution of the kernels
    one, both = conv(x, wide).sigmoid(), sequence(x)
    assert torch.allclose(both[..., 1:-1, 1:-1], one[..., 1:-1, 1:-1], atol=1e-6)
    assert not torch.allclose(both, one, atol=1e-3)


@pytest.mark.parametrize("form", ["sum", "chain"])
def test_with_an_activation_between_the_convolutions_do_not_collapse(form: str) -> None:
    torch.manual_seed(3)
    gate = MeanSpatialGate(form, None, SpatialOptions("relu"))
    plain = MeanSpatialGate(form, None)
    plain.load_state_dict(gate.state_dict())  # the same tensors
    x = torch.randn(1, 6, 9, 8)
    mean = x.mean(1, keepdim=True)
    a, b = (p.detach() for p in gate.parameters())
    expected = conv(mean, a).relu() + conv(mean, b).relu() if form == "sum" else conv(conv(mean, a).relu(), b)
    assert torch.allclose(gate(x), expected.sigmoid(), atol=1e-6)
    assert not torch.allclose(gate(x), plain(x), atol=1e-3)


@pytest.mark.parametrize(("kind", "area"), [("esa_seq", 18), ("esa_par", 18), ("esa_7", 49)])
def test_wider_gates_have_as_many_times_the_weights_and_are_means_of_groups(kind: str, area: int) -> None:
    torch.manual_seed(3)
    wide = build_attention(kind, 32, spatial=SpatialOptions(width=4))
    assert sum(p.numel() for p in wide.parameters()) == 2 * 32 * 2 + area * 4 * 4
    same = build_attention(kind, 32)
    for name, parameter in same.named_parameters():
        value = wide.get_parameter(name).data
        if name.startswith("place."):  # every map by the same kernel, and nothing from another map
            value.zero_()
            value[range(4), range(4)] = parameter.data[0, 0]
        else:
            value.copy_(parameter.data)
    x = torch.randn(2, 32, 9, 8)
    assert torch.allclose(wide(x), same(x), atol=1e-5)
    groups = wide.get_submodule("place")(x)
    assert groups.shape == (2, 1, 9, 8)


def test_the_difference_of_the_printed_rows_is_that_of_128_channels_in_one_gate_or_64_in_four() -> None:
    counts = {
        (kind, width): sum(
            p.numel() for p in build_attention(kind, 256, spatial=SpatialOptions(width=width)).parameters()
        )
        for kind in ("esa_seq", "esa_7")
        for width in (64, 128)
    }
    assert counts["esa_7", 128] - counts["esa_seq", 128] == 31 * 128**2 == 507_904
    assert 4 * (counts["esa_7", 64] - counts["esa_seq", 64]) == 507_904


@pytest.mark.parametrize(
    ("kind", "spatial", "message"),
    [
        ("se", {"between": "relu"}, "only the esa kinds"),
        ("esa_7", {"between": "relu"}, "no activation between"),
        ("esa_seq", {"width": 7}, "divisor"),
        ("esa_seq", {"width": 0}, "integer from 1"),
        ("esa_seq", {"between": "tanh"}, "unknown activation"),
    ],
)
def test_options_of_spatial_gates_that_do_not_fit_are_refused(kind: str, spatial: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build_attention(kind, 32, spatial=SpatialOptions(**spatial))


def test_coordinate_attention_weights_rows_and_columns() -> None:
    torch.manual_seed(4)
    block = settled(build_attention("coord", 32))
    x = torch.randn(1, 32, 5, 7)
    gate = block.get_submodule("coordinate")
    shared = nn.Sequential(gate.get_submodule("reduce"), gate.get_submodule("norm"), nn.Hardswish())
    rows = gate.get_submodule("rows")(shared(x.mean(3, keepdim=True))).sigmoid()
    columns = gate.get_submodule("columns")(shared(x.mean(2, keepdim=True))).sigmoid()
    assert torch.allclose(block(x), x * rows * columns, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "channels", "reduction", "message"),
    [
        ("sea", 64, 16, "unknown kind of attention.*sea.*Known: none, se, se_spatial"),
        (3, 64, 16, "unknown kind of attention"),
        ("se", 0, 16, "channels must be an integer"),
        ("se", 10**9, 16, "channels must be an integer"),
        ("none", True, 16, "channels must be an integer"),
        ("se", 64, 0, "reduction must be an integer"),
        ("se", 64, 2.0, "reduction must be an integer"),
    ],
)
def test_invalid_blocks_are_refused(kind: str, channels: int, reduction: int, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        build_attention(kind, channels, reduction)
