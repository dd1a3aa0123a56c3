"""Names of data sets: what they stand for, where they lie, and that their text comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from coco_folder import record, write_images, write_record

from compress.data.coco import CocoDataset
from compress.data.spec import DataSpec
from compress.errors import DataError


def write_coco(folder: Path, split: str = "val2017") -> None:
    write_record(folder / "annotations" / f"person_keypoints_{split}.json", record())
    write_images(folder / split)


@pytest.mark.parametrize(
    "text",
    ["synthetic", "synthetic:3", "synthetic:-1:4", "coco:a/b", "coco:a/b,train2017", "coco:/x.json,/y", "images:a,b/c",
     "mpii:m", "lsp:l,train", "lspet:e", "lip:l", "crowdpose:c,test", "coco:."],
)  # fmt: skip
def test_the_text_of_a_name_comes_back(text: str) -> None:
    assert str(DataSpec.parse(text)) == text
    assert DataSpec.parse(str(DataSpec.parse(text))) == DataSpec.parse(text)


@pytest.mark.parametrize("text", ["coco:d", "lsp:d,train"])
def test_a_split_from_outside_is_kept_in_the_text_unless_the_text_names_one(text: str) -> None:
    spec = DataSpec.parse(text, split="test")
    assert DataSpec.parse(str(spec)).paths == spec.paths
    assert str(spec) == {"coco:d": "coco:d,test", "lsp:d,train": "lsp:d,train"}[text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("synthetic:1:2", []),
        ("coco:d", ["d/annotations/person_keypoints_val2017.json", "d/val2017"]),
        ("coco:d,x", ["d/annotations/person_keypoints_x.json", "d/x"]),
        ("coco:.,x", ["annotations/person_keypoints_x.json", "x"]),
        ("coco:a.json,i", ["a.json", "i"]),
        ("images:a,b", ["a", "b"]),
        ("mpii:m", ["m/annot/valid.json", "m/annot/gt_valid.mat", "m/images"]),
        ("mpii:m,train", ["m/annot/train.json", "m/images"]),
        ("lsp:l", ["l/joints.mat", "l/images"]),
        ("lip:l,train", ["l/TrainVal_pose_annotations/lip_train_set.csv", "l/TrainVal_images/train_images"]),
        ("crowdpose:c,val", ["c/crowdpose_val.json", "c/images"]),
    ],
)
def test_paths_are_the_files_that_are_read_below_the_base(tmp_path: Path, text: str, expected: list[str]) -> None:
    spec = DataSpec.parse(text).placed(tmp_path)
    assert spec.paths == tuple(tmp_path / name for name in expected)
    assert DataSpec.parse(str(spec)).paths == spec.paths


def test_paths_name_the_layout_that_exists(tmp_path: Path) -> None:
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "crowdpose_val.json").write_text("{}")
    assert DataSpec.parse(f"coco:{tmp_path}").paths[1] == tmp_path / "images" / "val2017"
    assert DataSpec.parse(f"crowdpose:{tmp_path}").paths[0] == tmp_path / "json" / "crowdpose_val.json"


def test_absolute_paths_stay_where_they_are(tmp_path: Path) -> None:
    spec = DataSpec.parse(f"images:{tmp_path}")
    assert spec.placed(Path("/elsewhere")) == spec


def test_a_folder_with_a_comma_in_its_name_is_found_at_its_place(tmp_path: Path) -> None:
    write_coco(tmp_path / "a,b")
    write_images(tmp_path / "p,q")
    assert len(DataSpec.parse("coco:a,b").placed(tmp_path).open()) == 2
    assert len(DataSpec.parse(f"coco:{tmp_path / 'a,b'},val2017").open()) == 2
    assert len(DataSpec.parse(f"images:{tmp_path / 'p,q'}").open()) == 2


def test_annotations_and_images_have_a_text_too(tmp_path: Path) -> None:
    annotations = write_record(tmp_path / "a.json", record())
    write_images(tmp_path / "i")
    spec = DataSpec.of_files(Path("a.json"), Path("i")).placed(tmp_path)
    assert spec == DataSpec.parse(f"coco:{annotations},{tmp_path / 'i'}")
    assert isinstance(spec.open(), CocoDataset)


def test_a_tilde_is_the_home_folder_and_a_variable_is_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_coco(tmp_path / "data")
    write_images(tmp_path / "more")
    assert len(DataSpec.parse("coco:~/data").open()) == 2
    assert len(DataSpec.parse("images:~/data/val2017,~/more").open()) == 4
    pair = DataSpec.of_files(Path("~/data/annotations/person_keypoints_val2017.json"), Path("~/more"))
    assert len(pair.open()) == 2
    assert DataSpec.parse("coco:$HOME/data").places == (Path("$HOME/data"),)
    with pytest.raises(DataError, match=r"no such home folder.*nobody-of-this-name"):
        DataSpec.parse("coco:~nobody-of-this-name/x")


def test_a_bare_folder_is_refused_with_the_name_it_should_have(tmp_path: Path) -> None:
    folder = os.path.relpath(tmp_path)
    with pytest.raises(DataError, match=r"names no data set.*write images:"):
        DataSpec.parse(folder)
