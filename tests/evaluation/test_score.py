"""From images to scores: with a network that knows the truth, with one that sees nobody, and with the real one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.checkpoint.load import load
from compress.data.coco import CocoDataset
from compress.data.images import ImageFolder
from compress.data.sample import Dataset, Person, Sample, iterate
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError
from compress.evaluation.people import find_people
from compress.evaluation.score import EvaluationOptions, evaluate_dataset
from compress.exporters.to_onnx import export_onnx
from compress.exporters.to_openvino import export_openvino
from compress.pose.decoders.paf import PafDecoder
from compress.pose.metrics.oks import METRICS, keypoint_ap
from compress.pose.prepare import prepare
from compress.pose.skeleton import COCO17, OPENPOSE18, convert_keypoints
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets
from compress.pose.views import View
from compress.runtime.opening import open_runner
from compress.runtime.runner import Runner

Maps = dict[str, NDArray[np.float32]]


class Oracle:
    """Gives the perfect maps of one sample after the other."""

    name, device, precision, threads = "torch", "cpu", "fp32", 1

    def __init__(self, dataset: Dataset, height: int, *, blind: bool = False) -> None:
        self.pose = PoseSpec(height=height)
        self.blind = blind
        self.samples: Iterator[Sample] = iterate(dataset)
        self.shapes: list[tuple[int, ...]] = []

    def run(self, images: NDArray[np.float32]) -> Maps:
        self.shapes.append(images.shape)
        sample = next(self.samples)
        height = images.shape[2]
        prepared = prepare(sample.image, self.pose, height)
        assert np.array_equal(images[0], prepared.array)
        people = []
        for person in sample.people if not self.blind else ():
            keypoints = convert_keypoints(person.keypoints, COCO17, OPENPOSE18)
            keypoints[:, :2] = (keypoints[:, :2] + 0.5) * prepared.scale - 0.5 + prepared.pad
            people.append(keypoints)
        size = (height // 8, images.shape[3] // 8)
        return {"heatmaps": heatmap_targets(people, size, 8)[None], "pafs": paf_targets(people, size, 8)[None]}

    def close(self) -> None:
        pass


class Stage:
    """A person alone in the middle, a person in a corner of a tall image, and an empty image."""

    name, annotated = "stage", True

    def __init__(self) -> None:
        standing = np.array([
            (0, -90), (4, -95), (-4, -95), (9, -92), (-9, -92), (20, -70), (-20, -70), (28, -35), (-28, -35), (30, 0),
            (-30, 0), (13, 0), (-13, 0), (15, 50), (-15, 50), (16, 95), (-16, 95),
        ])  # fmt: skip
        self.places = [((240, 320), (160.0, 120.0)), ((500, 300), (60.0, 380.0)), ((200, 200), None)]
        self.people = [
            ()
            if place is None
            else (Person(np.column_stack([standing + place, np.full(17, 2)]).astype(np.float32),
                         np.array([place[0] - 40, place[1] - 110, 80, 220], np.float32), 9000.0),)
            for _, place in self.places
        ]  # fmt: skip

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        size, _ = self.places[index]
        image = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        return Sample(image, self.people[index], np.ones(size, np.bool_), 10 + index, f"{index}.png")

    def ground_truth(self) -> dict[str, Any]:
        return {
            "images": [{"id": 10 + i, "file_name": f"{i}.png", "height": 1, "width": 1} for i in range(3)],
            "annotations": [
                {"id": i + 1, "image_id": 10 + i, "category_id": 1, "iscrowd": 0, "num_keypoints": 17,
                 "keypoints": p.keypoints.ravel().tolist(), "bbox": p.box.tolist(), "area": p.area}
                for i, people in enumerate(self.people) for p in people
            ],
            "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints)}],
        }  # fmt: skip


@pytest.mark.parametrize("mode", ["fast", "compat"])
@pytest.mark.parametrize("height", [256, 368])
def test_perfect_maps_score_one(mode: Any, height: int) -> None:
    found = evaluate_dataset(Stage(), Oracle(Stage(), height), EvaluationOptions(PafDecoder(mode=mode)))
    assert found.score.metrics["AP"] == pytest.approx(1)
    assert found.score.metrics["AR"] == pytest.approx(1)
    assert [d["image_id"] for d in found.detections] == [10, 11]


def test_perfect_maps_find_the_joints_of_drawn_people() -> None:
    dataset = DrawnPeople(3, 6)
    found = evaluate_dataset(dataset, Oracle(dataset, 256))
    assert found.score.metrics["AP50"] > 0.9
    assert found.score.metrics["AP"] > 0.8


def test_a_given_height_overrides_the_networks_own() -> None:
    oracle = Oracle(Stage(), 368)
    found = evaluate_dataset(Stage(), oracle, EvaluationOptions(view=View(256)))
    assert [shape[2] for shape in oracle.shapes] == [256] * 3
    assert found.score.height == 256
    assert found.score.metrics["AP"] == pytest.approx(1)
    assert evaluate_dataset(Stage(), Oracle(Stage(), 368)).score.height == 368


def test_finding_nobody_scores_zero() -> None:
    found = evaluate_dataset(Stage(), Oracle(Stage(), 256, blind=True))
    assert found.detections == []
    assert found.score.metrics["AP"] == found.score.metrics["AR"] == 0


@pytest.mark.parametrize("upsample", [1, 2, 8])
def test_a_score_names_its_decoder_and_any_upsampling_finds_the_people(upsample: int) -> None:
    options = EvaluationOptions(PafDecoder(upsample=upsample, assignment="jv"))
    found = evaluate_dataset(Stage(), Oracle(Stage(), 368), options)
    assert found.score.convention.endswith(f"decoder fast x{upsample}, jv assignment")
    assert found.score.metrics["AP50"] == pytest.approx(1)
    compat = evaluate_dataset(Stage(), Oracle(Stage(), 368), EvaluationOptions(PafDecoder(mode="compat")))
    assert compat.score.convention.endswith("decoder compat")


def test_a_score_carries_its_conditions_and_goes_into_json() -> None:
    steps: list[tuple[int, int]] = []
    found = evaluate_dataset(Stage(), Oracle(Stage(), 256), progress=lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    record = json.loads(json.dumps(asdict(found.score)))
    assert tuple(record["metrics"]) == METRICS
    assert record["seconds"] > 0
    del record["metrics"], record["seconds"]
    assert record == {
        "images": 3, "runtime": "torch", "device": "cpu", "precision": "fp32", "height": 256, "data": "stage",
        "convention": "COCO OKS AP, ten thresholds; single scale, no flip, decoder fast x4, greedy assignment",
        "boxes": None,
        "broken": [],
    }  # fmt: skip
    assert keypoint_ap(Stage().ground_truth(), json.loads(json.dumps(found.detections))) == found.score.metrics


def test_only_the_images_of_the_data_set_are_scored() -> None:
    class First(Stage):
        def __len__(self) -> int:
            return 1

    found = evaluate_dataset(First(), Oracle(First(), 256))
    assert found.score.images == 1
    assert found.score.metrics["AR"] == pytest.approx(1)  # the person in the second image is not missed


def test_people_of_one_image_are_those_that_are_scored() -> None:
    poses = find_people(Oracle(Stage(), 256), Stage()[0].image)
    assert len(poses) == 1
    truth = convert_keypoints(Stage()[0].people[0].keypoints, COCO17, OPENPOSE18)
    assert np.abs(poses[0].keypoints[:, :2] - truth[:, :2]).max() < 1.5


def test_images_without_annotations_are_refused_before_anything_runs(tmp_path: Path) -> None:
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((20, 20, 3), np.uint8))
    oracle = Oracle(Stage(), 256)
    with pytest.raises(DataError, match=r"no annotations to score against.*--annotations"):
        evaluate_dataset(ImageFolder(tmp_path), oracle)
    assert not oracle.shapes


@pytest.fixture(scope="session")
def real_people(assets: Path) -> CocoDataset:
    images = assets / "images" / "coco" / "val2017"
    return CocoDataset(assets / "annotations" / "person_keypoints_val2017_subset.json", images)


@pytest.fixture(scope="session")
def real_weights(assets: Path) -> Path:
    return assets / "weights" / "human-pose-estimation-0001" / "human-pose-estimation-0001.pth"


@pytest.mark.real
@pytest.mark.slow
def test_the_real_network_reaches_its_average_precision(real_people: CocoDataset, real_weights: Path) -> None:
    score = evaluate_dataset(real_people, open_runner(real_weights)).score
    assert (score.images, score.height, score.runtime) == (100, 368, "torch")
    assert score.metrics["AP"] >= 0.385
    assert score.metrics["AP50"] >= 0.64


class Few:
    """Some images of a data set."""

    annotated = True

    def __init__(self, dataset: CocoDataset, indices: range) -> None:
        self.dataset, self.indices, self.name = dataset, indices, f"{len(indices)} of {dataset.name}"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.indices[index]]

    def ground_truth(self) -> dict[str, Any]:
        return self.dataset.ground_truth()


@pytest.mark.real
@pytest.mark.slow
def test_all_runtimes_score_the_real_network_alike(
    real_people: CocoDataset, real_weights: Path, tmp_path: Path
) -> None:
    onnx = export_onnx(load(real_weights), tmp_path / "model.onnx")
    xml, _ = export_openvino(onnx, tmp_path / "model.xml")
    few = Few(real_people, range(0, 100, 8))
    torch_score, *others = [
        evaluate_dataset(few, open_runner(path), EvaluationOptions(view=View(256))).score
        for path in (real_weights, onnx, xml)
    ]
    assert torch_score.metrics["AP"] > 0.15
    assert [other.runtime for other in others] == ["onnxruntime", "openvino"]
    for other in others:
        for name, value in torch_score.metrics.items():
            assert other.metrics[name] == pytest.approx(value, abs=0.003)


@pytest.mark.real
def test_the_published_int8_release_runs_on_the_same_inputs(real_people: CocoDataset, real_weights: Path) -> None:
    released: Runner = open_runner(real_weights.with_suffix(".xml"))
    assert released.precision == "int8"
    source = open_runner(real_weights)
    assert released.pose == source.pose
    for index, height in ((0, 256), (3, 184)):
        array = prepare(real_people[index].image, source.pose, height).array[None]
        theirs, ours = released.run(array), source.run(array)
        assert theirs["heatmaps"].shape == ours["heatmaps"].shape
        # The weights are the release's own without its quantisation, which changes its fields more than its heatmaps.
        assert np.corrcoef(theirs["heatmaps"].ravel(), ours["heatmaps"].ravel())[0, 1] > 0.999
        assert np.corrcoef(theirs["pafs"].ravel(), ours["pafs"].ravel())[0, 1] > 0.965
        # In another order of the colours it would see something else.
        swapped = released.run(np.ascontiguousarray(array[:, ::-1]))
        assert np.corrcoef(swapped["pafs"].ravel(), ours["pafs"].ravel())[0, 1] < 0.95


@pytest.mark.real
@pytest.mark.slow
def test_the_published_int8_release_is_scored_by_the_same_call(real_people: CocoDataset, real_weights: Path) -> None:
    few = Few(real_people, range(0, 100, 4))
    score = evaluate_dataset(
        few, open_runner(real_weights.with_suffix(".xml")), EvaluationOptions(view=View(256))
    ).score
    assert (score.images, score.runtime, score.precision) == (25, "openvino", "int8")
    assert score.metrics["AP"] > 0.2
