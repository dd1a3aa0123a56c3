"""Simple baselines, their variants with spatial attention, and HRNet: counts, public names, connections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.checkpoint.weights import Weights, fit
from compress.errors import CheckpointError, NetworkError
from compress.network.cost import cost
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.zoo.foreign import identify
from compress.zoo.hrnet import HighResolutionModule
from compress.zoo.registry import build, get_entry

Shapes = Iterator[tuple[str, tuple[int, ...]]]

#: Bottlenecks of the four stages.
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def on_meta(name: str, **options: object) -> nn.Module:
    with ShapesOnly():
        return build(NetworkSpec(name, options)).eval()


def norm(name: str, channels: int) -> Shapes:
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def conv_norm(conv: str, bn: str, outputs: int, inputs: int, size: int) -> Shapes:
    yield f"{conv}.weight", (outputs, inputs, size, size)
    yield from norm(bn, outputs)


def bottleneck(name: str, inputs: int, width: int, project: bool) -> Shapes:
    for index, (o, i, size) in enumerate(((width, inputs, 1), (width, width, 3), (4 * width, width, 1)), start=1):
        yield from conv_norm(f"{name}.conv{index}", f"{name}.bn{index}", o, i, size)
    if project:
        yield from conv_norm(f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, inputs, 1)


def public_baseline(depth: int, joints: int) -> Shapes:
    """Names and shapes of the public release, in its order."""
    yield from conv_norm("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(STAGES[depth]):
        width = 64 * 2**stage
        for index in range(count):
            yield from bottleneck(f"layer{stage + 1}.{index}", inputs, width, index == 0)
            inputs = 4 * width
    for index in (0, 3, 6):
        yield f"deconv_layers.{index}.weight", (256 if index else 2048, 256, 4, 4)
        yield from norm(f"deconv_layers.{index + 1}", 256)
    yield "final_layer.weight", (joints, 256, 1, 1)
    yield "final_layer.bias", (joints,)


def public_hrnet(width: int, joints: int) -> Shapes:
    """Names and shapes of the public release, in its order."""
    yield from conv_norm("conv1", "bn1", 64, 3, 3)
    yield from conv_norm("conv2", "bn2", 64, 64, 3)
    for index in range(4):
        yield from bottleneck(f"layer1.{index}", 256 if index else 64, 64, index == 0)
    yield from conv_norm("transition1.0.0", "transition1.0.1", width, 256, 3)
    yield from conv_norm("transition1.1.0.0", "transition1.1.0.1", 2 * width, 256, 3)
    for stage, modules in ((2, 1), (3, 4), (4, 3)):
        c = [width * 2**branch for branch in range(stage)]
        if stage > 2:
            new = f"transition{stage - 1}.{stage - 1}.0"
            yield from conv_norm(f"{new}.0", f"{new}.1", c[-1], c[-2], 3)
        for module in range(modules):
            for branch in range(stage):
                for block in range(4):
                    name = f"stage{stage}.{module}.branches.{branch}.{block}"
                    for part in (1, 2):
                        yield from conv_norm(f"{name}.conv{part}", f"{name}.bn{part}", c[branch], c[branch], 3)
            for i in range(1 if stage == 4 and module == 2 else stage):
                for j in range(stage):
                    name = f"stage{stage}.{module}.fuse_layers.{i}.{j}"
                    if j > i:
                        yield from conv_norm(f"{name}.0", f"{name}.1", c[i], c[j], 1)
                    for k in range(i - j):
                        last = k == i - j - 1
                        yield from conv_norm(f"{name}.{k}.0", f"{name}.{k}.1", c[i] if last else c[j], c[j], 3)
    yield "final_layer.weight", (joints, width, 1, 1)
    yield "final_layer.bias", (joints,)


def tensors(shapes: Shapes) -> dict[str, Tensor]:
    """Tensors of those names and shapes, each with a different value."""
    return {
        name: torch.tensor(index) if shape == () else torch.full(shape, 1e-3 * (index % 97))
        for index, (name, shape) in enumerate(shapes)
    }


@pytest.mark.parametrize(
    ("name", "options", "params", "gmacs"),
    [
        ("simple-baseline", {}, 33_999_697, 5.426),
        ("simple-baseline", {"depth": 101}, 52_991_825, 9.063),
        ("simple-baseline", {"depth": 152}, 68_635_473, 12.699),
        ("hrnet", {}, 28_536_113, 7.645),
        ("hrnet", {"width": 48}, 63_595_745, 15.692),
        ("esa", {}, 30_698_905, 6.6225),
        ("esa", {"attention": "esa_par"}, 30_698_905, None),
        ("esa", {"attention": "esa_7"}, 30_698_905 + 4 * 31, None),
        ("esa", {"between": "relu"}, 30_698_905, None),
        ("esa", {"spatial_width": 64}, 30_698_905 + 4 * 18 * (64**2 - 1), None),
        ("esa", {"spatial_width": 64, "attention": "esa_7"}, 30_698_905 + 4 * (49 * 64**2 - 18), None),
        ("esa", {"depth": 101}, 49_691_033, None),
        ("esa", {"attention": "none"}, 30_002_513, 6.6218),
        ("esa", {"depth": 101, "attention": "none"}, 48_994_641, None),
        ("esa-prev", {}, 31_191_426, None),
        ("esa-prev", {"depth": 101}, 50_183_554, None),
        ("esa-prev", {"attended": 2}, 31_224_243, None),
        ("esa-prev", {"depth": 101, "attended": 2}, 50_216_371, None),
    ],
)
def test_counts_are_the_published_ones(name: str, options: dict[str, Any], params: int, gmacs: float | None) -> None:
    with ShapesOnly():
        found = cost(on_meta(name, **options), (256, 192))
    assert found.params == params
    if gmacs is not None:
        assert found.macs / 1e9 == pytest.approx(gmacs, abs=5.1e-4)


def test_spatial_attention_saves_the_parameters_that_its_paper_reports() -> None:
    for depth, saved in ((50, -9.71), (101, -6.23)):
        small, plain = (
            sum(p.numel() for p in on_meta(name, depth=depth).parameters()) for name in ("esa", "simple-baseline")
        )
        assert 100 * (small / plain - 1) == pytest.approx(saved, abs=5.1e-3)


@pytest.mark.parametrize("joints", [17, 16])
@pytest.mark.parametrize("depth", [50, 101, 152])
def test_baselines_have_the_names_of_the_public_release(depth: int, joints: int) -> None:
    name = "simple-baseline" if joints == 17 else "simple-baseline-mpii"
    found = [(key, tuple(value.shape)) for key, value in on_meta(name, depth=depth).state_dict().items()]
    assert found == list(public_baseline(depth, joints))
    assert depth != 50 or len(found) == 338


@pytest.mark.parametrize("joints", [17, 16])
@pytest.mark.parametrize("width", [32, 48])
def test_high_resolution_networks_have_the_names_of_the_public_release(width: int, joints: int) -> None:
    name = "hrnet" if joints == 17 else "hrnet-mpii"
    found = [(key, tuple(value.shape)) for key, value in on_meta(name, width=width).state_dict().items()]
    assert found == list(public_hrnet(width, joints))
    assert len(found) == 1754


@pytest.mark.parametrize("head", [None, "keypoint_head.", "head."])
@pytest.mark.parametrize(
    ("name", "options", "joints"),
    [
        ("simple-baseline", {"depth": 50}, 17),
        ("simple-baseline-mpii", {"depth": 101}, 16),
        ("hrnet", {"width": 32}, 17),
        ("hrnet-mpii", {"width": 48}, 16),
    ],
)
def test_public_files_are_recognised_and_fit_under_all_names(
    name: str, options: dict[str, int], joints: int, head: str | None
) -> None:
    """``head``: prefix of the head's names in MMPose 0 and 1; all other names get ``backbone.``."""
    public = public_baseline if name.startswith("simple") else public_hrnet
    plain = tensors(public(*options.values(), joints))
    state = plain
    if head is not None:
        heads = ("deconv_layers", "final_layer")
        state = {(head if key.startswith(heads) else "backbone.") + key: value for key, value in plain.items()}
        state["data_preprocessor.mean"] = torch.zeros(3, 1, 1)
    found = identify(state)
    assert found == NetworkSpec(name, options)
    fitted = fit(Weights(state), on_meta(found.name, **found.options), found.name).state
    assert list(fitted) == list(plain)
    assert all(torch.equal(fitted[key], plain[key]) for key in plain)


def test_a_public_file_with_an_unexpected_tensor_is_refused_with_its_name() -> None:
    state = tensors(public_baseline(50, 17))
    del state["layer2.1.conv2.weight"]
    state["layer2.9.conv2.weight"] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"missing: layer2.1.conv2.weight; .*unexpected: layer2.9.conv2.weight"):
        fit(Weights(state), on_meta("simple-baseline"), "simple-baseline")


def test_a_public_file_of_another_number_of_joints_is_refused() -> None:
    state = tensors(public_hrnet(32, 19))
    found = identify(state)
    assert found == NetworkSpec("hrnet", {"width": 32})
    with pytest.raises(CheckpointError, match=r"final_layer.weight \(19, 32, 1, 1\) instead of \(17, 32, 1, 1\)"):
        fit(Weights(state), on_meta("hrnet"), "hrnet")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("simple-baseline", {"depth": 34}),
        ("simple-baseline", {"depth": True}),
        ("esa", {"attention": "many"}),
        ("esa", {"between": "tanh"}),
        ("esa", {"spatial_width": 0}),
        ("esa-prev", {"attended": 5}),
        ("hrnet", {"width": 4096}),
    ],
)
def test_options_out_of_their_bounds_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match=f"option {next(iter(options))}"):
        build(NetworkSpec(name, options))


@pytest.mark.parametrize("name", ["simple-baseline", "simple-baseline-mpii", "esa", "esa-prev", "hrnet", "hrnet-mpii"])
@pytest.mark.parametrize("size", [(64, 96), (32, 32), (96, 160)])
def test_maps_are_a_quarter_of_any_input_of_multiples_of_32(name: str, size: tuple[int, int]) -> None:
    entry = get_entry(name)
    maps = on_meta(name)(torch.zeros(2, 3, *size, device="meta"))
    joints = len(entry.pose.joints.joints)
    assert [{kind: tuple(value.shape) for kind, value in stage.items()} for stage in maps] == [
        {"heatmaps": (2, joints, size[0] // entry.pose.stride, size[1] // entry.pose.stride)}
    ]
    assert (entry.pose.height, entry.pose.width) == entry.input_size


def test_spatial_attention_follows_its_stages() -> None:
    network = build(NetworkSpec("esa-prev", {"attended": 2})).eval()
    calls: list[tuple[int, ...]] = []
    for block in network.get_submodule("attention").children():
        block.register_forward_hook(lambda _module, args, _output: calls.append(tuple(args[0].shape)))
    with torch.no_grad():
        network(torch.zeros(1, 3, 32, 32))
    assert calls == [(1, 256, 8, 8), (1, 512, 4, 4)]


def test_every_branch_of_a_high_resolution_module_reaches_every_output() -> None:
    torch.manual_seed(0)
    module = HighResolutionModule((4, 8, 16), 3).eval()
    maps = [torch.randn(1, 4 * 2**i, 16 // 2**i, 16 // 2**i) for i in range(3)]
    before = module(maps)
    assert [x.shape for x in before] == [x.shape for x in maps]
    for branch in range(3):
        after = module([x + 1 if i == branch else x for i, x in enumerate(maps)])
        assert all(not torch.allclose(a, b) for a, b in zip(after, before, strict=True))


def test_a_high_resolution_module_sums_the_outputs_of_its_fusion_layers() -> None:
    torch.manual_seed(1)
    module = HighResolutionModule((4, 8), 2).eval()
    a, b = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)
    x, y = module.branches[0](a), module.branches[1](b)
    up, down = module.get_submodule("fuse_layers.0.1"), module.get_submodule("fuse_layers.1.0")
    first, second = module([a, b])
    assert torch.allclose(first, (x + up(y)).relu())
    assert torch.allclose(second, (down(x) + y).relu())
    assert torch.equal(up(y)[..., ::2, ::2], up(y)[..., 1::2, 1::2])  # nearest
