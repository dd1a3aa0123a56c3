"""Opening data sets by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from coco_folder import record, write_images, write_record

from compress.data.coco import CocoDataset
from compress.data.images import ImageFolder
from compress.data.source import open_data
from compress.data.synthetic import DrawnPeople
from compress.errors import CompressError, DataError, UsageError


@pytest.mark.parametrize(
    ("spec", "name"),
    [("synthetic", DrawnPeople().name), ("synthetic:5", DrawnPeople(5).name), ("synthetic:5:12", "synthetic:5:12")],
)
def test_drawn_people_are_named_by_seed_and_count(spec: str, name: str) -> None:
    dataset = open_data(spec)
    assert isinstance(dataset, DrawnPeople)
    assert dataset.name == name


@pytest.mark.parametrize(("split", "place"), [("val2017", "val2017"), ("train2017", "images/train2017")])
def test_a_coco_folder_is_read_in_both_layouts(tmp_path: Path, split: str, place: str) -> None:
    write_record(tmp_path / "annotations" / f"person_keypoints_{split}.json", record())
    write_images(tmp_path / place)
    dataset = open_data(f"coco:{tmp_path}", split=split)
    assert isinstance(dataset, CocoDataset)
    assert dataset[0].name == "b.png"


def test_annotations_and_images_may_be_anywhere(tmp_path: Path) -> None:
    annotations = write_record(tmp_path / "somewhere" / "people.json", record())
    write_images(tmp_path / "else")
    dataset = open_data(None, annotations=annotations, images=tmp_path / "else")
    assert len(dataset) == 2
    assert isinstance(open_data(f"images:{tmp_path / 'else'}"), ImageFolder)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagenet", "names no data set.*imagenet.*synthetic.*coco:DIR.*images:DIR"),
        ("coco", "names no data set"),
        ("coco:", "names no data set"),
        ("images:", "names no data set"),
        ("", "names no data set"),
        ("synthetic:", "seed and a count"),
        ("synthetic:a", "seed and a count"),
        ("synthetic:1.5", "seed and a count"),
        ("synthetic:1:2:3", "seed and a count.*synthetic:1:100"),
        ("synthetic:-1", "must not be negative"),
        ("synthetic:1:0", "at least one image"),
        ("coco:/nowhere/at/all", "no such COCO folder.*nowhere"),
        ("images:/nowhere/at/all", "no such folder of images.*nowhere"),
    ],
)
def test_an_unknown_name_is_refused(spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_data(spec)


def test_a_coco_folder_names_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no keypoint annotations of the split val2017.*person_keypoints_SPLIT"):
        open_data(f"coco:{tmp_path}")
    write_record(tmp_path / "annotations" / "person_keypoints_train2017.json", record())
    with pytest.raises(DataError, match="--split: train2017"):
        open_data(f"coco:{tmp_path}")
    with pytest.raises(DataError, match=r"no images of the split train2017.*images/train2017"):
        open_data(f"coco:{tmp_path}", split="train2017")


def test_contradicting_options_are_refused(tmp_path: Path) -> None:
    for named in ({"annotations": tmp_path}, {"images": tmp_path}):
        with pytest.raises(UsageError, match="go together"):
            open_data(None, **named)
    with pytest.raises(UsageError, match=r"two data sets.*synthetic"):
        open_data("synthetic", annotations=tmp_path, images=tmp_path)
    with pytest.raises(CompressError, match=r"no data set is named.*--data: synthetic.*--annotations"):
        open_data(None)
