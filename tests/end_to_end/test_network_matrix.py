"""Every network, factorized, with swapped attention, and both: it still runs, trains, saves, loads and exports."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.compression.attention import swap_attention
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import export_openvino
from compress.forms.registry import forms_for
from compress.model import Model
from compress.network.kernels import layer_kernel
from compress.network.layers import list_layers
from compress.planning.plan import LayerPlan, Plan
from compress.planning.policies import Ratio, make_plan
from compress.planning.selection import Selection, obstacle
from compress.runtime.opening import open_runner
from compress.surgery.edits import FactorizeEdit
from compress.surgery.factorize import factorize
from compress.zoo.attention import Attention
from compress.zoo.registry import entries, get_entry

#: Variants of a network that is tested already, with another head.
HEADS = ("attention-cpm-background", "context-cpm-mpii", "repose-256")

NETWORKS = [x.name for x in entries() if x.name not in HEADS and not x.name.endswith("-mpii")]

#: Options that make a network faster without changing its blocks.
SMALLER: dict[str, dict[str, Any]] = {
    "attention-cpm": {"stages": 2},
    "openpose-vgg19": {"stages": 2},
    "context-cpm": {"stages": 2},
    "context-cpm-coco": {"stages": 2},
    "hourglass": {"stacks": 2},
}

#: These take minutes: slow tests only.
HEAVY = {"openpose-vgg19", "hrnet", "simple-baseline", "esa", "esa-prev"}

CHANGES = ("factorize", "attention", "both")


def cases(*changes: str) -> list[Any]:
    return [
        pytest.param(name, change, marks=[pytest.mark.slow] if name in HEAVY else [], id=f"{name}-{change}")
        for name in NETWORKS
        for change in changes
    ]


def size_of(name: str) -> tuple[int, int]:
    """A small input size that all strides of the network divide."""
    return (128, 128) if name.startswith("repose") else (64, 96)


def start(name: str) -> Model:
    """An untrained network with running statistics of the images: without them the outputs of deep ones explode."""
    checkpoint = create(name, SMALLER.get(name, {}), seed=0, trained=False)
    module = checkpoint.module.train()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module(images(name, 4))
    return checkpoint.derive(module.eval(), command="settle")


def factorized(checkpoint: Model, size: tuple[int, int], share: Fraction = Fraction(1, 3)) -> Model:
    module = checkpoint.module
    # Lite-HRNet has only depthwise and 1x1 convolutions.
    selection = Selection(pointwise="lite-hrnet" in checkpoint.source.name)
    plan = make_plan(module, Ratio(share), selection, network=checkpoint.source.name, input_size=size)
    done = factorize(module, plan)
    assert done.plan.changed
    return checkpoint.derive(done.module, edits=(FactorizeEdit.from_plan(done.plan),), command="factorize")


def with_attention(model: Model, size: tuple[int, int]) -> Model:
    model = model.at_size(size)
    if any(isinstance(block, Attention) for block in model.module.modules()):
        return swap_attention(model, "coord")
    maps = [x for x in model.layers if x.kind == "conv" and x.calls == 1 and x.weight_shape[0] >= 16]
    return swap_attention(model, "cbam", after=maps[len(maps) // 2].name)


def changed(name: str, change: str) -> Model:
    checkpoint, size = start(name), size_of(name)
    if change in ("factorize", "both"):
        checkpoint = factorized(checkpoint, size)
    if change in ("attention", "both"):
        checkpoint = with_attention(checkpoint, size)
    return checkpoint


def images(name: str, count: int = 2) -> Tensor:
    return torch.rand(count, 3, *size_of(name), generator=torch.Generator().manual_seed(1)) - 0.5


def loss_of(module: nn.Module, batch: Tensor) -> Tensor:
    """Squared error of all maps of all stages to a constant that no untrained network outputs."""
    maps = [value for stage in module(batch) for value in stage.values()]
    return torch.stack([functional.mse_loss(value, torch.full_like(value, 0.1)) for value in maps]).sum()


@pytest.mark.parametrize(("name", "change"), cases(*CHANGES))
def test_a_changed_network_runs_trains_and_is_saved(name: str, change: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    checkpoint = changed(name, change)
    module, batch = checkpoint.module, images(name)
    with torch.no_grad():
        before = module(batch)
        wanted = start(name).module(batch)
    assert [{kind: value.shape for kind, value in stage.items()} for stage in before] == [
        {kind: value.shape for kind, value in stage.items()} for stage in wanted
    ]
    assert all(value.isfinite().all() for stage in before for value in stage.values())

    path = save(checkpoint, tmp_path / "changed.pt") or tmp_path / "changed.pt"
    again = load(path).module
    with torch.no_grad():
        for mine, loaded in zip(before, again(batch), strict=True):
            for kind in mine:
                torch.testing.assert_close(loaded[kind], mine[kind], rtol=0, atol=0)

    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3)
    first = loss_of(module, batch)
    first.backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    assert len(gradients) > len(list(module.parameters())) // 2
    assert all(gradient.isfinite().all() for gradient in gradients)
    norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    assert float(norm) > 0
    optimizer.step()
    with torch.no_grad():
        assert float(loss_of(module, batch)) < float(first)


@pytest.mark.parametrize(("name", "change"), cases("factorize"))
def test_at_full_ranks_a_network_stays_what_it_is(name: str, change: str) -> None:
    # In float64: rounding errors grow through a hundred untrained layers.
    module, size, batch = start(name).module.double(), size_of(name), images(name, 1).double()
    entries_ = [
        LayerPlan(x.name, forms_for(x)[0].name, forms_for(x)[0].max_ranks(layer_kernel(x)), "plan", (0, 0), (0, 0))
        for x in list_layers(module, size)
        if obstacle(x) is None and min(x.weight_shape[:2]) >= 8 and not x.tied_to
    ]
    done = factorize(module, Plan(name, size, tuple(entries_)))
    assert len(done.plan.changed) == len(entries_) > 5
    with torch.no_grad():
        for mine, other in zip(module(batch), done.module(batch), strict=True):
            for kind in mine:
                scale = float(mine[kind].abs().max()) or 1.0
                assert float((mine[kind] - other[kind]).abs().max()) <= 1e-6 * scale


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_exports_of_a_changed_network_agree_at_sizes_other_than_the_traced_one(name: str, tmp_path: Path) -> None:
    checkpoint, size = changed(name, "both"), size_of(name)
    module = checkpoint.module
    onnx = export_onnx(checkpoint.at_size((size[0], size[1] + 32)), tmp_path / "m.onnx")
    export_openvino(onnx, tmp_path / "m.xml")
    for path in (onnx, tmp_path / "m.xml"):
        runner = open_runner(path, threads=1)
        for height, width in (size, (size[0] + 64, size[1] + 32)):
            batch = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(height)) - 0.5
            with torch.no_grad():
                wanted = module(batch)[-1]
            for kind, value in runner.run(batch.numpy()).items():
                scale = float(wanted[kind].abs().max())
                assert float(np.abs(value - wanted[kind].numpy()).max()) <= 2e-3 * scale
        runner.close()


def test_every_published_family_is_there() -> None:
    families = ("attention-cpm", "cbam-lite-hrnet", "esa", "repose", "context-cpm", "openpose-vgg19", "hrnet")
    assert all(get_entry(name).summary and name in NETWORKS for name in families)
