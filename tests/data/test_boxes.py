"""Boxes of people from a detector's file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compress.data.boxes import read_boxes
from compress.errors import DataError


def detection(**changes: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, **changes}


def test_boxes_of_people_are_kept_by_image_in_order(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    entries = [
        detection(),
        detection(image_id=9),
        detection(score=0.75),
        detection(category_id=2),
        detection(score=0),
        detection(bbox=[1, 2, 0, 4]),
    ]
    path.write_text(json.dumps(entries))
    boxes = read_boxes(path)
    assert boxes.name == "found.json"
    assert [box.score for box in boxes.by_image[7]] == [0.5, 0.75]
    assert boxes.by_image[9][0].box == (1, 2, 3, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "not a list of people"),
        ("[1]", "not a list of people"),
        ("[", "not JSON"),
        (json.dumps([{"image_id": 1}]), "can't be used.*category_id"),
        (json.dumps([detection(bbox=[1, 2, 3])]), "can't be used"),
        (json.dumps([detection(score="high")]), "can't be used"),
    ],
)
def test_files_in_other_formats_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "found.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_boxes(path)
    with pytest.raises(DataError):
        read_boxes(tmp_path / "nowhere.json")


@pytest.mark.real
def test_real_detections_are_read(assets: Path) -> None:
    boxes = read_boxes(assets / "images" / "mmpose_samples" / "coco" / "test_coco_det_AP_H_56.json")
    assert 785 in boxes.by_image
    assert all(0 < box.score <= 1 for group in boxes.by_image.values() for box in group)
