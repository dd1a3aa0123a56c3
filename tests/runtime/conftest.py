"""One small network for all runtimes: a convolution whose maps are known, as a module, ONNX and OpenVINO IR."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.pose.spec import PoseSpec
from compress.runtime.openvino_runner import shared_core

WEIGHT = np.random.default_rng(0).normal(0, 0.2, (57, 3, 8, 8)).astype(np.float32)
BIAS = np.random.default_rng(1).normal(0, 0.2, 57).astype(np.float32)


class OneConvolution(nn.Module):
    """Two stages; the first gives other maps than the second."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 57, 8, 8)
        self.dropout = nn.Dropout(0.5)
        self.conv.weight.data = torch.from_numpy(WEIGHT.copy())
        self.conv.bias.data = torch.from_numpy(BIAS.copy())

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        maps = self.dropout(self.conv(images))
        final = {"heatmaps": maps[:, :19], "pafs": maps[:, 19:]}
        return [{name: value + 1 for name, value in final.items()}, final]


def write_onnx(
    path: Path,
    *,
    shape: tuple[int | str, ...] = ("batch", 3, "height", "width"),
    names: tuple[str, ...] = ("heatmaps", "pafs"),
    splits: tuple[int, ...] = (19, 38),
    metadata: dict[str, str] | None = None,
) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = (WEIGHT[: sum(splits)], BIAS[: sum(splits)])
    if shape[1] == 1:
        weight = weight[:, :1]
    nodes = [
        helper.make_node("Conv", ["images", "weight", "bias"], ["maps"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Split", ["maps", "splits"], list(names), axis=1),
    ]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", count, "h", "w"])
        for name, count in zip(names, splits, strict=True)
    ]
    graph = helper.make_graph(
        nodes,
        "one-convolution",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
        outputs,
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(bias, "bias"),
            numpy_helper.from_array(np.array(splits, np.int64), "splits"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {"compress.pose": json.dumps(PoseSpec().to_dict())} if metadata is None else metadata
    helper.set_model_props(model, metadata)
    onnx.save(model, str(path))
    return path


def write_ir(path: Path, *, pose: str | None = None, **options: Any) -> Path:
    import openvino

    model = shared_core().read_model(write_onnx(path.with_suffix(".onnx"), **options))
    if pose != "":
        model.set_rt_info(pose or json.dumps(PoseSpec().to_dict()), ["compress", "pose"])
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


@pytest.fixture(scope="session")
def onnx_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_onnx(tmp_path_factory.mktemp("onnx") / "model.onnx")


@pytest.fixture(scope="session")
def xml_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ir(tmp_path_factory.mktemp("openvino") / "model.xml")


@pytest.fixture
def one_convolution() -> OneConvolution:
    return OneConvolution()


@pytest.fixture(scope="session")
def make_onnx() -> Callable[..., Path]:
    return write_onnx


@pytest.fixture(scope="session")
def make_ir() -> Callable[..., Path]:
    return write_ir


@pytest.fixture(scope="session")
def expected() -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """The maps of images by a plain product."""

    def maps(images: np.ndarray) -> dict[str, np.ndarray]:
        n, _, height, width = images.shape
        patches = images.astype(np.float64).reshape(n, 3, height // 8, 8, width // 8, 8)
        found = np.einsum("nchywx,ocyx->nohw", patches, WEIGHT.astype(np.float64)) + BIAS[:, None, None]
        return {"heatmaps": found[:, :19], "pafs": found[:, 19:]}

    return maps
