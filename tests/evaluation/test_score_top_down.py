"""Scores of networks that see one person: with a network that knows the truth, and with one that does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pose_specs import TOP_DOWN

from compress.data.boxes import Box, Boxes
from compress.data.images import ImageFolder
from compress.data.listed import Listed, ListedImages, joints_person
from compress.data.person_view import person_region, usable_people
from compress.data.sample import Dataset, Sample, iterate
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError
from compress.evaluation.people import find_people
from compress.evaluation.score import GT_BOXES, EvaluationOptions, evaluate_dataset
from compress.pose.crop import Region, box_region, crop_size, image_region, region_matrix, transform
from compress.pose.decoders.heatmap import HeatmapDecoder
from compress.pose.skeleton import COCO17, LIP16, LSP14, MPII16, Skeleton, convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets
from compress.pose.views import View


def single(skeleton: Skeleton) -> PoseSpec:
    return PoseSpec(
        skeleton=skeleton.name,
        decoder="heatmap",
        height=256,
        joint_threshold=0.2,
        decoder_options={"refine": "cubic"},
    )


class Knowing:
    """Gives the perfect maps of one crop after the other; of a mirrored batch, those of the mirrored people."""

    name, device, precision, threads = "torch", "cpu", "fp32", 1

    def __init__(
        self, pose: PoseSpec, places: Sequence[tuple[Region, NDArray[np.float32]]], *, flip: bool = False
    ) -> None:
        self.pose, self.flip, self.calls = pose, flip, 0
        self.places = iter(places)
        self.last: list[NDArray[np.float32]] = []
        self.shapes: list[tuple[int, ...]] = []

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        self.calls += 1
        self.shapes.append(images.shape)
        size = (images.shape[2], images.shape[3])
        if self.flip and self.calls % 2 == 0:
            people = [p[list(self.pose.joints.flip_order)] for p in self.last]
            for person in people:
                person[:, 0] = size[1] - 1 - person[:, 0]
        else:
            people = [self._next(size) for _ in range(len(images))]
            self.last = people
        cells = (size[0] // self.pose.stride, size[1] // self.pose.stride)
        maps = [
            heatmap_targets(
                [p], cells, self.pose.stride, sigma=8, skeleton=self.pose.joints, background=self.pose.background,
                first_cell=self.pose.first_cell,
            )
            for p in people
        ]  # fmt: skip
        return {"heatmaps": np.stack(maps)}

    def _next(self, size: tuple[int, int]) -> NDArray[np.float32]:
        region, keypoints = next(self.places)
        moved = keypoints.copy()
        moved[:, :2] = transform(keypoints[:, :2], region_matrix(region, size, corner_grid=self.pose.corner_grid))
        return moved

    def close(self) -> None:
        pass


def truth_of(dataset: Dataset, pose: PoseSpec) -> Iterator[tuple[Region, NDArray[np.float32]]]:
    for sample in iterate(dataset):
        for person, _ in usable_people(sample, COCO17):
            keypoints = convert_keypoints(person.keypoints, get_skeleton(sample.skeleton), pose.joints)
            yield person_region(person, pose.size), keypoints


@pytest.mark.parametrize(
    "options",
    [EvaluationOptions(), EvaluationOptions(view=View(flip=True)), EvaluationOptions(HeatmapDecoder(blur=11))],
    ids=["plain", "flip", "blur"],
)
def test_a_network_that_knows_the_truth_scores_nearly_one(options: EvaluationOptions) -> None:
    dataset = DrawnPeople(3, 6)
    runner = Knowing(TOP_DOWN, list(truth_of(dataset, TOP_DOWN)), flip=options.view.flip)
    done: list[int] = []
    score = evaluate_dataset(dataset, runner, options, progress=lambda n, _: done.append(n)).score
    assert score.headline == ("AP", score.metrics["AP"])
    assert score.metrics["AP"] > 0.95
    assert score.boxes == GT_BOXES
    assert "gt boxes" in score.convention
    assert ("no flip" in score.convention) == (not options.view.flip)
    assert (score.height, score.images, done) == (256, 6, [1, 2, 3, 4, 5, 6])
    assert {shape[1:] for shape in runner.shapes} == {(3, 256, 192)}


def test_box_scores_rank_people_and_duplicates_are_removed() -> None:
    dataset = DrawnPeople(3, 4)
    places: list[tuple[Region, NDArray[np.float32]]] = []
    by_image: dict[int, tuple[Box, ...]] = {}
    people = 0
    for sample in iterate(dataset):
        boxes = []
        for person, keypoints in usable_people(sample, COCO17):
            people += 1
            box = tuple(person.box.tolist())
            for score in (0.9, 0.6):  # each person twice
                boxes.append(Box(box, score))
                places.append((box_region(box, TOP_DOWN.size), keypoints))
        by_image[sample.image_id] = tuple(boxes)
    found = evaluate_dataset(dataset, Knowing(TOP_DOWN, places), EvaluationOptions(boxes=Boxes("found.json", by_image)))
    assert found.score.boxes == "found.json"
    assert found.score.metrics["AP"] > 0.95
    assert len(found.detections) == people
    assert all(0.5 < d["score"] <= 0.91 for d in found.detections)
    nobody = evaluate_dataset(dataset, Knowing(TOP_DOWN, []), EvaluationOptions(boxes=Boxes("none.json", {})))
    assert nobody.detections == []
    assert nobody.score.headline == ("AP", 0)


def listed(folder: Path, skeleton: Skeleton, *, whole: bool, facts: bool = False) -> ListedImages:
    """Three images of one or two random people."""
    import cv2

    entries = []
    rng = np.random.default_rng(0)
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), np.full((200, 160, 3), 90, np.uint8))
        people = []
        for _ in range(1 if whole else 1 + number % 2):
            keypoints = np.full((len(skeleton.joints), 3), 2.0)
            keypoints[:, :2] = rng.uniform(10, 150, (len(skeleton.joints), 2))
            people.append(joints_person(keypoints))
        extra: tuple[dict[str, Any], ...] = ({"head_box": [0, 0, 30, 40]},) * len(people) if facts else ()
        entries.append(Listed(f"{number}.png", tuple(people), extra))
    return ListedImages("listed", folder, entries, skeleton, whole=whole)


def people_of(dataset: Dataset, pose: PoseSpec, shift: float = 0.0) -> list[tuple[Region, NDArray[np.float32]]]:
    places = []
    for sample in iterate(dataset):
        for person in sample.people:
            moved = person.keypoints.copy()
            moved[:, 0] += shift
            places.append((person_region(person, pose.size), moved))
    return places


@pytest.mark.parametrize(
    ("skeleton", "metric", "words"),
    [(MPII16, "PCKh@0.5", "0.6 x diagonal"), (LIP16, "PCKh@0.5", "neck to head top"), (LSP14, "PCK@0.2", "torso")],
    ids=["mpii", "lip", "lsp"],
)
def test_single_people_are_scored_by_the_metric_of_their_data(
    tmp_path: Path, skeleton: Skeleton, metric: str, words: str
) -> None:
    pose = single(skeleton)
    dataset = listed(tmp_path, skeleton, whole=skeleton is not MPII16, facts=skeleton is MPII16)
    score = evaluate_dataset(dataset, Knowing(pose, people_of(dataset, pose))).score
    assert score.headline == (metric, score.metrics[metric])
    assert score.metrics[metric] > 0.9
    assert words in score.convention
    far = evaluate_dataset(dataset, Knowing(pose, people_of(dataset, pose, shift=60))).score
    assert far.metrics[metric] < score.metrics[metric] - 0.3


def test_data_boxes_and_networks_that_do_not_match_are_refused(tmp_path: Path) -> None:
    lsp = listed(tmp_path, LSP14, whole=True)
    with pytest.raises(DataError, match=r"one by one.*COCO's joints"):
        evaluate_dataset(lsp, Knowing(PoseSpec(), []))
    with pytest.raises(DataError, match=r"one by one.*--boxes"):
        evaluate_dataset(lsp, Knowing(single(LSP14), []), EvaluationOptions(boxes=Boxes("x", {})))
    with pytest.raises(DataError, match="takes no boxes"):
        evaluate_dataset(DrawnPeople(1, 1), Knowing(PoseSpec(), []), EvaluationOptions(boxes=Boxes("x", {})))
    data = listed(tmp_path, MPII16, whole=False)
    with pytest.raises(DataError, match="boxes of the heads"):
        evaluate_dataset(data, Knowing(single(MPII16), people_of(data, single(MPII16))))
    with pytest.raises(DataError, match="no annotations"):
        evaluate_dataset(ImageFolder(tmp_path), Knowing(TOP_DOWN, []))


def test_an_image_without_boxes_shows_one_person() -> None:
    sample = DrawnPeople(3, 1)[0]
    _, keypoints = usable_people(sample, COCO17)[0]
    full = replace(sample, people=())
    region = image_region(sample.image.shape, TOP_DOWN.size)
    for found in (
        find_people(Knowing(TOP_DOWN, [(region, keypoints)]), sample.image),
        find_people(Knowing(TOP_DOWN, [(region, keypoints)]), full),
    ):
        (person,) = found
        there = keypoints[:, 2] > 0
        assert np.abs(person.keypoints[there, :2] - keypoints[there, :2]).max() < 5
        assert 0 < person.score <= 1


def test_an_annotated_sample_shows_each_person(tmp_path: Path) -> None:
    dataset = DrawnPeople(3, 6)
    sample: Sample = max(iterate(dataset), key=lambda s: len(s.people))
    people = usable_people(sample, COCO17)
    places = [(person_region(person, TOP_DOWN.size), keypoints) for person, keypoints in people]
    assert len(people) > 1
    assert len(find_people(Knowing(TOP_DOWN, places), sample)) == len(people)


def test_another_height_keeps_the_proportions() -> None:
    assert crop_size(TOP_DOWN) == (256, 192)
    assert crop_size(TOP_DOWN, 384) == (384, 288)
    assert crop_size(TOP_DOWN, 128) == (128, 96)
    assert crop_size(single(LIP16)) == (256, 256)
