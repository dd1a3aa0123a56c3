"""The public function: scores of models and files, and differences without labels."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compress
from compress.data.synthetic import DrawnPeople
from compress.errors import CompressError, DataError, NetworkError, UsageError
from compress.evaluation.evaluate import OutputDifference, evaluate
from compress.evaluation.inputs import UNSPECIFIED, calibration_inputs
from compress.evaluation.people import find_people
from compress.evaluation.score import EvaluationOptions, Score
from compress.model import Model
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.progress import Silent
from compress.runtime.torch_runner import TorchRunner


class Several(nn.Module):
    """Two inputs; outputs of ranks 2 and 4, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 3, 3, padding=1), nn.Linear(4, 5)

    def forward(self, image: Tensor, vector: Tensor) -> dict[str, Tensor]:
        maps = self.conv(image)
        return {"maps": maps, "values": self.linear(vector), "index": maps.flatten(1).argmax(dim=1)}


def several(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return compress.wrap(Several(), example=((1, 2, 8, 8), (1, 4)))


def scaled(model: Model, factor: float) -> Model:
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter *= factor
    return model.derive(module)


def test_the_difference_is_relative_squared_error_of_each_output() -> None:
    model = several()
    data = [(torch.randn(2, 8, 8), torch.randn(4)) for _ in range(3)]
    same = evaluate(model, data, difference=model)
    assert isinstance(same, OutputDifference)
    assert same.errors == {"maps": 0, "values": 0}
    assert same.inputs == 3
    half = evaluate(scaled(model, 0.5), data, difference=model)
    # Weights and biases are half as large, and so are the outputs.
    assert half.errors == pytest.approx({"maps": 0.25, "values": 0.25})
    assert half.largest == max(half.errors.values())


def test_a_network_with_other_outputs_can_not_be_compared() -> None:
    one = compress.wrap(nn.Conv2d(3, 4, 1), example=(1, 3, 8, 8))
    other = compress.wrap(nn.Conv2d(3, 5, 1), example=(1, 3, 8, 8))
    with pytest.raises(NetworkError, match="do not have the same output"):
        evaluate(other, [torch.randn(3, 8, 8)], difference=one)


def test_a_network_without_a_pose_specification_is_given_images_scaled_to_its_input() -> None:
    model = compress.wrap(nn.Conv2d(3, 4, 1), example=(1, 3, 8, 12))
    image = np.zeros((16, 24, 3), np.uint8)
    image[..., 0], image[..., 2] = 51, 204  # blue and red
    told: list[str] = []

    class Told(Silent):
        def say(self, message: str) -> None:
            told.append(message)

    (given,) = calibration_inputs(compress.images([image]), model, 5, progress=Told())
    assert isinstance(given, torch.Tensor)
    assert given.shape == (1, 3, 8, 12)
    assert given[0, :, 4, 6].tolist() == pytest.approx([0.8, 0.0, 0.2])
    assert told == [UNSPECIFIED]
    assert evaluate(model, [image], difference=model).largest == 0


def test_scores_need_a_pose_specification_and_labels() -> None:
    model = compress.wrap(nn.Conv2d(5, 4, 1), example=(1, 5, 8, 8))
    with pytest.raises(DataError, match=r"one image of one or three channels.*ready network inputs"):
        evaluate(model, [np.zeros((20, 20, 3), np.uint8)], difference=model)
    with pytest.raises(DataError, match="no pose specification"):
        evaluate(model, "synthetic:1:1")
    with pytest.raises(UsageError, match="annotated data"):
        evaluate(model, [torch.randn(5, 8, 8)])


def test_a_model_and_its_exported_file_are_scored_alike(tmp_path: Path) -> None:
    from compress.exporters.to_onnx import export_onnx

    model = compress.create("default")
    options = EvaluationOptions(view=View(128))
    score = evaluate(model, "synthetic:5:3", options=options)
    assert isinstance(score, Score)
    assert (score.images, score.height, score.runtime) == (3, 128, "torch")
    path = export_onnx(model, tmp_path / "model.onnx")
    exported = evaluate(str(path), DrawnPeople(5, 3), options=options)
    assert exported.runtime == "onnxruntime"
    assert exported.metrics["AP"] == pytest.approx(score.metrics["AP"], abs=0.02)
    difference = evaluate(path, "synthetic:5:3", difference=model, options=options)
    assert set(difference.errors) == {"heatmaps", "pafs"}
    assert difference.largest < 1e-6
    with pytest.raises(CompressError, match="missing"):
        evaluate(tmp_path / "missing.onnx", "synthetic:5:3")


def test_a_model_finds_people_in_an_image() -> None:
    model, sample = compress.create("default"), DrawnPeople(5, 1)[0]
    found = compress.find_people(model, sample.image, view=View(192))
    expected = find_people(TorchRunner.of(model), sample, view=View(192))
    assert len(found) == len(expected) > 0
    for person, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(person.keypoints, other.keypoints)


def test_calibration_inputs_come_from_data_sets_and_from_tensors() -> None:
    model = compress.create("default")
    images = calibration_inputs(DrawnPeople(1, 5), model, 3, 64)
    assert [tuple(x.shape[:3]) for x in images if isinstance(x, Tensor)] == [(1, 3, 64)] * 3
    ready = compress.images([torch.randn(2, 8, 8), torch.randn(3, 2, 8, 8)])
    one = compress.wrap(nn.Conv2d(2, 4, 1), example=(1, 2, 8, 8))
    found = calibration_inputs(ready, one, 3)  # type: ignore[arg-type]
    assert [tuple(x.shape) for x in found if isinstance(x, Tensor)] == [(1, 2, 8, 8)] * 3
    with pytest.raises(UsageError, match="at least 1"):
        calibration_inputs(DrawnPeople(1, 5), model, 0)


def test_channels_last_networks_get_channels_last_inputs() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 17, 3, stride=4, padding=1)

        def forward(self, image: Tensor) -> Tensor:
            return self.conv(image.permute(0, 3, 1, 2))

    pose = PoseSpec("coco17", "heatmap", height=64, width=48, stride=4, background=False, layout="nhwc")
    model = compress.wrap(Last(), example=(1, 64, 48, 3), pose=pose)
    (array, *_) = calibration_inputs(DrawnPeople(1, 1), model, 1)
    assert isinstance(array, Tensor)
    assert tuple(array.shape) == (1, 64, 48, 3)
    assert evaluate(model, "synthetic:1:1").images == 1
