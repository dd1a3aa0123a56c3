"""Lightweight OpenPose: counts, names and connections of its three variants."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from compress.errors import NetworkError
from compress.network.source import NetworkSpec
from compress.runtime.openvino_runner import shared_core
from compress.zoo.registry import build, entries

NAMES = ("default", "lightweight-openpose", "human-pose-estimation-0001")

#: Channels from block to block of MobileNet v1 up to its twelfth convolution pair.
MOBILENET = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512)

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(NetworkSpec(name, options)).eval()


def macs(module: nn.Module, height: int, width: int) -> float:
    """Multiply-adds by torch's own counter, which counts two operations each."""
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        module(torch.empty(1, 3, height, width))
    return counter.get_total_flops() / 2


def conv_shapes(name: str, outputs: int, inputs: int, size: int, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outputs, inputs, size, size)
    if bias:
        yield f"{name}.bias", (outputs,)


def norm_shapes(name: str, channels: int) -> Shapes:
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def head_shapes(name: str, hidden: int, maps: int) -> Shapes:
    yield from conv_shapes(f"{name}.0.0", hidden, 128, 1)
    yield from conv_shapes(f"{name}.1.0", maps, hidden, 1)


def public_shapes(refinements: int) -> Shapes:
    """Names and shapes of the public PyTorch release, in its order."""
    yield from conv_shapes("model.0.0", 32, 3, 3, bias=False)
    yield from norm_shapes("model.0.1", 32)
    for index, (inputs, outputs) in enumerate(pairwise(MOBILENET), start=1):
        yield from conv_shapes(f"model.{index}.0", inputs, 1, 3, bias=False)
        yield from norm_shapes(f"model.{index}.1", inputs)
        yield from conv_shapes(f"model.{index}.3", outputs, inputs, 1, bias=False)
        yield from norm_shapes(f"model.{index}.4", outputs)
    yield from conv_shapes("cpm.align.0", 128, 512, 1)
    for index in range(3):
        yield from conv_shapes(f"cpm.trunk.{index}.0", 128, 1, 3, bias=False)
        yield from conv_shapes(f"cpm.trunk.{index}.2", 128, 128, 1, bias=False)
    yield from conv_shapes("cpm.conv.0", 128, 128, 3)
    for index in range(3):
        yield from conv_shapes(f"initial_stage.trunk.{index}.0", 128, 128, 3)
    yield from head_shapes("initial_stage.heatmaps", 512, 19)
    yield from head_shapes("initial_stage.pafs", 512, 38)
    for stage in range(refinements):
        for block in range(5):
            name = f"refinement_stages.{stage}.trunk.{block}"
            yield from conv_shapes(f"{name}.initial.0", 128, 128 if block else 185, 1)
            for index in range(2):
                yield from conv_shapes(f"{name}.trunk.{index}.0", 128, 128, 3)
                yield from norm_shapes(f"{name}.trunk.{index}.1", 128)
        yield from head_shapes(f"refinement_stages.{stage}.heatmaps", 128, 19)
        yield from head_shapes(f"refinement_stages.{stage}.pafs", 128, 38)


def open_model_zoo_shapes() -> Shapes:
    """Names and shapes of the Open Model Zoo's weights, in their order."""
    yield from conv_shapes("model.0.0", 32, 3, 3)
    for index, (inputs, outputs) in enumerate(pairwise(MOBILENET), start=1):
        yield from conv_shapes(f"model.{index}.0.0", inputs, 1, 3)
        yield from conv_shapes(f"model.{index}.1.0", outputs, inputs, 1)
    yield from conv_shapes("align.0", 128, 512, 1)
    yield from conv_shapes("trunk.0.0", 128, 128, 1)
    for index in range(1, 4):
        yield from conv_shapes(f"trunk.{index}.0.0", 128, 1, 3)
        yield from conv_shapes(f"trunk.{index}.1.0", 128, 128, 1)
    yield from conv_shapes("cpm_conv.0", 128, 128, 3)
    for index in range(3):
        yield from conv_shapes(f"init_trunk.{index}.0", 128, 128, 3)
    yield from head_shapes("init_pafs", 512, 38)
    yield from head_shapes("init_heat", 512, 19)
    for block in range(5):
        yield from conv_shapes(f"ref_trunk.{block}.initial.0", 128, 128 if block else 185, 1)
        for index in range(2):
            yield from conv_shapes(f"ref_trunk.{block}.trunk.{index}.0", 128, 128, 3)
    yield from head_shapes("ref_heat", 128, 19)
    yield from head_shapes("ref_pafs", 128, 38)


def shapes_of(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in module.state_dict().items()]


@pytest.mark.parametrize(
    ("refinements", "params", "gmacs"),
    [
        (0, 2_483_065, 4.731),
        (1, 4_091_698, 7.656),
        (2, 5_700_331, 10.58),
        (3, 7_308_964, 13.51),
        (5, 10_526_230, 19.36),
    ],
)
def test_public_network_has_the_published_size(refinements: int, params: int, gmacs: float) -> None:
    network = on_meta("lightweight-openpose", refinements=refinements)
    assert sum(p.numel() for p in network.parameters()) == params
    assert macs(network, 256, 456) / 1e9 == pytest.approx(gmacs, rel=5e-4)


def test_the_public_network_has_the_operations_of_its_paper() -> None:
    assert macs(on_meta("lightweight-openpose"), 368, 368) == 8_881_647_616


def test_open_model_zoo_network_has_the_published_size() -> None:
    network = on_meta("human-pose-estimation-0001")
    assert sum(p.numel() for p in network.parameters()) == 4_099_058
    assert macs(network, 256, 456) == 7_685_898_240
    dense = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and m.groups == 1]
    assert sum(m.in_channels == 128 for m in dense) == 14


def test_default_fits_the_repository() -> None:
    network = on_meta("default")
    assert sum(t.numel() * 4 for t in network.state_dict().values()) <= 8e6


@pytest.mark.parametrize("refinements", [0, 1, 3])
def test_public_names_shapes_and_order(refinements: int) -> None:
    assert shapes_of(on_meta("lightweight-openpose", refinements=refinements)) == list(public_shapes(refinements))


def test_open_model_zoo_names_shapes_and_order() -> None:
    assert shapes_of(on_meta("human-pose-estimation-0001")) == list(open_model_zoo_shapes())


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "file"), [("lightweight-openpose", "keys_lhpe.txt"), ("human-pose-estimation-0001", "keys_omz_lhpe.txt")]
)
def test_names_are_those_of_the_key_dumps(name: str, file: str, assets: Path) -> None:
    dump = assets.parent / "keys" / file
    if not dump.is_file():
        pytest.skip(f"the key dump is not at {dump}")
    lines = [line.split(maxsplit=1) for line in dump.read_text().splitlines() if line.strip()]
    assert [(key, str(shape)) for key, shape in shapes_of(on_meta(name))] == [(key, shape) for key, shape in lines]


@settings(max_examples=25, deadline=None)
@given(name=st.sampled_from(NAMES), batch=st.integers(1, 3), height=st.integers(1, 120), width=st.integers(1, 120))
def test_any_input_size_is_valid_and_maps_are_an_eighth_rounded_up(
    name: str, batch: int, height: int, width: int
) -> None:
    with torch.device("meta"):
        stages = on_meta(name)(torch.empty(batch, 3, height, width))
    size = (-(-height // 8), -(-width // 8))
    assert len(stages) == 2
    for maps in stages:
        assert {key: tuple(value.shape) for key, value in maps.items()} == {
            "heatmaps": (batch, 19, *size),
            "pafs": (batch, 38, *size),
        }


@pytest.mark.parametrize(
    ("name", "features", "refinement", "order"),
    [
        ("lightweight-openpose", "cpm", "refinement_stages.0", ("features", "heatmaps", "pafs")),
        ("default", "cpm", "refinement_stages.0", ("features", "heatmaps", "pafs")),
        ("human-pose-estimation-0001", "cpm_conv", "ref_trunk", ("pafs", "heatmaps", "features")),
    ],
)
def test_refinement_reads_its_inputs_in_the_published_order(
    name: str, features: str, refinement: str, order: tuple[str, ...]
) -> None:
    network = build(NetworkSpec(name)).eval()
    seen: dict[str, torch.Tensor] = {}
    network.get_submodule(features).register_forward_hook(lambda m, args, out: seen.update(features=out))
    network.get_submodule(refinement).register_forward_hook(lambda m, args, out: seen.update(input=args[0]))
    with torch.no_grad():
        first = network(torch.rand(1, 3, 32, 40))[0]
    assert torch.equal(seen["input"], torch.cat([({**first, **seen})[part] for part in order], dim=1))


@pytest.mark.parametrize("name", NAMES)
def test_distillation_points_are_the_features_of_each_stage(name: str) -> None:
    network = build(NetworkSpec(name)).eval()
    shapes = {}
    for point in network.distill_points:
        network.get_submodule(point).register_forward_hook(
            lambda m, args, out, point=point: shapes.update({point: tuple(out.shape)})
        )
    stages = network(torch.zeros(1, 3, 16, 24))
    width = 64 if name == "default" else 128
    assert shapes == dict.fromkeys(network.distill_points, (1, width, 2, 3))
    assert len(network.distill_points) == len(stages) + 1


@pytest.mark.parametrize("name", NAMES)
def test_backbone_keeps_stride_8_and_dilates_instead(name: str) -> None:
    convs = [m for m in on_meta(name).model.modules() if isinstance(m, nn.Conv2d)]
    assert [m.stride[0] for m in convs].count(2) == 3
    dilated = [index for index, m in enumerate(convs) if m.dilation == (2, 2)]
    assert dilated == [13]
    assert convs[13].groups == convs[13].in_channels


def test_activations_do_not_change_their_input() -> None:
    network = build(NetworkSpec("default")).eval()
    seen = {}
    conv = network.initial_stage.trunk[0][0]
    conv.register_forward_hook(lambda m, args, out: seen.update(input=args[0], output=out))
    with torch.no_grad():
        network(torch.rand(1, 3, 32, 32))
        assert torch.equal(seen["output"], conv(seen["input"]))
        assert seen["output"].min() < 0


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_preserve_variance_and_give_small_maps(name: str) -> None:
    torch.manual_seed(0)
    network = build(NetworkSpec(name)).train()
    spreads = []
    for point in network.distill_points:
        network.get_submodule(point).register_forward_hook(lambda m, args, out: spreads.append(out.std().item()))
    stages = network(torch.randn(2, 3, 64, 64) / 4)
    assert all(0.05 < spread < 20 for spread in spreads)
    assert all(value.abs().mean() < 0.5 for maps in stages for value in maps.values())


def test_gradient_of_the_last_stage_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    for name in NAMES:
        network = build(NetworkSpec(name)).train()
        sum(value.square().sum() for value in network(torch.randn(2, 3, 32, 32))[-1].values()).backward()
        untouched = [key for key, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # A bias before batch normalisation has no effect, so that its gradient is rounding noise or zero.
        state = network.state_dict()
        assert [key for key in untouched if key.removesuffix("0.bias") + "1.running_mean" not in state] == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lightweight-openpose", {"refinements": -1}),
        ("lightweight-openpose", {"refinements": 10**9}),
        ("lightweight-openpose", {"refinements": True}),
        ("lightweight-openpose", {"refinements": "2"}),
        ("lightweight-openpose", {"width": 64}),
        ("default", {"width": 64.0}),
        ("default", {"backbone_scale": float("nan")}),
        ("default", {"normalize": "no"}),
        ("default", {"blocks": 0}),
        ("human-pose-estimation-0001", {"refinements": 1}),
    ],
)
def test_bad_options_are_refused(name: str, options: dict[str, object]) -> None:
    with pytest.raises(NetworkError, match=next(iter(options))):
        build(NetworkSpec(name, options))


def test_options_of_the_default_are_used() -> None:
    network = on_meta("default", refinements=2, width=32, backbone_scale=0.25, blocks=2, head_width=48, normalize=False)
    assert len(network.refinement_stages) == 2
    assert [len(stage.trunk) for stage in network.refinement_stages] == [2, 2]
    assert network.model[0][0].out_channels == 8
    assert network.cpm.align[0].weight.shape == (32, 128, 1, 1)
    assert network.initial_stage.pafs[0][0].out_channels == 48
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.initial_stage.modules())


def test_every_network_is_complete_on_the_meta_device() -> None:
    """Loading builds them there, so every tensor must be in the state dict."""
    for entry in entries():
        network = on_meta(entry.name)
        tensors = [*network.parameters(), *network.buffers()]
        assert all(tensor.is_meta for tensor in tensors)
        assert len(tensors) == len(network.state_dict())


@pytest.mark.real
@pytest.mark.slow
def test_open_model_zoo_network_agrees_with_the_released_model(assets: Path) -> None:
    """The released file is quantised, so that only the correlation can be compared."""

    folder = assets / "weights" / "human-pose-estimation-0001"
    network = build(NetworkSpec("human-pose-estimation-0001")).eval()
    state = torch.load(folder / "human-pose-estimation-0001.pth", weights_only=True)["state_dict"]
    network.load_state_dict(state)
    image = cv2.imread(str(assets / "images" / "coco" / "val2017" / "000000368212.jpg"))
    pixels = cv2.resize(image, (456, 256)).transpose(2, 0, 1)[None].astype(np.float32)
    with torch.no_grad():
        ours = network((torch.from_numpy(pixels) - 128) / 256)[-1]
    released = shared_core().compile_model(str(folder / "human-pose-estimation-0001.xml"), "CPU")(pixels)
    for name, least in (("heatmaps", 0.99), ("pafs", 0.95)):
        theirs = next(value for value in released.values() if value.shape == tuple(ours[name].shape))
        assert np.corrcoef(ours[name].numpy().ravel(), theirs.ravel())[0, 1] > least
