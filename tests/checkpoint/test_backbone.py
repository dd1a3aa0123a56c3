"""Networks that start from the weights of a classification network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import run_command
from torch import Tensor

from compress.checkpoint.backbone import load_backbone
from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.errors import CheckpointError, FileError, NetworkError
from compress.model import Model

#: A bottleneck's layers in torchvision and timm.
BOTTLENECK = [f"{kind}{n}" for n in (1, 2, 3) for kind in ("conv", "bn")]


class Classifier:
    """A state dict as a classification network saves it: every layer is filled with a number of its own."""

    def __init__(self) -> None:
        self.state: dict[str, Tensor] = {}
        self.layers: list[str] = []

    def add(self, name: str, *shape: int, bias: bool = False) -> None:
        number = float(len(self.layers) + 1)
        self.layers.append(name)
        self.state[f"{name}.weight"] = torch.full(shape, number)
        if bias or len(shape) == 1:
            self.state[f"{name}.bias"] = torch.full(shape[:1], number)
        if len(shape) == 1:
            self.state[f"{name}.running_mean"] = torch.full(shape, number)
            self.state[f"{name}.running_var"] = torch.full(shape, number)
            self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(self, conv: str, norm: str, outputs: int, inputs: int, size: int) -> None:
        self.add(conv, outputs, inputs, size, size)
        self.add(norm, outputs)


def resnet(counts: tuple[int, ...] = (3, 4, 6, 3)) -> Classifier:
    net = Classifier()
    net.conv("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(counts):
        width = 64 * 2**stage
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            for n, (outputs, size) in enumerate(((width, 1), (width, 3), (4 * width, 1)), 1):
                net.conv(f"{name}.conv{n}", f"{name}.bn{n}", outputs, (inputs, width, width)[n - 1], size)
            if block == 0:
                net.conv(f"{name}.downsample.0", f"{name}.downsample.1", 4 * width, inputs, 1)
            inputs = 4 * width
    net.add("fc", 1000, 2048, bias=True)
    return net


V1 = ((64, 1), (128, 2), (256, 2), (512, 6), (1024, 2))
V2 = ((1, 16, 1), (6, 24, 2), (6, 32, 3), (6, 64, 4), (6, 96, 3), (6, 160, 3), (6, 320, 1))


def mobilenet_v1(*, timm: bool) -> Classifier:
    net = Classifier()
    net.conv(*(("conv_stem", "bn1") if timm else ("model.0.0", "model.0.1")), 32, 3, 3)
    channels, index = 32, 0
    for group, (outputs, count) in enumerate(V1):
        for block in range(count):
            index += 1
            name = f"blocks.{group}.{block}" if timm else f"model.{index}"
            names = ("conv_dw", "bn1", "conv_pw", "bn2") if timm else ("0", "1", "3", "4")
            depth, norm, point, last = (f"{name}.{part}" for part in names)
            net.conv(depth, norm, channels, 1, 3)
            net.conv(point, last, outputs, channels, 1)
            channels = outputs
    net.add("classifier" if timm else "fc", 1000, 1024, bias=True)
    return net


def mobilenet_v2(*, timm: bool) -> Classifier:
    net = Classifier()
    net.conv(*(("conv_stem", "bn1") if timm else ("features.0.0", "features.0.1")), 32, 3, 3)
    channels, index = 32, 0
    for group, (expansion, outputs, count) in enumerate(V2):
        for block in range(count):
            index += 1
            wide = expansion * channels
            if timm:
                name = f"blocks.{group}.{block}"
                names = ["conv_pw", "conv_dw", "conv_pwl"] if expansion > 1 else ["conv_dw", "conv_pw"]
                pairs = [(f"{name}.{layer}", f"{name}.bn{n}") for n, layer in enumerate(names, 1)]
            else:
                name, plain = f"features.{index}.conv", 2 if expansion > 1 else 1
                pairs = [(f"{name}.{n}.0", f"{name}.{n}.1") for n in range(plain)]
                pairs.append((f"{name}.{plain}", f"{name}.{plain + 1}"))
            if expansion > 1:
                net.conv(*pairs[0], wide, channels, 1)
            net.conv(*pairs[-2], wide, 1, 3)
            net.conv(*pairs[-1], outputs, wide, 1)
            channels = outputs
    net.conv(*(("conv_head", "bn2") if timm else ("features.18.0", "features.18.1")), 1280, 320, 1)
    net.add("classifier" if timm else "classifier.1", 1000, 1280, bias=True)
    return net


def vgg19() -> Classifier:
    net = Classifier()
    channels, index = 3, 0
    for outputs, count in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(count):
            net.add(f"features.{index}", outputs, channels, 3, 3, bias=True)
            channels, index = outputs, index + 2
        index += 1
    return net


def saved(folder: Path, net: Classifier) -> Path:
    torch.save(net.state, folder / "trunk.pth")
    return folder / "trunk.pth"


def fresh(name: str, **options: Any) -> Model:
    return create(name, options, trained=False)


def leading_numbers(model: Model, pattern: str) -> list[float]:
    """The value of each trunk layer with weights, in the network's order; each must be constant."""
    values = []
    for key, value in model.module.state_dict().items():
        if re.match(pattern, key) and key.endswith(".weight"):
            assert float(value.min()) == float(value.max())
            values.append(float(value.min()))
    return values


CASES = [
    pytest.param("simple-baseline", {}, resnet(), r"conv1|bn1|layer", 106, id="resnet"),
    pytest.param("context-cpm", {"stages": 1}, mobilenet_v1(timm=True), "model", 46, id="v1-timm"),
    pytest.param("lightweight-openpose", {}, mobilenet_v1(timm=False), "model", 46, id="v1-own"),
    pytest.param("attention-cpm", {"stages": 1}, mobilenet_v2(timm=True), "backbone", 78, id="v2-timm"),
    pytest.param("attention-cpm", {"stages": 1}, mobilenet_v2(timm=False), "backbone", 78, id="v2-torchvision"),
    pytest.param("mobilenet-v2", {}, mobilenet_v2(timm=True), "backbone", 104, id="whole-v2-timm"),
    pytest.param("mobilenet-v2", {}, mobilenet_v2(timm=False), "backbone", 104, id="whole-v2-torchvision"),
    pytest.param("openpose-vgg19", {"stages": 1}, vgg19(), "backbone", 10, id="vgg"),
]


@pytest.mark.parametrize(("name", "options", "net", "pattern", "layers"), CASES)
def test_every_layer_of_the_trunk_gets_its_own_weights(
    tmp_path: Path, name: str, options: dict[str, Any], net: Classifier, pattern: str, layers: int
) -> None:
    start = fresh(name, **options)
    before = {key: value.clone() for key, value in start.module.state_dict().items()}
    found = load_backbone(start, saved(tmp_path, net))
    # Numbers count the layers in the order in which the classification network runs them, like the network here.
    assert leading_numbers(found.model, pattern) == list(range(1, layers + 1))
    after = found.model.module.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in found.kept)
    assert {*found.taken, *found.kept} == set(after)
    assert len(found.taken) + len(found.left) == len(net.state)
    assert all(int(after[key]) == 7 for key in found.taken if key.endswith("num_batches_tracked"))


def test_esa_takes_the_trunk_and_keeps_its_attention(tmp_path: Path) -> None:
    found = load_backbone(fresh("esa"), saved(tmp_path, resnet()))
    assert found.left == ("fc.weight", "fc.bias")
    assert {name.partition(".")[0] for name in found.kept} == {"attention", "upsampling", "final_layer"}
    assert found.notices == ()


def test_wrapped_files_load(tmp_path: Path) -> None:
    net = mobilenet_v1(timm=False)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state.items()}}, tmp_path / "w.pth.tar")
    found = load_backbone(fresh("context-cpm", stages=1), tmp_path / "w.pth.tar")
    assert leading_numbers(found.model, "model")[0] == 1
    assert "BGR" in found.notices[0]


def test_the_file_of_another_depth_is_refused_with_names_and_shapes(tmp_path: Path) -> None:
    deep = saved(tmp_path, resnet((3, 4, 23, 3)))
    with pytest.raises(CheckpointError, match=r"unexpected: layer3\.6\.conv1\.weight \(256, 1024, 1, 1\)"):
        load_backbone(fresh("simple-baseline"), deep)
    assert load_backbone(fresh("simple-baseline", depth=101), deep).left == ("fc.weight", "fc.bias")
    with pytest.raises(CheckpointError, match=r"trunk of simple-baseline.*missing: layer3\.6\.conv1\.weight"):
        load_backbone(fresh("simple-baseline", depth=101), saved(tmp_path, resnet()))


def test_misfits_are_refused(tmp_path: Path) -> None:
    net = vgg19()
    net.state["features.5.weight"] = torch.zeros(96, 64, 3, 3)
    with pytest.raises(CheckpointError, match=r"backbone\.3\.0\.weight \(96, 64, 3, 3\) instead of \(128, 64, 3, 3\)"):
        load_backbone(fresh("openpose-vgg19", stages=1), saved(tmp_path, net))
    with pytest.raises(CheckpointError, match=r"a MobileNet v2: .* missing"):
        load_backbone(fresh("attention-cpm", stages=1), saved(tmp_path, resnet()))
    net.state["features.5.weight"] = torch.full((128, 64, 3, 3), float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        load_backbone(fresh("openpose-vgg19", stages=1), saved(tmp_path, net))
    with pytest.raises(NetworkError, match="no trunk"):
        load_backbone(fresh("repose"), saved(tmp_path, net))
    with pytest.raises(FileError):
        load_backbone(fresh("esa"), tmp_path / "none.pth")


def test_init_writes_a_network_that_starts_from_a_trunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trunk = saved(tmp_path, mobilenet_v2(timm=False))
    out = tmp_path / "model.pt"
    arguments = ["init", "attention-cpm", "--set", "stages=1", "--backbone", str(trunk), "-o", str(out)]
    assert "MobileNet v2: took" in run_command(monkeypatch, capsys, *arguments).out
    model = load(out)
    assert model.history[-1]["backbone"] == "trunk.pth"
    assert leading_numbers(model, "backbone") == list(range(1, 79))
    save(model, tmp_path / "again.pt")
