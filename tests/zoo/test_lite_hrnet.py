"""Lite-HRNet and CBAM-Lite-HRNet: counts, public names, the public fusion and its equivalent single form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.checkpoint.weights import Weights, fit
from compress.errors import CheckpointError, NetworkError
from compress.network.cost import cost
from compress.network.layers import list_layers
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.zoo.foreign import identify
from compress.zoo.lite_blocks import CrossResolutionWeighting, shuffle
from compress.zoo.lite_hrnet import LiteModule
from compress.zoo.registry import build, get_entry

Shapes = Iterator[tuple[str, tuple[int, ...]]]

MODULES = {18: (2, 4, 2), 30: (3, 8, 3)}
CHANNELS = (40, 80, 160, 320)


def on_meta(name: str = "lite-hrnet", **options: object) -> nn.Module:
    with ShapesOnly():
        return build(NetworkSpec(name, options)).eval()


def randomised(module: nn.Module) -> nn.Module:
    """Random statistics and weights, so that errors do not cancel."""
    for key, value in module.state_dict().items():
        if key.endswith(("running_mean", "bias")):
            nn.init.normal_(value, std=0.1)
        elif key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
            nn.init.uniform_(value, 0.5, 1.5)
    return module.eval()


def norm(name: str, channels: int) -> Shapes:
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def unit(name: str, outputs: int, inputs: int, size: int = 1) -> Shapes:
    yield f"{name}.conv.weight", (outputs, inputs, size, size)
    yield from norm(f"{name}.bn", outputs)


def separable(name: str, inputs: int, outputs: int) -> Shapes:
    """A flat sequence: depthwise 0, 1 and pointwise 2, 3."""
    yield f"{name}.0.weight", (inputs, 1, 3, 3)
    yield from norm(f"{name}.1", inputs)
    yield f"{name}.2.weight", (outputs, inputs, 1, 1)
    yield from norm(f"{name}.3", outputs)


def weighting(name: str, channels: tuple[int, ...]) -> Shapes:
    halves = [c // 2 for c in channels]
    total = sum(halves)
    yield from unit(f"{name}.cross_resolution_weighting.conv1", total // 8, total)
    yield from unit(f"{name}.cross_resolution_weighting.conv2", total, total // 8)
    for branch, c in enumerate(halves):
        yield from unit(f"{name}.depthwise_convs.{branch}", c, 1, 3)
    for branch, c in enumerate(halves):
        for part, (o, i) in (("conv1", (c // 4, c)), ("conv2", (c, c // 4))):
            yield f"{name}.spatial_weighting.{branch}.{part}.conv.weight", (o, i, 1, 1)
            yield f"{name}.spatial_weighting.{branch}.{part}.conv.bias", (o,)


def public_shapes(depth: int, joints: int) -> Shapes:
    """Names and shapes of the public release, in its order."""
    yield from unit("backbone.stem.conv1", 32, 3, 3)
    yield from unit("backbone.stem.branch1.0", 16, 1, 3)
    yield from unit("backbone.stem.branch1.1", 16, 16)
    yield from unit("backbone.stem.expand_conv", 32, 16)
    yield from unit("backbone.stem.depthwise_conv", 32, 1, 3)
    yield from unit("backbone.stem.linear_conv", 16, 32)
    before = 32
    for stage, modules in enumerate(MODULES[depth]):
        channels = CHANNELS[: stage + 2]
        if stage == 0:
            yield from separable("backbone.transition0.0", before, channels[0])
        yield from separable(f"backbone.transition{stage}.{stage + 1}.0", before, channels[-1])
        before = channels[-1]
        for module in range(modules):
            name = f"backbone.stage{stage}.{module}"
            for block in range(2):
                yield from weighting(f"{name}.layers.{block}", channels)
            for i, target in enumerate(channels):
                for j, source in enumerate(channels):
                    fuse = f"{name}.fuse_layers.{i}.{j}"
                    if j > i:
                        yield f"{fuse}.0.weight", (target, source, 1, 1)
                        yield from norm(f"{fuse}.1", target)
                    for k in range(i - j):
                        yield from separable(f"{fuse}.{k}", source, target if k == i - j - 1 else source)
    for index, (i, o) in enumerate(((320, 160), (160, 80), (80, 40), (40, 40))):
        yield from unit(f"backbone.head_layer.projects.{index}.depthwise_conv", i, 1, 3)
        yield from unit(f"backbone.head_layer.projects.{index}.pointwise_conv", o, i)
    yield "keypoint_head.final_layer.weight", (joints, 40, 1, 1)
    yield "keypoint_head.final_layer.bias", (joints,)


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    return {
        name: torch.tensor(index) if shape == () else torch.full(shape, 1e-3 * (index % 89))
        for index, (name, shape) in enumerate(shapes)
    }


@pytest.mark.parametrize(
    ("options", "size", "params", "mmacs"),
    [
        ({}, (256, 192), 1_130_769, 242.35),
        ({"depth": 30}, (256, 192), 1_763_717, 386.10),
        ({}, (384, 288), 1_130_769, 545.1),
        ({"depth": 30}, (384, 288), 1_763_717, 868.5),
        ({"single_fuse": True}, (256, 192), 1_130_769, 198.63),
        ({"depth": 30, "single_fuse": True}, (256, 192), 1_763_717, 309.45),
    ],
)
def test_counts_are_those_of_the_executed_layers(
    options: dict[str, Any], size: tuple[int, int], params: int, mmacs: float
) -> None:
    with ShapesOnly():
        found = cost(on_meta(**options), size)
    assert found.params == params
    assert found.macs / 1e6 == pytest.approx(mmacs, abs=0.051)


@pytest.mark.parametrize(("options", "runs_twice"), [({}, 114), ({"depth": 30}, 197), ({"single_fuse": True}, 0)])
def test_the_fusions_from_the_first_branch_run_twice_by_default(options: dict[str, Any], runs_twice: int) -> None:
    network = on_meta(**options)
    calls: dict[nn.Module, int] = {}
    for part in network.modules():
        if isinstance(part, nn.Conv2d | nn.BatchNorm2d | nn.ReLU):
            part.register_forward_hook(lambda part, *_: calls.__setitem__(part, calls.get(part, 0) + 1))
    network(torch.zeros(1, 3, 32, 32, device="meta"))
    assert max(calls.values()) == (2 if runs_twice else 1)
    assert sum(count == 2 for count in calls.values()) == runs_twice


@pytest.mark.parametrize(("depth", "params"), [(18, 1_140_588), (30, 1_773_536)])
def test_cbam_adds_the_parameters_of_its_blocks_and_the_wider_head(depth: int, params: int) -> None:
    with ShapesOnly():
        plain, ours = (cost(on_meta(name, depth=depth), (256, 192)) for name in ("lite-hrnet", "cbam-lite-hrnet"))
    assert ours.params == params == plain.params + 5_059 + (320 * 17 + 17) - (40 * 17 + 17)
    assert (ours.macs - plain.macs) / 1e6 == pytest.approx(15.8, abs=0.1)


@pytest.mark.parametrize("joints", [17, 16])
@pytest.mark.parametrize("depth", [18, 30])
def test_names_are_those_of_the_public_release(depth: int, joints: int) -> None:
    name = "lite-hrnet" if joints == 17 else "lite-hrnet-mpii"
    found = [(key, tuple(value.shape)) for key, value in on_meta(name, depth=depth).state_dict().items()]
    assert found == list(public_shapes(depth, joints))
    assert depth != 18 or len(found) == 1418


@pytest.mark.parametrize("head", ["keypoint_head.", "head."])
@pytest.mark.parametrize(("name", "depth", "joints"), [("lite-hrnet", 30, 17), ("lite-hrnet-mpii", 18, 16)])
def test_public_files_are_recognised_and_fit(name: str, depth: int, joints: int, head: str) -> None:
    plain = tensors(public_shapes(depth, joints))
    state = {re.sub("^keypoint_head[.]", head, key): value for key, value in plain.items()}
    state["data_preprocessor.std"] = torch.ones(3, 1, 1)
    found = identify(state)
    assert found == NetworkSpec(name, {"depth": depth})
    fitted = fit(Weights(state), on_meta(found.name, **found.options), found.name).state
    assert list(fitted) == list(plain)
    assert all(torch.equal(fitted[key], plain[key]) for key in plain)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lite-hrnet", {"depth": 18, "blocks": "naive"}),
        ("lite-hrnet-mpii", {"depth": 30, "blocks": "naive_wide"}),
        ("cbam-lite-hrnet", {"depth": 30}),
    ],
)
def test_the_variants_are_distinguished(name: str, options: dict[str, Any]) -> None:
    assert identify(on_meta(name, **options).state_dict()) == NetworkSpec(name, options)


def test_weights_of_another_network_are_refused_with_the_names_that_differ() -> None:
    state = tensors(public_shapes(18, 17))
    with pytest.raises(CheckpointError, match=r"missing: backbone\.stage0\.2\.layers\.0"):
        fit(Weights(state), on_meta(depth=30), "lite-hrnet")


def public_fusion(module: LiteModule, maps: list[Tensor]) -> list[Tensor]:
    """The fusion of the public code, in place as there."""
    out = [x.clone() for x in maps]
    fused = []
    rows: Any = module.fuse_layers
    for i, row in enumerate(rows):
        y = out[0] if i == 0 else row[0](out[0])
        for j in range(len(out)):
            y += out[j] if i == j else row[j](out[j])
        fused.append(y)
    return [y.relu() for y in fused]


@pytest.mark.parametrize("naive", [False, True])
@pytest.mark.parametrize("branches", [2, 3, 4])
def test_the_fusion_equals_the_public_one_also_in_its_single_form(branches: int, naive: bool) -> None:
    torch.manual_seed(branches)
    channels = tuple(16 * 2**i for i in range(branches))
    module = randomised(LiteModule(channels, naive=naive, single_fuse=False))
    once = LiteModule(channels, naive=naive, single_fuse=True).eval()
    once.load_state_dict(module.state_dict())
    maps = [torch.randn(2, c, 16 // 2**i, 24 // 2**i) for i, c in enumerate(channels)]
    with torch.no_grad():
        layers: Any = module.layers
        inner = [layer(x) for layer, x in zip(layers, maps, strict=True)] if naive else layers(list(maps))
        expected = public_fusion(module, inner)
        found = module(maps)
        lossless = once(maps)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(lossless, found, strict=True))
    # The standard fusion differs.
    rows: Any = module.fuse_layers
    with torch.no_grad():
        textbook = sum(rows[0][j](inner[j]) for j in range(1, branches)) + inner[0]
    assert not torch.allclose(textbook.relu(), found[0], atol=1e-3)


def test_whole_networks_with_single_fusion_give_the_same_maps() -> None:
    torch.manual_seed(0)
    twice = randomised(build(NetworkSpec("lite-hrnet")))
    once = build(NetworkSpec("lite-hrnet", {"single_fuse": True})).eval()
    once.load_state_dict(twice.state_dict())
    x = torch.randn(1, 3, 64, 32)
    with torch.no_grad():
        a, b = twice(x)[0]["heatmaps"], once(x)[0]["heatmaps"]
    assert torch.equal(a, b)
    assert a.std() > 0


def test_cross_resolution_weighting_pools_as_adaptively_as_the_public_one() -> None:
    torch.manual_seed(0)
    module = randomised(CrossResolutionWeighting((8, 16, 32)))
    maps = [torch.randn(2, 8 * 2**i, 20 // 2**i, 12 // 2**i) for i in range(3)]
    small = maps[-1].shape[-2:]
    pooled = torch.cat([functional.adaptive_avg_pool2d(x, small) for x in maps], dim=1)
    with torch.no_grad():
        weights = module.get_submodule("conv2")(module.get_submodule("conv1")(pooled)).split((8, 16, 32), dim=1)
        found = module(maps)
    for x, weight, y in zip(maps, weights, found, strict=True):
        assert torch.allclose(y, x * functional.interpolate(weight, size=x.shape[-2:], mode="nearest"), atol=1e-6)


def test_shuffling_interleaves_the_channels() -> None:
    first, second = torch.arange(3.0).view(1, 3, 1, 1), torch.arange(10.0, 13.0).view(1, 3, 1, 1)
    assert shuffle(first, second).flatten().tolist() == [0, 10, 1, 11, 2, 12]
    whole = torch.cat([first, second], dim=1)
    assert torch.equal(shuffle(first, second), nn.ChannelShuffle(2)(whole))


@pytest.mark.parametrize("name", ["lite-hrnet", "lite-hrnet-mpii", "cbam-lite-hrnet", "cbam-lite-hrnet-mpii"])
@pytest.mark.parametrize("size", [(32, 32), (96, 160), (256, 192)])
def test_maps_are_a_quarter_of_any_input_of_multiples_of_32(name: str, size: tuple[int, int]) -> None:
    maps = on_meta(name)(torch.zeros(2, 3, *size, device="meta"))
    joints = len(get_entry(name).pose.joints.joints)
    assert [tuple(stage["heatmaps"].shape) for stage in maps] == [(2, joints, size[0] // 4, size[1] // 4)]


def test_no_layer_pools_to_a_fixed_size_but_one() -> None:
    pools = [part for part in on_meta().modules() if isinstance(part, nn.AdaptiveAvgPool2d)]
    assert pools
    assert all(pool.output_size == 1 for pool in pools)
    with ShapesOnly():
        assert all(layer.calls for layer in list_layers(on_meta("cbam-lite-hrnet"), (64, 64)))


@pytest.mark.parametrize("options", [{"depth": 19}, {"blocks": "few"}, {"single_fuse": 1}])
def test_options_out_of_their_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match=f"option {next(iter(options))}"):
        build(NetworkSpec("lite-hrnet", options))


def test_the_attention_of_the_head_is_an_option() -> None:
    with pytest.raises(NetworkError, match="unknown kind of attention"):
        build(NetworkSpec("cbam-lite-hrnet", {"attention": "much"}))
    with ShapesOnly():
        none = on_meta("cbam-lite-hrnet", attention="none")
    assert sum(p.numel() for p in none.parameters()) == 1_140_588 - 5_059


@pytest.mark.parametrize(
    ("channels", "depth", "params"),
    [(32, 18, 746_849), (48, 18, 1_621_753), (32, 30, 1_161_441), (48, 30, 2_523_385), (40, 18, 1_140_588)],
)
def test_the_width_of_cbam_lite_hrnet_can_be_that_of_its_text(channels: int, depth: int, params: int) -> None:
    module = on_meta("cbam-lite-hrnet", depth=depth, channels=channels)
    assert cost(module, (64, 64)).params == params
    named = dict(module.named_parameters())
    fused = [named[f"backbone.stage2.0.fuse_layers.0.{j}.0.weight"].shape[1] for j in (1, 2, 3)]
    assert fused == [2 * channels, 4 * channels, 8 * channels]
    found = identify({key: torch.zeros(value.shape) for key, value in module.state_dict().items()})
    expected = {"depth": depth} if channels == 40 else {"depth": depth, "channels": channels}
    assert found == NetworkSpec("cbam-lite-hrnet", expected)


def test_the_widest_network_has_fewer_parameters_than_the_deep_baseline() -> None:
    wide, deep = on_meta("cbam-lite-hrnet", channels=48), on_meta("lite-hrnet", depth=30)
    assert cost(wide, (64, 64)).params < cost(deep, (64, 64)).params


@pytest.mark.parametrize(("blocks", "channels"), [("weighted", 64), ("weighted", 40.0), ("naive", 48)])
def test_other_widths_are_refused(blocks: str, channels: object) -> None:
    with pytest.raises(NetworkError, match="channels"):
        on_meta("lite-hrnet", blocks=blocks, channels=channels)
