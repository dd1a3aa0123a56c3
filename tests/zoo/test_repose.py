"""RePose: published counts, options, and the messages along the body."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.errors import NetworkError
from compress.network.cost import cost
from compress.network.shapes import ShapesOnly
from compress.network.source import NetworkSpec
from compress.pose.skeleton import LSP14
from compress.zoo.registry import build, get_entry
from compress.zoo.repose import (
    ORDERS,
    BodyGraph,
    BodyOptions,
    DecoderLevel,
    JointHead,
    Message,
    joint_order,
    neighbours,
)

#: How the paper counts the strided convolutions.
AT_INPUT = {"down": "stride1_subsample"}


def on_meta(name: str = "repose", **options: object) -> nn.Module:
    with ShapesOnly():
        return build(NetworkSpec(name, options)).eval()


def params_of(**options: object) -> int:
    return sum(p.numel() for p in on_meta(**options).parameters())


def graph_of(**options: Any) -> BodyGraph:
    torch.manual_seed(0)
    values = {"blocks": 1, "update": "trainable", "joint_head": False, "graph": True, "order": "bottom_up"}
    return BodyGraph(BodyOptions(**(values | options))).eval()


@pytest.mark.parametrize(
    ("options", "mparams", "gflops"),
    [
        ({}, 4.023, 13.47),
        ({"coarse": 8}, 4.327, 12.43),
        ({"coarse": 32}, 3.718, 17.63),
        ({"blocks": 1}, 3.240, 13.08),
        ({"blocks": 2}, 3.501, 13.21),
        ({"blocks": 3}, 3.762, 13.34),
        ({"blocks": 5}, 4.283, 13.60),
        ({"joint_head": True}, 3.534, None),
        ({"heads": "linear"}, 4.023, 13.47),
        ({"projection": "after"}, 3.789, 13.39),
        ({"projection": "after", "coarse": 32}, 3.485, 17.31),
        ({"projection": "after_3x3"}, 4.051, 13.93),
        ({"projection": "after_3x3", "coarse": 32}, 3.747, 19.45),
    ],
)
def test_counts_are_those_of_the_reading(options: dict[str, Any], mparams: float, gflops: float | None) -> None:
    with ShapesOnly():
        found = cost(on_meta(**options, **AT_INPUT), (128, 128))
    assert found.params / 1e6 == pytest.approx(mparams, abs=5.1e-4)
    if gflops is not None:
        assert 2 * found.macs / 1e9 == pytest.approx(gflops, abs=5.1e-3)


def parameters_by_hand(projection: str) -> int:
    """Parameters of the coarse projection and of two further decoder levels, from the channels in the text.

    A block (K, S, F) on C channels has K²CF weights, F biases and 2F of batch normalisation, which (K, S, F)_u lacks.
    """

    def block(size: int, inputs: int, outputs: int = 64) -> int:
        return size * size * inputs * outputs + 3 * outputs

    joined, heatmaps = 14 * 32, 9 * 64 * 14 + 14
    first = {
        "before": block(3, joined) + block(1, 64 + 64),
        "after": block(1, joined + 64),
        "after_3x3": block(3, joined + 64),
    }
    return first[projection] + 2 * block(1, 64 + 64) + 3 * (block(3, 64) + heatmaps)


@pytest.mark.parametrize("projection", ["before", "after", "after_3x3"])
def test_the_decoder_has_the_parameters_of_its_blocks(projection: str) -> None:
    stack = on_meta(projection=projection).get_submodule("stacks.0")
    parts = [stack.get_submodule("project"), stack.get_submodule("decoder")]
    assert sum(p.numel() for part in parts for p in part.parameters()) == parameters_by_hand(projection)


def test_the_projection_of_the_text_reads_upsampled_features_beside_the_encoders() -> None:
    network = build(NetworkSpec("repose", {"blocks": 1, "projection": "after"})).eval()
    shapes: list[tuple[int, ...]] = []
    level = network.get_submodule("stacks.0.decoder.0")
    level.get_submodule("features").register_forward_hook(
        lambda _, args, out: shapes.extend((args[0].shape, out.shape))
    )
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert shapes == [(1, 14 * 32 + 64, 16, 16), (1, 64, 16, 16)]
    assert network.distill_points == ("stacks.0.decoder.0.features", "stacks.0.decoder.2.features")


def test_a_block_with_u_lacks_only_batch_normalisation() -> None:
    """(3, 1, K)_u is the ReLU of a 3x3 convolution, by hand where only its bias counts."""
    head, level = JointHead("relu").eval(), DecoderLevel(64, "relu").eval()
    for part, name, inputs in (
        (head, "trunk", torch.zeros(1, 32, 1, 1)),
        (level, "features", torch.zeros(1, 64, 1, 1)),
    ):
        features: list[Tensor] = []
        part.get_submodule(name).register_forward_hook(lambda _, __, out, kept=features: kept.append(out))
        args = (inputs,) if name == "trunk" else (inputs, torch.zeros(1, 64, 2, 2))
        convolution = part.get_submodule("heatmap" if name == "trunk" else "heatmaps")
        assert isinstance(convolution, nn.Conv2d)
        for sign in (1.0, -1.0):
            nn.init.zeros_(convolution.weight)
            nn.init.constant_(convolution.bias, 0.5 * sign)
            _, heatmaps = part(*args)
            assert heatmaps.unique().tolist() == [0.5 if sign > 0 else 0.0]
    network = build(NetworkSpec("repose", {"blocks": 1})).eval()
    with torch.no_grad():
        stages = network(torch.randn(1, 3, 64, 64))
    assert all(bool((stage["heatmaps"] >= 0).all()) for stage in stages)


@pytest.mark.parametrize("options", [{}, {"joint_head": True, "stacks": 2}])
def test_heads_with_and_without_activation_have_the_same_tensors(options: dict[str, Any]) -> None:
    relu, linear = (on_meta(heads=heads, **options).state_dict() for heads in ("relu", "linear"))
    assert {key: value.shape for key, value in relu.items()} == {key: value.shape for key, value in linear.items()}


def test_a_checkpoint_from_before_the_option_keeps_its_linear_heatmaps(tmp_path: Path) -> None:
    model = create("repose", options={"blocks": 1, "heads": "linear"})
    save(model, tmp_path / "new.pt")
    raw = torch.load(tmp_path / "new.pt", weights_only=True)
    for name in ("heads", "projection"):
        del raw["network"]["options"][name]
    torch.save(raw, tmp_path / "old.pt")
    old = load(tmp_path / "old.pt")
    assert old.source.options["heads"] == "linear"
    x = torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        pairs = zip(model.module(x), old.module(x), strict=True)
        assert all(torch.equal(a["heatmaps"], b["heatmaps"]) for a, b in pairs)
    assert create("repose").source.options["heads"] == "relu"


@pytest.mark.parametrize(("options", "gmacs"), [(AT_INPUT, 49.73 / 2), ({}, 36.4 / 2)])
def test_the_network_for_256_pixels_has_the_expected_operations(options: dict[str, str], gmacs: float) -> None:
    with ShapesOnly():
        found = cost(on_meta("repose-256", **options), (256, 256))
    assert found.params / 1e6 == pytest.approx(4.327, abs=5.1e-4)
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=0.03)


def test_fewer_operations_are_executed_than_the_paper_counts() -> None:
    with ShapesOnly():
        found = cost(on_meta(), (128, 128))
    assert found.macs / 1e9 == pytest.approx(5.09, abs=0.006)
    assert abs(found.params / 1e6 - 4.02) < 0.03


def test_a_block_of_the_messages_costs_28_convolutions() -> None:
    counts = [params_of(blocks=blocks) for blocks in (1, 2, 3, 4, 5)]
    assert {b - a for a, b in pairwise(counts)} == {28 * 9_312}


def test_the_neighbours_are_fifteen_symmetric_pairs() -> None:
    found = neighbours()
    assert sum(map(len, found)) == 2 * 15
    assert all(joint in found[other] for joint, others in enumerate(found) for other in others)
    other_side = {"right": "left", "left": "right"}
    parts = [name.partition("_") for name in LSP14.joints]
    mirror = [LSP14.joints.index(f"{other_side.get(side, side)}{bar}{rest}") for side, bar, rest in parts]
    assert all({mirror[other] for other in found[joint]} == set(found[mirror[joint]]) for joint in range(14))


@pytest.mark.parametrize("order", ORDERS)
def test_an_order_has_every_joint_once_and_right_before_left(order: str) -> None:
    names = [LSP14.joints[joint] for joint in joint_order(order)]
    assert sorted(names) == sorted(LSP14.joints)
    rights = [index for index, name in enumerate(names) if name.startswith("right_")]
    assert all(names[index + 1] == names[index].replace("right_", "left_") for index in rights)
    assert names[0] == ("right_hip" if order == "bottom_up" else "head_top")


def test_a_message_starts_as_added_and_its_factor_is_learnt() -> None:
    torch.manual_seed(0)
    trainable, add, replace = (Message(1, 2, update).eval() for update in ("trainable", "add", "replace"))
    for other in (add, replace):
        other.load_state_dict({k: v for k, v in trainable.state_dict().items() if k != "factor"})
    own, neighbour = torch.randn(2, 1, 32, 5, 5)
    assert torch.equal(trainable(own, [neighbour]), add(own, [neighbour]))
    assert torch.allclose(replace(own, [neighbour]), add(own, [neighbour]) - own, atol=1e-6)
    trainable(own, [neighbour]).sum().backward()
    factor = trainable.get_parameter("factor")
    assert factor.grad is not None
    assert factor.grad != 0


def reached(graph: BodyGraph, start: int) -> set[int]:
    """Joints whose final heatmap depends on the initial features of one joint."""
    x = torch.randn(1, 64, 4, 4)
    with torch.no_grad():
        before = graph(x)[2]
        # The last convolution of the joint's initial features.
        layer = [part for part in graph.start[start].modules() if isinstance(part, nn.BatchNorm2d)][-1]
        layer.bias.add_(3.0)
        after = graph(x)[2]
    return {joint for joint in range(14) if not torch.allclose(before[:, joint], after[:, joint], atol=1e-7)}


def test_messages_travel_along_the_body_only_with_the_graph() -> None:
    head = LSP14.joints.index("head_top")
    assert {head, *neighbours()[head]} < reached(graph_of(heads="linear"), head)
    assert reached(graph_of(graph=False, heads="linear"), head) == {head}


def test_forward_and_reverse_passes_have_separate_weights_and_follow_the_order() -> None:
    graph = graph_of(order="top_down")
    calls: list[tuple[str, int]] = []
    for name in ("onward", "back"):
        for joint, message in enumerate(graph.get_submodule(name).children()):
            message.register_forward_hook(lambda *_, name=name, joint=joint: calls.append((name, joint)))
    with torch.no_grad():
        graph(torch.zeros(1, 64, 2, 2))
    order = joint_order("top_down")
    assert calls == [*(("onward", joint) for joint in order), *(("back", joint) for joint in reversed(order))]
    assert not {id(p) for p in graph.onward.parameters()} & {id(p) for p in graph.back.parameters()}


def test_both_kinds_of_downsampling_give_the_same_maps() -> None:
    torch.manual_seed(0)
    strided = build(NetworkSpec("repose", {"blocks": 1})).eval()
    subsampled = build(NetworkSpec("repose", {"blocks": 1, **AT_INPUT})).eval()
    subsampled.load_state_dict(strided.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        pairs = list(zip(strided(x), subsampled(x), strict=True))
    assert len(pairs) == 5
    assert all(torch.allclose(a["heatmaps"], b["heatmaps"], atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize(
    ("name", "options", "stages"),
    [
        ("repose", {}, 5),
        ("repose", {"coarse": 32}, 4),
        ("repose", {"stacks": 2, "joint_head": True}, 10),
        ("repose", {"graph": False, "order": "top_down", "update": "replace"}, 5),
        ("repose-256", {"coarse": 8}, 7),
    ],
)
def test_every_prediction_has_the_size_of_the_image(name: str, options: dict[str, Any], stages: int) -> None:
    maps = on_meta(name, **options)(torch.zeros(2, 3, 64, 96, device="meta"))
    assert [tuple(stage["heatmaps"].shape) for stage in maps] == [(2, 14, 64, 96)] * stages
    pose = get_entry(name).pose
    assert (pose.skeleton, pose.stride, (pose.height, pose.width)) == ("lsp14", 1, get_entry(name).input_size)


def test_the_features_to_distil_exist() -> None:
    network = on_meta(stacks=2)
    points = network.distill_points
    assert isinstance(points, tuple)
    assert len(points) == 4
    assert all(isinstance(network.get_submodule(point), nn.Sequential) for point in points)


@pytest.mark.parametrize(
    "options",
    [
        {"coarse": 64}, {"blocks": 0}, {"blocks": 9}, {"update": "forget"}, {"stacks": 5}, {"joint_head": 1},
        {"graph": "yes"}, {"order": "random"}, {"down": "stride4"}, {"heads": "tanh"}, {"projection": "never"},
    ],
)  # fmt: skip
def test_options_out_of_their_bounds_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(NetworkError, match=f"option {next(iter(options))}"):
        build(NetworkSpec("repose", options))
