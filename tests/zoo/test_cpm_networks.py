"""The convolutional pose machines: attention CPM, OpenPose, global context CPM. Counts, names and connections."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compress.checkpoint.weights import Weights, fit
from compress.errors import NetworkError
from compress.network.cost import cost
from compress.network.layers import list_layers
from compress.network.source import NetworkSpec
from compress.planning.check import check_plan
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection
from compress.pose.skeleton import get_skeleton
from compress.surgery.edits import FactorizeEdit, apply_edits
from compress.zoo.context_cpm import CONTEXTS, resize
from compress.zoo.counts import count_reduction
from compress.zoo.foreign import identify
from compress.zoo.published import REDUCTIONS
from compress.zoo.registry import build, get_entry

#: Channels from block to block of MobileNet v1 up to its twelfth convolution pair.
MOBILENET = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512)

#: Small variants of every network, and their number of heatmaps.
SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "attention-cpm": ({"stages": 2, "width": 8}, 18),
    "attention-cpm-background": ({"stages": 2, "width": 8, "ratio": "1/3"}, 19),
    "openpose-vgg19": ({"stages": 2}, 19),
    "context-cpm": ({"stages": 2}, 17),
    "context-cpm-mpii": ({"stages": 2, "context": "none"}, 17),
    "context-cpm-coco": ({"stages": 2, "context": "pyramid"}, 17),
}

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return build(NetworkSpec(name, options)).eval()


def shapes_of(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(key, tuple(value.shape)) for key, value in module.state_dict().items()]


def unit(name: str, inputs: int, outputs: int, size: int = 3, bias: bool = True, norm: bool = True) -> Shapes:
    yield f"{name}.0.weight", (outputs, inputs, size, size)
    if bias:
        yield f"{name}.0.bias", (outputs,)
    if norm:
        yield from norm_shapes(f"{name}.1", outputs)


def norm_shapes(name: str, channels: int) -> Shapes:
    yield from ((f"{name}.{part}", (channels,)) for part in ("weight", "bias", "running_mean", "running_var"))
    yield f"{name}.num_batches_tracked", ()


def public_context_shapes(refinements: int) -> Shapes:
    """Names and shapes of the public release with U-shaped context, in its order."""
    yield from unit("model.0", 3, 32, bias=False)
    for index, (inputs, outputs) in enumerate(pairwise(MOBILENET), start=1):
        yield from unit(f"model.{index}", 1, inputs, bias=False)
        yield f"model.{index}.3.weight", (outputs, inputs, 1, 1)
        yield from norm_shapes(f"model.{index}.4", outputs)
    yield from unit("cpm.0", 512, 256)
    yield from unit("cpm.1", 256, 128)
    for index in range(3):
        yield from unit(f"initial_stage.trunk.{index}", 128, 128)
    yield from unit("initial_stage.heatmaps.0", 128, 512, 1, norm=False)
    yield from unit("initial_stage.heatmaps.1", 512, 17, 1, norm=False)
    c = 145
    layers = {"encoder1": (c, 2 * c, 2 * c), "encoder2": (2 * c, 2 * c, 2 * c), "decoder2": (4 * c, 2 * c, 2 * c),
              "decoder1": (3 * c, 2 * c, c)}  # fmt: skip
    for stage in range(refinements):
        trunk = f"refinement_stages.{stage}.trunk"
        for part, widths in layers.items():
            for index, (inputs, outputs) in enumerate(pairwise(widths)):
                yield from unit(f"{trunk}.0.{part}.{index}", inputs, outputs)
        for block in (1, 2, 3):
            yield from unit(f"{trunk}.{block}.initial", c if block == 1 else 128, 128, 1, norm=False)
            for index in range(2):
                yield from unit(f"{trunk}.{block}.trunk.{index}", 128, 128)
        yield from unit(f"refinement_stages.{stage}.heatmaps.0", 128, 128, 1, norm=False)
        yield from unit(f"refinement_stages.{stage}.heatmaps.1", 128, 17, 1, norm=False)


@pytest.mark.parametrize(
    ("options", "params", "gmacs"),
    [
        ({}, 13.735, 51.49),
        ({"ratio": "1/3"}, 3.338, 12.27),
        ({"ratio": "1/4"}, 2.415, 8.79),
        ({"head_size": 1}, 8.783, 32.8),
        ({"head_size": 1, "ratio": "1/3"}, 2.831, 10.36),
        ({"head_size": 1, "ratio": "1/4"}, 2.309, 8.39),
    ],
)
def test_attention_cpm_has_the_counts_of_its_reading(options: dict[str, Any], params: float, gmacs: float) -> None:
    found = cost(on_meta("attention-cpm", **options), (368, 656))
    assert found.params / 1e6 == pytest.approx(params, abs=5.1e-4)
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=1e-3)


def test_factorization_of_attention_cpm_saves_what_its_paper_reports() -> None:
    dense, third, quarter = (
        cost(on_meta("attention-cpm", ratio=ratio), (368, 656)).macs for ratio in (None, "1/3", "1/4")
    )
    assert dense / third == pytest.approx(4.2, abs=0.05)
    assert dense / quarter == pytest.approx(5.9, abs=0.05)
    front = on_meta("attention-cpm")
    assert sum(p.numel() for n, p in front.named_parameters() if not n.startswith("stages.")) == 555_072


@pytest.mark.parametrize("ratio", ["1/3", "1/4", "0.3"])
@pytest.mark.parametrize("head_size", [3, 1])
def test_a_factorized_attention_cpm_has_the_tensors_of_one_built_factorized(ratio: str, head_size: int) -> None:
    options = {"stages": 2, "width": 32, "head_size": head_size}
    dense = build(NetworkSpec("attention-cpm", options))
    plan = make_plan(dense, Ratio(ratio), Selection(("stages.*",)), network="attention-cpm", input_size=(64, 64))
    assert len(plan.changed) == 2 * (6 + (4 if head_size == 3 else 0))
    factorized = apply_edits(dense, [FactorizeEdit.from_plan(plan)])
    born = build(NetworkSpec("attention-cpm", {**options, "ratio": ratio}))
    assert shapes_of(factorized) == shapes_of(born)
    factorized.load_state_dict(born.state_dict())
    x = torch.randn(1, 3, 40, 48)
    for ours, theirs in zip(factorized.eval()(x), born.eval()(x), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ("heatmaps", "pafs"))


def test_the_heatmap_branch_of_the_attention_cpm_reads_the_fields() -> None:
    network = build(NetworkSpec("attention-cpm", {"stages": 1, "width": 8})).eval()
    x = torch.randn(1, 3, 32, 32)
    before = network(x)[0]
    with torch.no_grad():
        network.get_parameter("stages.0.pafs.2.0.bias").add_(1)
    after = network(x)[0]
    assert torch.allclose(after["pafs"], before["pafs"] + 1, atol=1e-6)
    assert not torch.equal(after["heatmaps"], before["heatmaps"])


@pytest.mark.parametrize(
    ("stages", "params", "size", "gmacs"),
    [
        (6, 52_311_446, (368, 368), 135.93),
        (6, 52_311_446, (368, 656), 242.32),
        (6, 52_311_446, (256, 456), 117.18),
        (2, 17_172_146, (368, 368), 61.59),
    ],
)
def test_openpose_has_the_published_size(stages: int, params: int, size: tuple[int, int], gmacs: float) -> None:
    found = cost(on_meta("openpose-vgg19", stages=stages), size)
    assert found.params == params
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=5e-3)


def test_openpose_is_the_caffe_file_s_size_and_lightweight_openpose_a_seventh_of_two_stages() -> None:
    assert 4 * cost(on_meta("openpose-vgg19"), (64, 64)).params == pytest.approx(209.2e6, rel=5e-4)
    ours = cost(on_meta("lightweight-openpose"), (368, 368)).macs
    assert ours / cost(on_meta("openpose-vgg19", stages=2), (368, 368)).macs == pytest.approx(0.144, abs=2e-3)


@pytest.mark.parametrize(
    ("r3", "r4", "times"), [("1/3", "1/3", 7.65), ("1/3", "1/4", 9.96), ("1/4", "1/3", 10.0), ("1/4", "1/4", 12.98)]
)
def test_the_9_3_times_fewer_operations_of_openpose_s_stage_lie_between_a_third_and_a_quarter(
    r3: str, r4: str, times: float
) -> None:
    stage = build(NetworkSpec("openpose-vgg19", {"stages": 2})).get_submodule("stages.1")

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = stage

        def forward(self, x: torch.Tensor) -> Any:
            return self.stage(x[:, :1].expand(-1, 185, -1, -1))

    alone = Alone()
    plans = [make_plan(alone, Ratio(share), network="stage", input_size=(8, 8)) for share in (r3, r4)]
    layers = tuple(
        replace(a, ranks=(a.ranks[0], b.ranks[1])) if a.ranks else a
        for a, b in zip(plans[0].layers, plans[1].layers, strict=True)
    )
    plan = check_plan(replace(plans[0], layers=layers), alone, "stage", (8, 8))
    assert len(plan.changed) == 10
    assert plan.macs[0] == 8_783_232 * 64
    assert plan.macs[0] / plan.macs[1] == pytest.approx(times, rel=2e-3)
    assert 7.65 <= round(plan.macs[0] / plan.macs[1], 2) <= 12.98


@pytest.mark.parametrize(
    ("part", "ratios", "times"),
    [
        # By hand, a 7x7 stage: 10 factorized convolutions and two heads, 8,783,232 multiply-adds for each position.
        ("stages.1", ("1/3", "1/3"), 7.65),
        ("stages.1", ("1/3", "1/4"), 9.96),
        ("stages.1", ("1/4", "1/4"), 12.98),
        ("stages", ("1/3", "1/3"), 7.41),
        ("stages", ("1/4", "1/4"), 12.33),
    ],
)
def test_the_published_saving_lies_between_those_of_its_ratios(
    part: str, ratios: tuple[str, str], times: float
) -> None:
    (row,) = REDUCTIONS
    assert count_reduction(replace(row, part=part, ratios=ratios)) == pytest.approx(times, abs=6e-3)


def test_the_reading_of_the_published_saving_is_the_closest_one() -> None:
    (row,) = REDUCTIONS
    shares = ("1/3", "1/4")
    off = {(a, b): abs(count_reduction(replace(row, ratios=(a, b))) - row.times) for a in shares for b in shares}
    assert min(off, key=off.__getitem__) == row.ratios
    assert off[row.ratios] / row.times < 0.03


@pytest.mark.parametrize(("activation", "kind"), [("relu6", nn.ReLU6), ("leaky_relu", nn.LeakyReLU)])
def test_the_mobilenet_of_the_attention_cpm_has_either_activation_and_the_rest_leaky_relus(
    activation: str, kind: type[nn.Module]
) -> None:
    network = on_meta("attention-cpm", stages=1, trunk_activation=activation)
    rectifiers = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)
    kinds = {name: type(part) for name, part in network.named_modules() if isinstance(part, rectifiers)}
    inside = [found for name, found in kinds.items() if name.startswith("backbone.")]
    # The first convolution, and two activations in each of 13 blocks but one in the first, which has no expansion.
    assert len(inside) == 1 + 2 * 13 - 1
    assert set(inside) == {kind}
    assert {found for name, found in kinds.items() if not name.startswith("backbone.")} == {nn.LeakyReLU}
    assert shapes_of(network) == shapes_of(on_meta("attention-cpm", stages=1))


@pytest.mark.parametrize(
    ("context", "params", "gmacs"),
    # Without context 8,394,406 and 8.693 GMAC; one module on 128 channels at 32x32. U-shaped, by hand, 3x3 weights:
    # 128 x 256 + 3 x 256 x 256 + 512 x 256 + 256 x 256 + 384 x 256 + 256 x 128 = 557,056, 9 each; biases 7 x 256 + 128
    # and normalisation twice that.
    [("u_shaped", 8_394_406 + 9 * 557_056 + 3 * (7 * 256 + 128), 10.656), ("aspp", 17_438_502, 17.954),
     ("pyramid", 8_591_398, 8.756)],
)  # fmt: skip
def test_a_context_module_after_the_feature_extractor_serves_all_stages(
    context: str, params: int, gmacs: float
) -> None:
    network = on_meta("context-cpm", context=context, context_at="features")
    found = cost(network, (256, 256))
    assert found.params == params
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)
    # Less than half of the 21.3 G that the paper prints, which five modules have.
    assert found.macs / 1e9 < 21.3
    rest = [(k, v) for k, v in shapes_of(network) if not k.startswith("context.")]
    assert rest == shapes_of(on_meta("context-cpm", context="none"))
    assert network.distill_points[0] == "context"


def test_all_stages_read_the_context_of_the_features() -> None:
    network = build(NetworkSpec("context-cpm", {"stages": 2, "context_at": "features"})).eval()
    x = torch.randn(1, 3, 32, 32)
    before = network(x)
    with torch.no_grad():
        network.get_parameter("context.0.decoder1.1.0.bias").add_(1)
    for old, new in zip(before, network(x), strict=True):
        assert not torch.equal(old["heatmaps"], new["heatmaps"])


@pytest.mark.parametrize("context", ["u_shaped", "aspp", "pyramid"])
@pytest.mark.parametrize("stages", [1, 3])
def test_weights_with_context_after_the_features_are_recognised(context: str, stages: int) -> None:
    options = {"stages": stages, "context": context, "context_at": "features"}
    assert identify(dict(on_meta("context-cpm", **options).state_dict())) == NetworkSpec("context-cpm", options)


@pytest.mark.parametrize(
    ("context", "stages", "params", "gmacs"),
    [
        ("u_shaped", 1, 3_607_121, 3.806),
        ("u_shaped", 2, 11_004_753, 7.302),
        ("u_shaped", 6, 40_595_281, 21.288),
        ("none", 1, 3_607_121, 3.806),
        ("none", 2, 4_564_578, 4.783),
        ("none", 6, 8_394_406, 8.693),
    ],
)
def test_context_cpm_has_the_published_size(context: str, stages: int, params: int, gmacs: float) -> None:
    found = cost(on_meta("context-cpm", context=context, stages=stages), (256, 256))
    assert found.params == params
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)


@pytest.mark.parametrize(
    ("context", "params", "gmacs", "slack"),
    [("u_shaped", 6.44, 2.53, 5e-3), ("aspp", 9.52, 9.75, 2.1e-3), ("pyramid", 0.2206, 0.069, 2e-3)],
)
def test_context_modules_have_the_published_size(context: str, params: float, gmacs: float, slack: float) -> None:
    module = on_meta("context-cpm", context=context, stages=2).get_submodule("refinement_stages.0.trunk.0")
    found = cost(module, (32, 32), channels=145)
    assert found.params / 1e6 == pytest.approx(params, rel=2.1e-3)
    assert found.macs / 1e9 == pytest.approx(gmacs, rel=slack)


def test_context_cpm_of_coco_matches_the_open_model_zoo() -> None:
    found = cost(on_meta("context-cpm-coco"), (384, 288))
    assert found.params == 33_197_649
    assert found.macs == 30_023_440_128


def test_context_modules_hold_most_of_the_network() -> None:
    network = on_meta("context-cpm")
    names = tuple(f"refinement_stages.{index}.trunk.0" for index in range(5))
    layers = list_layers(network, (256, 256))
    inside = sum(layer.macs for layer in layers if layer.name.startswith(tuple(f"{name}." for name in names)))
    params = sum(p.numel() for name in names for p in network.get_submodule(name).parameters())
    assert params / 1e6 == pytest.approx(32.2, abs=0.05)
    assert inside / sum(layer.macs for layer in layers) == pytest.approx(0.59, abs=5e-3)


@pytest.mark.parametrize("stages", [1, 2, 6])
def test_public_names_shapes_and_order_of_context_cpm(stages: int) -> None:
    assert shapes_of(on_meta("context-cpm", stages=stages)) == list(public_context_shapes(stages - 1))


@pytest.mark.real
def test_names_of_context_cpm_are_those_of_the_key_dump(assets: Path) -> None:
    dump = assets.parent / "keys" / "keys_gccpm.txt"
    if not dump.is_file():
        pytest.skip(f"the key dump is not at {dump}")
    lines = [line.split(maxsplit=1) for line in dump.read_text().splitlines() if line.strip()]
    assert [(k, str(s)) for k, s in shapes_of(on_meta("context-cpm"))] == [(key, shape) for key, shape in lines]


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("stages", [2, 6])
def test_weights_of_context_cpm_are_recognised_with_their_options(context: str, stages: int) -> None:
    state = dict(on_meta("context-cpm", stages=stages, context=context).state_dict())
    spec = identify(state)
    assert spec == NetworkSpec("context-cpm", {"stages": stages, "context": context})
    module = on_meta(spec.name, **spec.options)
    assert [tuple(v.shape) for v in module.state_dict().values()] == [tuple(v.shape) for v in state.values()]


def test_public_weights_of_context_cpm_fit_without_renaming() -> None:
    torch.manual_seed(0)
    state = {
        key: torch.rand(shape) if shape else torch.tensor(0)
        for key, shape in public_context_shapes(0)
        if not key.endswith("num_batches_tracked")
    }
    spec = identify(state)
    assert spec == NetworkSpec("context-cpm", {"stages": 1})
    fitted = fit(Weights(state), on_meta(spec.name, **spec.options), spec.name).state
    assert all(torch.equal(fitted[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", SMALL)
def test_outputs_match_the_pose_specification(name: str) -> None:
    options, heatmaps = SMALL[name]
    pose = get_entry(name).pose
    maps = on_meta(name, **options)(torch.empty(1, 3, 64, 96, device="meta"))[-1]
    assert set(maps) == set(pose.outputs)
    assert maps["heatmaps"].shape[1] == heatmaps == len(get_skeleton(pose.skeleton).joints) + pose.background
    assert all(value.shape[-2:] == (64 // pose.stride, 96 // pose.stride) for value in maps.values())


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(list(SMALL)),
    batch=st.integers(1, 3),
    height=st.integers(1, 15),
    width=st.integers(1, 15),
)
def test_any_multiple_of_eight_is_a_valid_input_size(name: str, batch: int, height: int, width: int) -> None:
    options, heatmaps = SMALL[name]
    stride = get_entry(name).pose.stride
    stages = on_meta(name, **options)(torch.empty(batch, 3, 8 * height, 8 * width, device="meta"))
    assert len(stages) == 2
    for maps in stages:
        assert tuple(maps["heatmaps"].shape) == (batch, heatmaps, 8 * height // stride, 8 * width // stride)


@pytest.mark.parametrize("name", SMALL)
def test_every_stage_has_features_to_distil(name: str) -> None:
    network = on_meta(name, **SMALL[name][0])
    assert len(network.distill_points) >= 3
    assert all(network.get_submodule(point) is not None for point in network.distill_points)


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40))
def test_pooled_context_of_a_constant_map_is_constant_at_any_size(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = build(NetworkSpec("context-cpm", {"stages": 2, "context": "pyramid"})).eval()
    module = network.get_submodule("refinement_stages.0.trunk.0")
    for level in module.levels:  # without zero padding
        level[0].weight.data[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2]] = 0
    y = module(torch.randn(1, 145, 1, 1).expand(-1, -1, height, width))
    assert torch.allclose(y, y[..., :1, :1].expand_as(y), atol=1e-4)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
def test_upsampling_targets_the_size_of_the_other_map(mode: str) -> None:
    x, like = torch.arange(6.0).reshape(1, 1, 2, 3), torch.empty(1, 4, 4, 6)
    y = resize(x, like, mode)
    assert y.shape == (1, 1, 4, 6)
    assert torch.equal(resize(x, x, mode), x)
    assert torch.equal(y, x.repeat_interleave(2, 2).repeat_interleave(2, 3)) == (mode == "nearest")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("attention-cpm", {"stages": 0}, "option stages must be an integer from 1 to 16"),
        ("attention-cpm", {"width": 10**6}, "option width"),
        ("attention-cpm", {"attention": "sea"}, "unknown value of the network's option attention.*Known: none, se,"),
        ("attention-cpm", {"reduction": True}, "option reduction"),
        ("attention-cpm", {"head_size": 7}, "option head_size.*Known: 1, 3"),
        ("attention-cpm", {"ratio": 0.3}, "option ratio must be a share"),
        ("attention-cpm", {"ratio": "4/3"}, "option ratio must be a share"),
        ("attention-cpm", {"ratio": "0/3"}, "option ratio must be a share"),
        ("attention-cpm", {"ratio": "1/0"}, "option ratio must be a share"),
        ("openpose-vgg19", {"stages": 17}, "option stages"),
        ("context-cpm", {"stages": 2.0}, "option stages"),
        ("context-cpm", {"context": ["u"]}, "option context.*Known: u_shaped, aspp, pyramid, none"),
        ("context-cpm", {"joints": 3}, "unknown option.*joints.*Known: stages, context"),
        ("context-cpm", {"context_at": "head"}, "option context_at.*Known: refinement, features"),
        ("attention-cpm", {"trunk_activation": "relu"}, "option trunk_activation.*Known: relu6, leaky_relu"),
    ],
)
def test_options_out_of_bounds_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        on_meta(name, **options)
