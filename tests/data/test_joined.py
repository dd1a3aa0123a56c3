"""Joined data sets, data sets by person, and data sets with unreadable images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from coco_folder import record, write_images, write_record
from holes import Holes
from test_single_people import lsp, mpii

from compress.data.augment import Augmentation
from compress.data.coco import CocoDataset
from compress.data.each_person import EachPerson
from compress.data.joined import Joined, check_joints, known_joints
from compress.data.source import open_data
from compress.data.synthetic import DrawnPeople
from compress.data.tolerant import Tolerant
from compress.errors import DataError
from compress.pose.skeleton import COCO17, CROWDPOSE14, LIP16, LSP14, MPII16, OPENPOSE18
from compress.training.batches import Span
from compress.training.examples import ExampleOptions, Examples
from compress.zoo.registry import pose_spec


def test_joined_sets_follow_each_other_and_keep_their_joints(tmp_path: Path) -> None:
    one, two = open_data(f"lsp:{lsp(tmp_path / 'l')},train"), open_data(f"mpii:{mpii(tmp_path / 'm')},train")
    both = Joined(one, two)
    assert (len(both), both.name, both.annotated) == (5, "lsp:train + mpii:train", True)
    assert [both[i].name for i in range(5)] == ["im0001.jpg", "im0002.jpg", "im0003.jpg", "a.jpg", "b.jpg"]
    assert [both[i].skeleton for i in (2, 3)] == [LSP14.name, MPII16.name]
    assert [both[i].image_id for i in range(5)] == [1, 2, 3, 4, 5]
    for index in (-1, 5):
        with pytest.raises(IndexError):
            both[index]
    with pytest.raises(DataError, match="different joints can't be scored together"):
        both.ground_truth()


def test_the_truth_of_joined_sets_names_the_images_of_the_samples() -> None:
    parts = (DrawnPeople(1, 2, (64, 64)), DrawnPeople(2, 3, (64, 64)))
    both = Joined(*parts)
    truth = both.ground_truth()
    assert [image["id"] for image in truth["images"]] == [1, 2, 3, 4, 5]
    for index in range(5):
        entries = [a["bbox"] for a in truth["annotations"] if a["image_id"] == index + 1]
        assert entries == [pytest.approx(person.box.tolist()) for person in both[index].people]
    assert [a["id"] for a in truth["annotations"]] == list(range(1, len(truth["annotations"]) + 1))


def missing(source: object, target: object) -> set[str]:
    known = known_joints(source, target)  # type: ignore[arg-type]
    return {joint for joint, is_known in zip(target.joints, known, strict=True) if not is_known}  # type: ignore[attr-defined]


def test_a_data_set_lacks_the_joints_that_do_not_follow_from_its_own() -> None:
    assert missing(MPII16, LSP14) == missing(LIP16, LSP14) == set()
    assert missing(COCO17, LSP14) == {"neck", "head_top"}
    assert missing(COCO17, OPENPOSE18) == set()  # the neck lies between the shoulders
    assert missing(LSP14, MPII16) == set()  # pelvis and thorax too
    assert missing(LSP14, LIP16) == {"spine"}
    assert missing(CROWDPOSE14, LSP14) == set()
    assert missing(CROWDPOSE14, COCO17) == {"nose", "left_eye", "right_eye", "left_ear", "right_ear"}


def test_joints_without_annotations_are_listed_or_refused(tmp_path: Path) -> None:
    one, two = open_data(f"lsp:{lsp(tmp_path / 'l')},train"), open_data(f"mpii:{mpii(tmp_path / 'm')},train")
    result = check_joints((one, two), pose_spec("context-cpm"))
    assert [joints.missing for joints in result] == [("spine",), ("spine",)]
    assert len(result[0].known) == 15
    assert check_joints((Tolerant(Holes(4, {0, 1})),), pose_spec("esa"))[0].missing == ()
    with pytest.raises(DataError, match=r"lsp:train does not have the joints.*without nose"):
        check_joints((one,), pose_spec("lightweight-openpose"))
    assert check_joints((DrawnPeople(1, 1),), pose_spec("lightweight-openpose"))[0].missing == ()


def test_a_training_mixes_people_of_two_data_sets_with_the_joints_of_the_network(tmp_path: Path) -> None:
    data = EachPerson(Joined(open_data(f"lsp:{lsp(tmp_path / 'l')},train"), open_data(f"mpii:{mpii(tmp_path / 'm')}")))
    pose = pose_spec("repose")
    still = Augmentation(scale=(1, 1), rotate=0, flip=0, shift=0, colour=0)
    examples = Examples(data, pose, ExampleOptions((64, 64), still, seed=0, labels=True, joint_weights="partial"))
    (batch,) = examples.batches(Span(batch_size=6, start=0, steps=1, workers=0))
    assert batch.targets["heatmaps"].shape == (6, 14, 64, 64)
    # All joints of LSP lie in their views; some of MPII lie outside their views, which are smaller.
    labelled = (batch.mask.flatten(1) > 0).sum(dim=1)
    assert labelled.tolist().count(14) == 3
    assert 0 < int(labelled.min()) < 14
    # By the partial loss all examples have the same weight, however many joints they have.
    assert batch.mask.flatten(1).sum(dim=1).tolist() == pytest.approx([14] * 6)


def test_each_person_is_a_separate_sample(tmp_path: Path) -> None:
    write_images(tmp_path)
    data = EachPerson(CocoDataset(write_record(tmp_path / "people.json", record()), tmp_path))
    assert len(data) == 1  # neither crowds nor people without keypoints
    assert [len(data[0].people), data[0].image_id] == [1, 7]
    drawn = DrawnPeople(4, 6, (64, 64))
    by_person = EachPerson(drawn)
    people = [p for i in range(6) for p in drawn[i].people if (p.keypoints[:, 2] > 0).any()]
    assert len(by_person) == len(people) > 6
    for index, person in enumerate(people):
        (shown,) = by_person[index].people
        assert np.array_equal(shown.keypoints, person.keypoints)
    assert by_person.name != drawn.name
    empty = record() | {"annotations": []}
    with pytest.raises(DataError, match="nobody in the data set"):
        EachPerson(CocoDataset(write_record(tmp_path / "none.json", empty), tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_replaced_and_named(workers: int) -> None:
    data = Tolerant(Holes(6, {1, 5}))
    still = Augmentation(scale=(1, 1), rotate=0, flip=0, shift=0, colour=0)
    examples = Examples(data, pose_spec("esa"), ExampleOptions((64, 64), still, seed=0, labels=True))
    batches = list(examples.batches(Span(batch_size=3, start=0, steps=2, workers=workers)))
    assert sum(len(batch.inputs) for batch in batches) == 6
    assert data.broken() == ("the image does not decode (1.jpg)", "the image does not decode (5.jpg)")
    assert np.array_equal(data[5].image, data[0].image)
    assert len(data.ground_truth()["images"]) == 6


def test_if_nothing_can_be_read_the_first_error_is_raised() -> None:
    data = Tolerant(Holes(3, {0, 1, 2}))
    with pytest.raises(DataError, match=r"does not decode.*1\.jpg"):
        data[1]
    with pytest.raises(IndexError):
        data[3]
    assert Tolerant(Holes(3, set())).broken() == ()


def crowdpose(folder: Path, place: str = "json/crowdpose_val.json", head: str = "head") -> Path:
    content = record()
    joints = [*CROWDPOSE14.joints[:12], head, "neck"]
    content["categories"] = [{"id": 1, "name": "person", "keypoints": joints}]
    content["annotations"] = [
        {"id": 9, "image_id": 7, "category_id": 1, "iscrowd": 0, "num_keypoints": 13, "bbox": [5, 10, 30, 20],
         "keypoints": [0, 0, 0, *(float(v) for k in range(1, 14) for v in (5 + k, 10 + k, 2))]},
    ]  # fmt: skip
    write_record(folder / place, content)
    write_images(folder / "images")
    return folder


@pytest.mark.parametrize(
    ("place", "head", "split"),
    [
        ("json/crowdpose_val.json", "head", ""),
        ("crowdpose_trainval.json", "top_head", ",trainval"),
        ("annotations/mmpose_crowdpose_test.json", "top_head", ",test"),
    ],
)
def test_crowdpose_is_read_with_its_fourteen_joints(tmp_path: Path, place: str, head: str, split: str) -> None:
    data = open_data(f"crowdpose:{crowdpose(tmp_path, place, head)}{split}")
    sample = data[0]
    (person,) = sample.people
    assert sample.skeleton == CROWDPOSE14.name
    assert person.keypoints[0].tolist() == [0, 0, 0]
    assert person.keypoints[12].tolist() == [17, 22, 2]
    assert person.area == pytest.approx(0.53 * 30 * 20)
    assert known_joints(CROWDPOSE14, LSP14)[LSP14.joints.index("head_top")]


def test_another_folder_than_crowdpose_is_refused_with_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not one of CrowdPose: it lacks images"):
        open_data(f"crowdpose:{tmp_path}")
    crowdpose(tmp_path)
    with pytest.raises(DataError, match=r"no crowdpose_train\.json.*train, val, trainval, test"):
        open_data(f"crowdpose:{tmp_path},train")
    wrong = record()
    wrong["categories"] = [{"id": 5, "keypoints": [*CROWDPOSE14.joints[:12], "neck", "head"]}]
    path = write_record(tmp_path / "json" / "crowdpose_test.json", wrong)
    with pytest.raises(DataError, match="other joints than the 17 of COCO"):
        CocoDataset(path, tmp_path / "images")
