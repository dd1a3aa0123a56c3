"""`compress.report`: what is measured and drawn for models of any kind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.checkpoint.save import save
from compress.checkpoint.wrap import wrap
from compress.errors import DataError, FileError
from compress.exporters.to_onnx import export_onnx
from compress.model import Model
from compress.pose.skeleton import COCO17
from compress.pose.spec import PoseSpec
from compress.reporting.report import ReportOptions, report

#: Input of the pose network and, in the same proportions, an image.
SIZE, IMAGE = (64, 48), (256, 192)
WRISTS = {"left_wrist": (0.25, 0.25), "right_wrist": (0.75, 0.5)}
OPTIONS = ReportOptions(runtimes=("torch-cpu",), threads=1, rounds=2, pictures=1)


class Fixed(nn.Module):
    """Always returns the same joints, as shares of the input's width and height."""

    def __init__(self, places: dict[str, tuple[float, float]]) -> None:
        super().__init__()
        points = torch.zeros(1, len(COCO17.joints), 3)
        for name, (x, y) in places.items():
            points[0, COCO17.joints.index(name)] = torch.tensor([x, y, 1.0])
        self.conv = nn.Conv2d(3, 1, 1)
        self.register_buffer("points", points)

    def forward(self, images: Tensor) -> Tensor:
        return self.points.expand(len(images), -1, -1) + 0 * self.conv(images).mean()


def pose_model(places: dict[str, tuple[float, float]], name: str) -> Model:
    pose = PoseSpec(
        skeleton="coco17", decoder="points", outputs=("points",), height=SIZE[0], width=SIZE[1], stride=1,
        background=False, joint_threshold=0.2,
    )  # fmt: skip
    return wrap(Fixed(places), (1, 3, *SIZE), pose=pose, name=name)


def network(scale: float, channels: int = 1) -> Model:
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 2, 1, bias=False)
    layer.weight.data *= scale
    return wrap(layer, (1, channels, 8, 8), name=f"layer{scale:g}")


def test_models_without_a_pose_are_compared_by_their_outputs(tmp_path: Path) -> None:
    tensors = [torch.rand(1, 8, 8) for _ in range(3)]
    done = compress.report([network(1), network(0.9), network(1.1)], data=tensors, options=OPTIONS)
    original, smaller, larger = done.models
    assert original.output_error is None
    assert smaller.output_error == pytest.approx(0.01, rel=1e-4)
    assert larger.output_error == pytest.approx(0.01, rel=1e-4)
    assert original.macs == 2 * 64
    assert original.flops == 4 * 64
    assert [m.metrics for m in done.models] == [{}, {}, {}]
    assert [list(m.latency) for m in done.models] == [["torch-cpu"]] * 3
    assert "3 images" in done.conditions["data"]
    assert "a FLOP count is twice that" in done.conditions["MACs"]
    files = done.save(tmp_path / "out")
    assert "1.00e-02" in files[1].read_text()


def test_without_data_costs_and_latency_remain() -> None:
    done = report([network(1), network(0.5)], options=OPTIONS)
    assert "data" not in done.conditions
    assert done.scenes == ()
    assert [m.output_error for m in done.models] == [None, None]
    assert done.models[1].latency["torch-cpu"].speedup is not None


def test_people_are_drawn_where_each_model_finds_them() -> None:
    moved = {name: (1 - x, 1 - y) for name, (x, y) in WRISTS.items()}
    models = [pose_model(WRISTS, "still"), pose_model(moved, "moved")]
    image = np.full((*IMAGE, 3), 90, np.uint8)
    done = report(models, data=[image], options=OPTIONS)
    ((_, png),) = done.scenes
    picture = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    height, width = 280, 280 * IMAGE[1] // IMAGE[0]
    assert picture.shape == (height + 24, 2 * width + 6, 3)
    tiles = picture[24:, :width], picture[24:, width + 6 :]
    for tile, places, others in zip(tiles, (WRISTS, moved), (moved, WRISTS), strict=True):
        for x, y in places.values():
            assert tile[round(y * height), round(x * width)].min() > 200, "no joint where the model found one"
        for x, y in others.values():
            assert abs(tile[round(y * height), round(x * width)].astype(int) - 90).max() < 10
        assert (abs(tile.astype(int) - 90).max(axis=2) < 10).mean() > 0.98, "more than two joints are drawn"


def test_unannotated_images_give_output_errors_instead_of_scores() -> None:
    moved = {name: (x, y + 0.25) for name, (x, y) in WRISTS.items()}
    models = [pose_model(WRISTS, "still"), pose_model(moved, "moved")]
    image = np.full((*IMAGE, 3), 90, np.uint8)
    done = report(models, data=[image], options=replace(OPTIONS, pictures=0))
    squares = sum(x * x + y * y + 1 for x, y in WRISTS.values())
    assert done.models[1].output_error == pytest.approx(2 * 0.25**2 / squares, rel=1e-4)
    assert done.scenes == ()


def test_annotated_data_gives_scores_and_no_output_errors() -> None:
    models = [pose_model(WRISTS, "still"), pose_model(WRISTS, "same")]
    done = report(models, data="synthetic:0:2", options=OPTIONS)
    assert [model.metric for model in done.models] == ["AP", "AP"]
    assert done.models[0].metrics == done.models[1].metrics
    assert done.models[1].output_error is None
    assert "COCO OKS AP" in done.conditions["accuracy"]
    ((_, png),) = done.scenes
    tiles = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
    assert tiles.shape[1] > 3 * 200, "the annotation has a tile of its own"


def test_paths_of_checkpoints_and_exported_files_are_compared_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model = network(1)
    save(pose_model(WRISTS, "still"), tmp_path / "still.pt")
    file = export_onnx(model, tmp_path / "layer.onnx")
    done = report([model, file], options=replace(OPTIONS, runtimes=("torch-cpu", "onnxruntime-cpu")))
    exported = done.models[1]
    assert (exported.label, exported.file, exported.params) == ("layer", "layer.onnx", None)
    assert exported.macs == model.cost.macs
    assert exported.size_bytes == file.stat().st_size
    assert list(exported.latency) == ["onnxruntime-cpu"]
    assert exported.latency["onnxruntime-cpu"].speedup is not None


def test_images_for_models_that_do_not_read_images_are_refused() -> None:
    with pytest.raises(DataError, match="one image of one or three channels"):
        report([network(1, 5), network(2, 5)], data=[np.zeros((8, 8, 3), np.uint8)], options=OPTIONS)


def test_an_existing_report_is_kept_as_a_whole(tmp_path: Path) -> None:
    done = report([network(1)], options=OPTIONS)
    (tmp_path / "report.csv").write_text("mine")
    with pytest.raises(FileError, match="exists"):
        done.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.csv"]
    done.save(tmp_path, force=True)
    assert len(list(tmp_path.iterdir())) == 4


def test_decoders_take_those_options_that_they_have() -> None:
    options: dict[str, Any] = {"upsample": 2, "normalized": False}
    how = ReportOptions(decoder_options=options)
    assert how.decoder(PoseSpec()).upsample == 2  # type: ignore[attr-defined]
    assert how.decoder(pose_model(WRISTS, "x").pose or PoseSpec()).normalized is False  # type: ignore[attr-defined]
