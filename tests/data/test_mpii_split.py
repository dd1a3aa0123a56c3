"""MPII's people divided 80 to 20."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io

from compress.data.mpii import mpii_files, open_mpii
from compress.data.source import open_data
from compress.data.spec import DataSpec
from compress.errors import DataError


def entry(image: str) -> dict[str, Any]:
    joints = [[1.0 + k, 2.0 + k] for k in range(16)]
    return {"image": image, "center": [21.0, 11.0], "scale": 0.1, "joints": joints, "joints_vis": [1] * 16}


def mpii(folder: Path, *, turned: bool = False) -> Path:
    """20 images with two people each: one in each list, so that every image is in both."""
    names = [f"{n:03}.jpg" for n in range(20)]
    (folder / "images").mkdir(parents=True)
    for name in names:
        cv2.imwrite(str(folder / "images" / name), np.full((30, 40, 3), 90, np.uint8))
    (folder / "annot").mkdir()
    order = names[::-1] if turned else names
    for part in ("train", "valid"):
        (folder / "annot" / f"{part}.json").write_text(json.dumps([entry(name) for name in order]))
    boxes = np.zeros((2, 2, 20))
    boxes[1] = np.array([[3.0], [4.0]])
    places = np.tile(np.array(entry("")["joints"])[..., None], 20)
    arrays = {"pos_gt_src": places, "jnt_missing": np.zeros((16, 20)), "headboxes_src": boxes}
    scipy.io.savemat(folder / "annot" / "gt_valid.mat", arrays)
    return folder


def names_of(folder: Path, part: str) -> set[str]:
    return {image["file_name"] for image in open_data(f"mpii:{folder},{part}").ground_truth()["images"]}


def test_images_are_divided_and_none_is_in_both(tmp_path: Path) -> None:
    folder = mpii(tmp_path)
    train, valid = names_of(folder, "train80"), names_of(folder, "valid20")
    assert (len(train), len(valid)) == (16, 4)
    assert not train & valid
    # Worked out with sha256sum: the last four of the 20 names in the order of their hashes.
    assert valid == {"005.jpg", "016.jpg", "018.jpg", "019.jpg"}
    assert all(len(open_mpii(folder, "train80")[n].people) == 2 for n in range(16))


def test_the_order_of_the_lists_changes_nothing(tmp_path: Path) -> None:
    assert names_of(mpii(tmp_path / "a"), "valid20") == names_of(mpii(tmp_path / "b", turned=True), "valid20")


def test_people_of_the_validation_list_have_head_boxes(tmp_path: Path) -> None:
    annotations = open_data(f"mpii:{mpii(tmp_path)},valid20").ground_truth()["annotations"]
    assert [a.get("head_box") for a in annotations] == [None, [0, 0, 3, 4]] * 4


def test_files_of_the_split_are_known_before_it_is_opened(tmp_path: Path) -> None:
    annot = tmp_path / "annot"
    lists = (annot / "train.json", annot / "valid.json")
    assert mpii_files(tmp_path, "train80") == (*lists, tmp_path / "images")
    assert mpii_files(tmp_path, "valid20") == (*lists, annot / "gt_valid.mat", tmp_path / "images")
    assert DataSpec.parse(f"mpii:{tmp_path},train80").paths == mpii_files(tmp_path, "train80")


def test_both_lists_are_needed(tmp_path: Path) -> None:
    folder = mpii(tmp_path)
    (folder / "annot" / "train.json").unlink()
    with pytest.raises(DataError, match=r"annot/train\.json"):
        open_data(f"mpii:{folder},valid20")
    assert len(open_data(f"mpii:{folder}")) == 20
