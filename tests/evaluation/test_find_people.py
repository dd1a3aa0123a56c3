"""People in one image: by which decoder, in which places, from which layout; a decoder of one's own to the score."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import own_decoder  # noqa: F401
import pytest
from numpy.typing import NDArray

from compress.data.boxes import Box
from compress.data.person_view import usable_people
from compress.data.sample import Person, Sample, iterate
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError, UsageError
from compress.evaluation.inputs import network_inputs
from compress.evaluation.people import find_people
from compress.evaluation.score import EvaluationOptions, evaluate_dataset
from compress.pose.decoders.registry import get_decoder
from compress.pose.metrics.oks import people_records
from compress.pose.skeleton import COCO17, Skeleton
from compress.pose.spec import PoseSpec
from compress.pose.views import View

Arrays = dict[str, NDArray[np.float32]]


class Marked:
    """Sees people whose joints are marked in the image by a colour: joint k in channel values 10 + 10 k."""

    name, device, precision, threads = "torch", "cpu", "fp32", 1

    def __init__(self, pose: PoseSpec) -> None:
        self.pose: PoseSpec | None = pose
        self.shapes: list[tuple[int, ...]] = []

    def run(self, inputs: NDArray[np.float32]) -> Arrays:
        assert self.pose is not None
        self.shapes.append(inputs.shape)
        images = inputs if self.pose.layout == "nchw" else inputs.transpose(0, 3, 1, 2)
        count = len(self.pose.joints.joints)
        maps = np.stack([-np.abs(images[:, 0] - (10 + 10 * joint)) for joint in range(count)], axis=1) + 1
        if self.pose.decoder == "simcc":
            # Only the row of the mark is read, and only its column.
            return {"simcc_x": maps.max(axis=2), "simcc_y": maps.max(axis=3)}
        if self.pose.decoder == "points":
            rows, columns = np.divmod(maps.reshape(*maps.shape[:2], -1).argmax(axis=2), maps.shape[3])
            return {"points": np.stack([columns, rows], axis=-1).astype(np.float32)}
        return {self.pose.outputs[0]: maps}

    def close(self) -> None:
        pass


TRIANGLE = Skeleton("triangle", ("top", "left_foot", "right_foot"), ((0, 1), (0, 2)))
PLACES = np.array([[20, 8], [8, 40], [33, 37]])


def marked_image(layout_color: str = "bgr") -> NDArray[np.uint8]:
    image = np.zeros((48, 48, 3), np.uint8)
    for joint, (x, y) in enumerate(PLACES):
        image[y, x] = 10 + 10 * joint
    return image


def pose_of(decoder: str, **changes: object) -> PoseSpec:
    values = {
        "skeleton": TRIANGLE, "decoder": decoder, "height": 48, "stride": 1, "mean": (0.0,) * 3, "scale": (1.0,) * 3,
        "background": False, "fill": (0.0,) * 3,
    }  # fmt: skip
    options = {
        "heatmap": {"refine": "none"},
        "simcc": {"split_ratio": 1},
        "points": {"normalized": False, "score": "none"},
    }
    return PoseSpec(**{**values, "decoder_options": options.get(decoder, {}), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("decoder", ["heatmap", "simcc", "points"])
@pytest.mark.parametrize(
    "changes", [{}, {"layout": "nhwc"}, {"color": "gray", "mean": (0.0,), "scale": (1.0,)}], ids=str
)
def test_a_person_is_found_by_each_decoder_in_each_layout(decoder: str, changes: dict[str, object]) -> None:
    runner = Marked(pose_of(decoder, **changes))
    (person,) = find_people(runner, marked_image())
    np.testing.assert_array_equal(person.keypoints[:, :2], PLACES)
    assert person.score == pytest.approx(1, abs=0.01)
    channels = 1 if "color" in changes else 3
    assert runner.shapes == [(1, 48, 48, 3) if "layout" in changes else (1, channels, 48, 48)]


@pytest.mark.parametrize("decoder", ["heatmap", "simcc", "points"])
def test_the_flip_test_of_a_symmetric_network_changes_nothing(decoder: str) -> None:
    pose = pose_of(decoder)

    class Symmetric(Marked):
        def run(self, inputs: NDArray[np.float32]) -> Arrays:
            outputs = super().run(inputs)
            # In a mirrored image the feet are marked by each other's colours.
            if len(self.shapes) % 2 == 0:
                outputs = {name: value[:, [0, 2, 1]] for name, value in outputs.items()}
            return outputs

    runner = Symmetric(pose)
    (person,) = find_people(runner, marked_image(), view=View(flip=True))
    np.testing.assert_allclose(person.keypoints[:, :2], PLACES, atol=1e-4)
    assert len(runner.shapes) == 2


def test_a_custom_decoder_works_from_the_image_to_the_score() -> None:
    assert "own_decoder" in sys.modules  # imported above: no name in a file imports a decoder
    pose = pose_of(
        "own_decoder:Brightest", skeleton=COCO17.name, outputs=("cells",), decoder_options={"gain": 0.5},
        joint_threshold=0.2, height=64, width=64,
    )  # fmt: skip
    (person,) = find_people(Marked(pose), np.zeros((20, 20, 3), np.uint8))
    assert person.score == 0.5
    runner = Marked(pose)
    done = evaluate_dataset(DrawnPeople(3, 2), runner)
    people = sum(len(usable_people(sample, COCO17)) for sample in iterate(DrawnPeople(3, 2)))
    assert 0 < len(done.detections) <= people
    assert "decoder Brightest" in done.score.convention
    assert done.score.boxes == "gt boxes"
    other = evaluate_dataset(DrawnPeople(3, 2), runner, EvaluationOptions(get_decoder(pose, gain=0.25)))
    assert {record["score"] for record in other.detections} == {0.25}


def test_boxes_scale_scores_and_are_refused_by_networks_that_need_none() -> None:
    runner = Marked(pose_of("heatmap"))
    image = marked_image()
    boxes = [Box((-0.5, -0.5, 38.4, 38.4), 0.5), Box((4.5, 4.5, 38.4, 38.4), 0.25)]
    first, second = find_people(runner, image, boxes=boxes)
    assert first.score == pytest.approx(0.5, abs=0.01)
    assert second.score == pytest.approx(0.25, abs=0.01)
    assert find_people(runner, image, boxes=[]) == []
    with pytest.raises(DataError, match="takes no boxes"):
        find_people(Marked(pose_of("yolo")), image, boxes=boxes)


def test_without_a_pose_specification_the_error_says_what_to_do() -> None:
    runner = Marked(pose_of("heatmap"))
    runner.pose = None
    with pytest.raises(DataError, match=r"no pose specification.*pose=PoseSpec"):
        find_people(runner, marked_image())


def test_a_decoder_without_maps_refuses_scales() -> None:
    with pytest.raises(UsageError, match=r"simcc can't be averaged over scales.*Leave out scales"):
        find_people(Marked(pose_of("simcc")), marked_image(), view=View(scales=(1.0, 0.5)))


@pytest.mark.parametrize("height", [0, -3])
def test_a_height_that_is_not_positive_is_refused(height: int) -> None:
    with pytest.raises(UsageError, match="height"):
        View(height=height)


def test_inputs_of_a_sample_are_what_the_network_is_run_on() -> None:
    sample = DrawnPeople(3, 1)[0]
    for decoder in ("heatmap", "yolo", "paf"):
        pose = pose_of(decoder, skeleton="openpose18", height=64, stride=8)
        inputs = network_inputs(sample, pose, View(128))
        alone = network_inputs(replace(sample, people=()), pose)
        assert len(inputs) == (len(usable_people(sample, COCO17)) if decoder == "heatmap" else 1)
        assert {array.shape[1] for array in inputs} == {128}
        assert [array.shape[1] for array in alone] == [64]
    crowd = Person(np.zeros((17, 3), np.float32), np.zeros(4, np.float32), 0.0, crowd=True)
    only_a_crowd = Sample(sample.image, (crowd,), sample.mask, 1, "crowd")
    (array,) = network_inputs(only_a_crowd, pose_of("heatmap", height=64))
    assert array.shape == (3, 64, 64)


def test_records_keep_the_joints_of_their_target() -> None:
    (person,) = find_people(Marked(pose_of("heatmap")), marked_image())
    (record,) = people_records([person], 7, TRIANGLE, TRIANGLE)
    assert record["image_id"] == 7
    assert np.reshape(record["keypoints"], (3, 3))[:, :2].tolist() == PLACES.tolist()
    (coco,) = people_records([person], 7, TRIANGLE)
    assert coco["keypoints"] == [0.0] * 51
