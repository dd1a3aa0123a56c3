"""Folders of MPII, LSP and LIP, and refusals of other folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import scipy.io

from compress.data.lsp import estimated_views
from compress.data.person_view import person_region
from compress.data.source import open_data
from compress.errors import DataError
from compress.pose.skeleton import LIP16, LSP14, MPII16


def write_images(folder: Path, names: list[str], size: tuple[int, int] = (30, 40)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), np.full((*size, 3), 90, np.uint8))


def entry(image: str, shift: float = 0.0, hidden: tuple[int, ...] = ()) -> dict[str, Any]:
    return {
        "image": image,
        "center": [21.0 + shift, 11.0],
        "scale": 0.1,
        "joints": [[-1.0, -1.0] if k in hidden else [1.0 + k + shift, 2.0 + k] for k in range(16)],
        "joints_vis": [int(k not in hidden) for k in range(16)],
    }


def mpii(folder: Path, *, heads: bool = True) -> Path:
    """Three people, the first and the last in one image."""
    write_images(folder / "images", ["a.jpg", "b.jpg"])
    people = [entry("a.jpg"), entry("b.jpg", hidden=(9,)), entry("a.jpg", shift=5)]
    (folder / "annot").mkdir()
    for part in ("train", "valid"):
        (folder / "annot" / f"{part}.json").write_text(json.dumps(people))
    if heads:
        places = np.stack([np.array(p["joints"]) for p in people], axis=-1)
        missing = np.stack([1 - np.array(p["joints_vis"]) for p in people], axis=-1)
        boxes = np.zeros((2, 2, 3))
        boxes[1] = np.array([[3.0], [4.0]]) * [1, 2, 3]
        scipy.io.savemat(
            folder / "annot" / "gt_valid.mat",
            {"pos_gt_src": places, "jnt_missing": missing.astype(float), "headboxes_src": boxes},
        )
    return folder


def lsp(folder: Path, count: int = 3) -> Path:
    joints = np.zeros((3, 14, count))
    joints[:2] = 1 + np.arange(14)[None, :, None] + np.arange(count)
    joints[2, 3] = 1
    folder.mkdir(exist_ok=True)
    scipy.io.savemat(folder / "joints.mat", {"joints": joints})
    write_images(folder / "images", [f"im{n + 1:04d}.jpg" for n in range(count)])
    return folder


def lspet(folder: Path) -> Path:
    joints = np.ones((14, 3, 2))
    joints[:, :2] = 5
    joints[0] = [[0], [-26], [0]]
    folder.mkdir(exist_ok=True)
    scipy.io.savemat(folder / "joints.mat", {"joints": joints})
    write_images(folder / "images", ["im00001.jpg", "im00002.jpg"])
    return folder


def lip(folder: Path, images: str = "TrainVal_images/val_images") -> Path:
    row = [value for k in range(16) for value in (("NaN", "NaN", "NaN") if k == 7 else (str(10 + k), str(k), "0"))]
    (folder / "TrainVal_pose_annotations").mkdir(parents=True)
    (folder / "TrainVal_pose_annotations" / "lip_val_set.csv").write_text(",".join(["77_1.jpg", *row]) + "\n")
    write_images(folder / images, ["77_1.jpg"])
    return folder


def test_people_of_one_image_of_mpii_make_one_sample(tmp_path: Path) -> None:
    data = open_data(f"mpii:{mpii(tmp_path)}")
    assert data.name == "mpii:valid"
    assert [data[i].name for i in range(len(data))] == ["a.jpg", "b.jpg"]
    first, second = data[0].people
    assert data[0].skeleton == MPII16.name
    assert first.keypoints[3].tolist() == [3, 4, 2]  # counted from 0
    assert second.keypoints[3].tolist() == [8, 4, 2]
    assert data[1].people[0].keypoints[9].tolist() == [0, 0, 0]


def test_the_view_of_a_person_of_mpii_is_that_of_the_public_code(tmp_path: Path) -> None:
    person = open_data(f"mpii:{mpii(tmp_path)}")[0].people[0]
    region = person_region(person, (256, 256))
    # centre (21, 11 + 15 * 0.1) counted from 1, scale 0.1 * 1.25 in units of 200 pixels
    assert region.centre == pytest.approx((20, 11.5))
    assert region.size == pytest.approx((25, 25))


def test_the_ground_truth_of_mpii_has_head_boxes(tmp_path: Path) -> None:
    truth = open_data(f"mpii:{mpii(tmp_path)}").ground_truth()
    assert [a["image_id"] for a in truth["annotations"]] == [1, 1, 2]
    assert [a["head_box"] for a in truth["annotations"]] == [[0, 0, 3, 4], [0, 0, 9, 12], [0, 0, 6, 8]]
    assert truth["annotations"][2]["keypoints"][27:30] == [0, 0, 0]
    assert truth["annotations"][1]["keypoints"][:3] == [5, 1, 2]
    assert "head_box" not in open_data(f"mpii:{tmp_path},train").ground_truth()["annotations"][0]


def test_lsp_is_split_after_a_thousand_images_and_marks_occluded_joints(tmp_path: Path) -> None:
    data = open_data(f"lsp:{lsp(tmp_path, 1001)}")
    assert (data.name, len(data), data[0].name) == ("lsp:test", 1, "im1001.jpg")
    training = open_data(f"lsp:{tmp_path},train")
    assert (len(training), training[999].name) == (1000, "im1000.jpg")
    (person,) = training[2].people
    assert person.keypoints[3].tolist() == [5, 5, 1]
    assert person.keypoints[4].tolist() == [6, 6, 2]
    (tested,) = data[0].people
    assert tested.view is not None
    assert tested.view.tolist() == [0, 0, 40, 30]
    assert person.view is not None
    assert person.view.tolist() != [0, 0, 40, 30]


def upright(**places: tuple[float, float]) -> np.ndarray:
    """A person whose head is 10 pixels long and whose limbs have round lengths; no arms unless they are given."""
    standing = {"head_top": (50, 10), "neck": (50, 20)}
    for side, x in (("right", 50), ("left", 50)):
        standing |= {f"{side}_hip": (x, 50), f"{side}_knee": (x, 70), f"{side}_ankle": (x, 90)}
    keypoints = np.zeros((14, 3))
    for joint, place in (standing | places).items():
        keypoints[LSP14.joints.index(joint)] = (*place, 2)
    return keypoints


def test_a_training_person_of_lsp_is_seen_from_the_estimated_centre_and_scale() -> None:
    """All people alike: each limb divided by its median ratio to the head estimates 10 pixels, a scale of 10 / 35."""
    (view,) = estimated_views(np.stack([upright()]))
    side = 200 * 1.4375 * max(10 / 35, 80 * (41 / 35) / (368 - 64))
    assert side == pytest.approx(80 * 1.10785, rel=1e-4)  # the joints' 80 pixels are what limits the scale
    assert view[2:].tolist() == pytest.approx([side, side], rel=1e-5)
    assert (view[:2] + view[2:] / 2 - 0.5).tolist() == pytest.approx([50, 50], abs=1e-4)
    # Bent to half its height: now the limbs tell the scale.
    bent = upright(**{f"{side}_{joint}": (50, y) for side in ("right", "left") for joint, y in (
        ("hip", 50), ("knee", 30), ("ankle", 50))})  # fmt: skip
    views = estimated_views(np.stack([upright(), bent]))
    assert views[1, 2] == pytest.approx(200 * 1.4375 * 10 / 35, rel=1e-5)
    assert (views[1, :2] + views[1, 2:] / 2 - 0.5).tolist() == pytest.approx([50, 30], abs=1e-4)


def test_the_estimated_scale_is_the_upper_quartile_of_the_limbs() -> None:
    """Of limbs that estimate 10, 10, 20 and 40 pixels the quartile between the third and the fourth is 30."""
    known = ("head_top", "neck", "right_hip", "right_knee", "right_ankle")
    people = np.stack([upright()] * 5)
    people[:, [joint not in known for joint in LSP14.joints]] = 0
    far = people[-1]
    for joint, y in (("right_hip", 50), ("right_knee", 90), ("right_ankle", 10)):
        far[LSP14.joints.index(joint), 1] = y  # 30, 40 and 80 pixels instead of 30, 20 and 20
    assert estimated_views(people)[-1, 2] == pytest.approx(200 * 1.4375 * 30 / 35, rel=1e-5)


def test_people_without_two_joints_have_no_estimated_view(tmp_path: Path) -> None:
    nobody, single = np.zeros((14, 3)), upright()
    single[np.arange(14) != 13] = 0
    assert np.isnan(estimated_views(np.stack([nobody, single]))).all()
    data = open_data(f"lspet:{lspet(tmp_path)}")  # all joints of a person in one place
    assert data[0].people[0].view is None


def test_lspet_marks_unlabelled_joints(tmp_path: Path) -> None:
    data = open_data(f"lspet:{lspet(tmp_path)}")
    (person,) = data[1].people
    assert data[1].skeleton == LSP14.name
    assert person.keypoints[0].tolist() == [0, 0, 0]
    assert person.keypoints[1].tolist() == [4, 4, 2]


@pytest.mark.parametrize("place", ["TrainVal_images/val_images", "TrainVal_images/TrainVal_images/val_images",
                                   "val_images"])  # fmt: skip
def test_lip_is_read_in_all_layouts(tmp_path: Path, place: str) -> None:
    data = open_data(f"lip:{lip(tmp_path, place)}")
    (person,) = data[0].people
    assert data[0].skeleton == LIP16.name
    assert person.keypoints[0].tolist() == [10, 0, 2]
    assert person.keypoints[7].tolist() == [0, 0, 0]
    assert data.ground_truth()["annotations"][0]["num_keypoints"] == 15


@pytest.mark.parametrize(
    ("kind", "make", "message"),
    [
        ("mpii", lsp, "not one of MPII.*annot/valid.json"),
        ("lsp", mpii, "not one of Leeds Sports Pose.*joints.mat"),
        ("lsp", lspet, "3 x 14.*lspet:DIR"),
        ("lspet", lsp, "14 x 3.*lsp:DIR"),
        ("lsp", lsp, "begins at number 1001.*--split train"),
        ("lip", mpii, "not one of LIP.*lip_val_set.csv"),
    ],
)
def test_another_folder_is_refused_with_what_it_lacks(
    tmp_path: Path, kind: str, make: Callable[[Path], Path], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(f"{kind}:{make(tmp_path)}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"joints": [[1, 2]]}, "entry 0.*another shape"),
        ({"scale": 0}, "entry 0"),
        ({"center": [1, float("nan")]}, "entry 0.*not finite"),
        ({"image": "../a.jpg"}, "leads out"),
        ({"image": "c.jpg"}, "1 of 3 images are not in.*c.jpg"),
    ],
    ids=str,
)
def test_malformed_entries_of_mpii_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = mpii(tmp_path, heads=False) / "annot" / "valid.json"
    records = json.loads(path.read_text())
    records[0] |= change
    path.write_text(json.dumps(records))
    with pytest.raises(DataError, match=message):
        open_data(f"mpii:{tmp_path}")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    heads = mpii(tmp_path / "m") / "annot" / "gt_valid.mat"
    scipy.io.savemat(heads, {"pos_gt_src": np.zeros((16, 2, 9)), "jnt_missing": np.zeros((16, 9)),
                             "headboxes_src": np.zeros((2, 2, 9))})  # fmt: skip
    with pytest.raises(DataError, match=r"not about the people of valid\.json"):
        open_data(f"mpii:{tmp_path / 'm'}")
    heads.write_bytes(b"nothing")
    with pytest.raises(DataError, match="MATLAB file can't be read"):
        open_data(f"mpii:{tmp_path / 'm'}")
    rows = lip(tmp_path / "l") / "TrainVal_pose_annotations" / "lip_val_set.csv"
    rows.write_text("77_1.jpg,1,2,0\n")
    with pytest.raises(DataError, match=r"line 1 of lip_val_set\.csv"):
        open_data(f"lip:{tmp_path / 'l'}")


@pytest.mark.real
def test_real_people_of_lspet_have_their_joints_in_the_image(assets: Path, tmp_path: Path) -> None:
    (tmp_path / "joints.mat").symlink_to(assets / "annotations" / "lspet400" / "joints.mat")
    (tmp_path / "images").symlink_to(assets / "images" / "lspet400")
    data = open_data(f"lspet:{tmp_path}")
    assert len(data) == 400
    for person in (data[index].people[0] for index in range(0, 400, 40)):
        points, view = person.keypoints[person.keypoints[:, 2] > 0, :2], person.view
        assert view is not None
        assert ((points > view[:2]) & (points < view[:2] + view[2:])).all()
    inside = labelled = 0
    for index in range(0, 400, 20):
        sample = data[index]
        points = sample.people[0].keypoints
        points = points[points[:, 2] > 0]
        height, width = sample.image.shape[:2]
        inside += int(((points[:, :2] > -1) & (points[:, :2] < (width, height))).all(axis=1).sum())
        labelled += len(points)
    assert labelled > 200
    assert inside > 0.98 * labelled
