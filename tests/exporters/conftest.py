"""A small network with everything that is hard to export, and its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.exporters.to_onnx import export_onnx
from compress.model import Model
from compress.network.inputs import image_input
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec


class Stub(nn.Module):
    """Two stages at stride 8 with batch normalisation, dilation, groups and a resize to another map's size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(
            nn.Conv2d(8, 8, 3, 2, 2, dilation=2, groups=8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)
        )
        self.deep = nn.Conv2d(16, 16, 3, 2, 1)
        self.heat = nn.ModuleList(nn.Conv2d(16, 19, 1) for _ in range(2))
        self.fields = nn.ModuleList(nn.Conv2d(16, 38, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        first = self.body(self.stem(x))
        small = torch.relu(self.deep(first))
        # torch's bilinear resize and ONNX's agree in all runtimes; nearest does not at odd sizes.
        second = first + functional.interpolate(small, size=first.shape[-2:], mode="bilinear", align_corners=False)
        features = (first, second)
        return [
            {"pafs": fields(f), "heatmaps": heat(f)}
            for f, heat, fields in zip(features, self.heat, self.fields, strict=True)
        ]


def make_stub() -> Stub:
    torch.manual_seed(3)
    stub = Stub()
    for layer in stub.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.3)
            layer.momentum = None
    with torch.no_grad():
        stub(torch.rand(4, 3, 64, 80) - 0.5)  # gives the running statistics their values
    return stub


POSE = PoseSpec(height=64, color="rgb", mean=(1.0, 2.0, 3.5))


STUB = NetworkSpec("stub", {"width": 8})


def model_of(
    module: nn.Module,
    pose: PoseSpec | None = POSE,
    source: NetworkSpec = STUB,
    history: tuple[dict[str, Any], ...] = (),
) -> Model:
    """A model of a module that reads one colour image."""
    return Model(module, source, image_input((64, 80)), pose=pose, history=history)


@pytest.fixture
def stub() -> Stub:
    return make_stub()


@pytest.fixture(scope="session")
def stub_module() -> Stub:
    """The stub for tests that only read it."""
    return make_stub().eval()


@pytest.fixture(scope="session")
def pose() -> PoseSpec:
    return POSE


@pytest.fixture(scope="session")
def stub_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stub as ONNX; tests only read it."""
    history = [{"stage": "factorize", "ratio": "1/3", "seconds": 1.5, "layers": ["long"], "text": "x" * 1000}]
    path = tmp_path_factory.mktemp("stub") / "stub.onnx"
    return export_onnx(model_of(make_stub(), history=tuple(history)), path)
