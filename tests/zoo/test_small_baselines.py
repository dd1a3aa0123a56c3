"""Stacked hourglass and MobileNet v2: counts, public names, and how the parts are joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.checkpoint.weights import Weights, fit
from compress.errors import NetworkError
from compress.network.cost import cost
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.zoo.foreign import identify
from compress.zoo.hourglass import Hourglass, PreBottleneck
from compress.zoo.registry import build

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def on_meta(name: str, **options: object) -> nn.Module:
    with ShapesOnly():
        return build(NetworkSpec(name, options)).eval()


def norm(name: str, channels: int) -> Shapes:
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def biased(name: str, outputs: int, inputs: int, size: int = 1) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, size, size)
    yield f"{name}.bias", (outputs,)


def block(name: str, inputs: int = 256, outputs: int = 256) -> Shapes:
    inner = outputs // 2
    yield from norm(f"{name}.bn1", inputs)
    yield from biased(f"{name}.conv1", inner, inputs)
    yield from norm(f"{name}.bn2", inner)
    yield from biased(f"{name}.conv2", inner, inner, 3)
    yield from norm(f"{name}.bn3", inner)
    yield from biased(f"{name}.conv3", outputs, inner)
    if inputs != outputs:
        yield from biased(f"{name}.downsample.0", outputs, inputs)


def public_hourglass(stacks: int, joints: int) -> Shapes:
    """Names and shapes of the usual public implementation, one block at each place."""
    yield from biased("conv1", 64, 3, 7)
    yield from norm("bn1", 64)
    yield from block("layer1.0", 64, 128)
    yield from block("layer2.0", 128)
    yield from block("layer3.0")
    for stack in range(stacks):
        for level in range(4):
            for place in range(4 if level == 0 else 3):
                yield from block(f"hg.{stack}.hg.{level}.{place}.0")
    for stack in range(stacks):
        yield from block(f"res.{stack}.0")
    for stack in range(stacks):
        yield from biased(f"fc.{stack}.0", 256, 256)
        yield from norm(f"fc.{stack}.1", 256)
    for stack in range(stacks):
        yield from biased(f"score.{stack}", joints, 256)
    for stack in range(stacks - 1):
        yield from biased(f"fc_.{stack}", 256, 256)
    for stack in range(stacks - 1):
        yield from biased(f"score_.{stack}", 256, joints)


def unit(name: str, outputs: int, inputs: int, size: int = 1) -> Shapes:
    yield f"{name}.conv.weight", (outputs, inputs, size, size)
    yield from norm(f"{name}.bn", outputs)


def public_mobilenet(joints: int) -> Shapes:
    """Names and shapes of MMPose's network."""
    yield from unit("backbone.conv1", 32, 3, 3)
    inputs = 32
    groups = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))
    for group, (expansion, outputs, count) in enumerate(groups, 1):
        for index in range(count):
            wide = inputs * expansion
            layers = [(wide, inputs, 1), (wide, 1, 3), (outputs, wide, 1)][0 if expansion > 1 else 1 :]
            for layer, shape in enumerate(layers):
                yield from unit(f"backbone.layer{group}.{index}.conv.{layer}", *shape)
            inputs = outputs
    yield from unit("backbone.conv2", 1280, 320)
    inputs = 1280
    for index in (0, 3, 6):
        yield f"keypoint_head.deconv_layers.{index}.weight", (inputs, 256, 4, 4)
        yield from norm(f"keypoint_head.deconv_layers.{index + 1}", 256)
        inputs = 256
    yield from biased("keypoint_head.final_layer", joints, 256)


@pytest.mark.parametrize(
    ("name", "options", "size", "params", "gmacs"),
    [
        ("hourglass", {}, (256, 192), 25_598_472, 21.083),  # printed 25.1 M
        ("hourglass-mpii", {}, (256, 256), 25_594_624, 28.094),  # printed 26 M, 55 G operations
        ("hourglass-mpii", {"stacks": 2}, (256, 256), 6_730_912, 8.989),
        ("mobilenet-v2", {}, (256, 192), 9_569_809, 1.565),  # printed 9.6 M
        ("mobilenet-v2", {}, (384, 288), 9_569_809, 3.521),
    ],
)
def test_counts_are_the_published_ones(
    name: str, options: dict[str, Any], size: tuple[int, int], params: int, gmacs: float
) -> None:
    with ShapesOnly():
        found = cost(on_meta(name, **options), size)
    assert found.params == params
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=5.1e-4)


@pytest.mark.parametrize("joints", [17, 16])
def test_networks_have_public_names_and_public_files_are_recognised(joints: int) -> None:
    suffix = "" if joints == 17 else "-mpii"
    cases: list[tuple[str, dict[str, Any], Shapes]] = [
        (f"hourglass{suffix}", {"stacks": 2}, public_hourglass(2, joints)),
        (f"hourglass{suffix}", {"stacks": 1}, public_hourglass(1, joints)),
        (f"mobilenet-v2{suffix}", {}, public_mobilenet(joints)),
    ]
    for name, options, shapes in cases:
        module, public = on_meta(name, **options), list(shapes)
        assert [(key, tuple(value.shape)) for key, value in module.state_dict().items()] == public
        state = {key: torch.zeros(shape, dtype=torch.float if shape else torch.long) for key, shape in public}
        assert identify(state) == NetworkSpec(name, options)
        newer = {key.replace("keypoint_head.", "head."): value for key, value in state.items()}
        assert identify(newer) == NetworkSpec(name, options)
        assert fit(Weights(newer), module, name).state.keys() == state.keys()


def test_an_hourglass_adds_each_resolution_and_reaches_the_whole_map() -> None:
    # With blocks that pass their input, the output is the sum of the pyramid of maxima, upsampled: five levels.
    net = Hourglass()
    for part in net.modules():
        if isinstance(part, PreBottleneck):
            nn.init.zeros_(part.conv3.weight)
            assert part.conv3.bias is not None
            nn.init.zeros_(part.conv3.bias)
    x = torch.zeros(1, 256, 16, 16)
    x[0, 0, 5, 9] = 1.0
    y = net.eval()(x)[0, 0]
    expected = torch.zeros(16, 16)
    for side in (1, 2, 4, 8, 16):
        rows, columns = 5 // side * side, 9 // side * side
        expected[rows : rows + side, columns : columns + side] += 1
    assert torch.equal(y, expected)


def test_a_stack_reads_the_maps_of_the_one_before() -> None:
    torch.manual_seed(0)
    net: Any = build(NetworkSpec("hourglass-mpii", {"stacks": 2})).eval()
    x = torch.randn(1, 3, 64, 64)
    first, second = net(x)
    assert first["heatmaps"].shape == second["heatmaps"].shape == (1, 16, 16, 16)
    with torch.no_grad():
        net.score_[0].weight.mul_(50.0)
    changed: list[dict[str, Tensor]] = net(x)
    assert torch.equal(changed[0]["heatmaps"], first["heatmaps"])
    assert not torch.allclose(changed[1]["heatmaps"], second["heatmaps"])


@pytest.mark.parametrize("stacks", [0, 17, 2.0])
def test_unusable_numbers_of_stacks_are_refused(stacks: object) -> None:
    with pytest.raises(NetworkError, match="stacks"):
        on_meta("hourglass", stacks=stacks)
