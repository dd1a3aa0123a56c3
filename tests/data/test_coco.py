"""COCO annotations as samples and as ground truth, and refusals of malformed files."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from coco_folder import SIZE, keypoints, record, write_images, write_record
from pycocotools.coco import COCO

from compress.data.coco import CocoDataset
from compress.data.sample import iterate
from compress.errors import DataError


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture
def dataset(tmp_path: Path, images: Path) -> CocoDataset:
    return CocoDataset(write_record(tmp_path / "people.json", record()), images)


def test_samples_come_in_the_order_of_the_file_with_their_pixels(dataset: CocoDataset, images: Path) -> None:
    samples = list(iterate(dataset))
    assert [(s.image_id, s.name, len(s.people)) for s in samples] == [(7, "b.png", 4), (3, "a.png", 0)]
    for sample in samples:
        assert np.array_equal(sample.image, cv2.imread(str(images / sample.name)))
        assert sample.mask.shape == sample.image.shape[:2] == SIZE
    assert samples[1].mask.all()
    for index in (-1, 2):
        with pytest.raises(IndexError):
            dataset[index]


def test_people_are_those_of_the_category_with_keypoints(dataset: CocoDataset) -> None:
    person, crowd, *unlabelled = dataset[0].people
    assert np.array_equal(person.keypoints.ravel(), np.float32(keypoints(labelled=16)))
    assert person.box.tolist() == [5, 10, 32, 17]
    assert person.area == 300.5
    assert crowd.crowd
    assert crowd.keypoints.shape == (0, 3)
    assert [p.crowd for p in (person, *unlabelled)] == [False] * 3
    assert all(p.keypoints.shape == (17, 3) and not p.keypoints.any() for p in unlabelled)


def test_the_mask_excludes_only_crowds_and_people_without_keypoints(dataset: CocoDataset) -> None:
    expected = np.ones(SIZE, np.bool_)
    expected[:5, 40:] = False  # the crowd's run lengths
    expected[30:35, :10] = False  # a polygon, smaller than its box
    expected[30:35, 50:55] = False  # a box alone
    assert np.array_equal(dataset[0].mask, expected)


def test_the_ground_truth_is_a_coco_record_of_only_people(dataset: CocoDataset) -> None:
    truth = dataset.ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        read = COCO()
        read.dataset = truth
        read.createIndex()
    assert sorted(read.getImgIds()) == [3, 7]
    assert read.getCatIds() == [1]
    # An id of 0 would mean "no match" to the evaluation.
    assert sorted(read.getAnnIds()) == [1, 2, 3, 4]
    assert [a["num_keypoints"] for a in truth["annotations"]] == [16, 0, 0, 0]
    assert [a["iscrowd"] for a in truth["annotations"]] == [0, 1, 0, 0]
    assert not any("segmentation" in a for a in truth["annotations"])
    json.dumps(truth)


def test_a_copy_in_another_process_gives_the_same_samples(dataset: CocoDataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    for first, second in zip(iterate(dataset), iterate(copy), strict=True):
        assert np.array_equal(first.image, second.image)
        assert np.array_equal(first.mask, second.mask)
        assert first.image_id == second.image_id


def test_labelled_joints_are_counted_whatever_the_file_says(tmp_path: Path, images: Path) -> None:
    content = record()
    content["annotations"][0]["num_keypoints"] = 0
    del content["annotations"][2]["num_keypoints"]
    dataset = CocoDataset(write_record(tmp_path / "people.json", content), images)
    assert [a["num_keypoints"] for a in dataset.ground_truth()["annotations"]] == [16, 0, 0, 0]
    assert dataset[0].mask[10:27, 5:37].all()


def turned_jpeg() -> bytes:
    """A photograph of `SIZE` whose EXIF orientation is a quarter turn."""
    ok, jpeg = cv2.imencode(".jpg", np.zeros((*SIZE, 3), np.uint8))
    assert ok
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    content = jpeg.tobytes()
    turned = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == SIZE[::-1]
    return turned


def test_annotated_images_are_read_as_they_are_stored(tmp_path: Path, images: Path) -> None:
    (images / "b.png").write_bytes(turned_jpeg())
    dataset = CocoDataset(write_record(tmp_path / "people.json", record()), images)
    assert dataset[0].image.shape[:2] == SIZE


def as_text(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image.update(id=str(image["id"]), height=str(image["height"]), width=f" {image['width']}")
    content["categories"][1]["id"] = "5"
    for annotation in content["annotations"]:
        for key in ("image_id", "category_id", "iscrowd", "area"):
            annotation[key] = str(annotation[key])


def as_floats(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image.update(id=float(image["id"]), height=float(image["height"]))
    for annotation in content["annotations"]:
        for key in ("image_id", "category_id", "iscrowd"):
            annotation[key] = float(annotation[key])


def without_sizes(content: dict[str, Any]) -> None:
    content["images"][0].update(height=None, width=None)
    del content["images"][1]["height"]


@pytest.mark.parametrize("edit", [as_text, as_floats, without_sizes])
def test_numbers_in_another_form_mean_the_same(
    tmp_path: Path, images: Path, dataset: CocoDataset, edit: Callable[[dict[str, Any]], None]
) -> None:
    content = record()
    edit(content)
    other = CocoDataset(write_record(tmp_path / "other.json", content), images)
    for first, second in zip(iterate(dataset), iterate(other), strict=True):
        assert first.image_id == second.image_id
        assert type(second.image_id) is int
        assert np.array_equal(first.mask, second.mask)
        assert [p.crowd for p in first.people] == [p.crowd for p in second.people]
        assert [p.area for p in first.people] == [p.area for p in second.people]
    assert other.ground_truth()["annotations"] == dataset.ground_truth()["annotations"]
    if edit is not without_sizes:
        assert other.ground_truth() == dataset.ground_truth()


@pytest.mark.parametrize("keypoints", ["absent", None, [], [0] * 51])
def test_a_person_without_keypoints_is_a_person_without_labelled_joints(
    tmp_path: Path, images: Path, dataset: CocoDataset, keypoints: Any
) -> None:
    content = record()
    if keypoints == "absent":
        del content["annotations"][2]["keypoints"]
    else:
        content["annotations"][2]["keypoints"] = keypoints
    other = CocoDataset(write_record(tmp_path / "other.json", content), images)
    assert other.ground_truth() == dataset.ground_truth()
    assert np.array_equal(other[0].mask, dataset[0].mask)
    assert other[0].people[2].keypoints.shape == (17, 3)


def test_a_photograph_is_turned_where_only_that_gives_the_listed_size(tmp_path: Path, images: Path) -> None:
    (images / "b.png").write_bytes(turned_jpeg())
    content = record()
    content["images"][0].update(height=SIZE[1], width=SIZE[0])
    del content["annotations"][1]  # its region has the other size
    dataset = CocoDataset(write_record(tmp_path / "people.json", content), images)
    assert dataset[0].image.shape[:2] == dataset[0].mask.shape == SIZE[::-1]
    (images / "b.png").write_bytes(cv2.imencode(".png", np.zeros((*SIZE, 3), np.uint8))[1].tobytes())
    with pytest.raises(DataError, match="look swapped in the file"):
        dataset[0]


def test_images_are_found_under_similar_names(tmp_path: Path, images: Path) -> None:
    (images / "sub").mkdir()
    (images / "b.png").rename(images / "sub" / "bu\u0308.png")
    content = record()
    content["images"][0]["file_name"] = "sub\\b\u00fc.PNG"
    dataset = CocoDataset(write_record(tmp_path / "people.json", content), images)
    assert dataset[0].name == "sub\\b\u00fc.PNG"
    assert dataset[0].image.shape[:2] == SIZE


Edit = Callable[[dict[str, Any]], Any]

BROKEN: dict[str, tuple[Edit, str]] = {
    "results": (lambda r: r["annotations"], "no images and annotations.*not results or boxes"),
    "no images": (lambda r: r.pop("images"), "no list of images"),
    "no annotations": (lambda r: r.pop("annotations"), "no list of annotations"),
    "no categories": (lambda r: r.pop("categories"), "no list of categories"),
    "strings for annotations": (lambda r: r.update(annotations=["a"]), "no list of annotations"),
    "boxes": (lambda r: r["categories"][1].pop("keypoints"), "no category with keypoints.*toothbrush.*keypoints_"),
    "other joints": (lambda r: r["categories"][1].update(keypoints=["head", "foot"]), "other joints.*head.*left_eye"),
    "few keypoints": (lambda r: r["annotations"][0]["keypoints"].pop(), "not x, y and visibility.*50 values"),
    "words for keypoints": (lambda r: r["annotations"][0].update(keypoints=["x"] * 51), "can't be used"),
    "infinite keypoints": (lambda r: r["annotations"][0]["keypoints"].__setitem__(0, float("inf")), "can't be used"),
    "no area": (lambda r: r["annotations"][0].pop("area"), "it has no area"),
    "no bbox": (lambda r: r["annotations"][1].pop("bbox"), "it has no bbox.*annotation 1"),
    "short bbox": (lambda r: r["annotations"][1].update(bbox=[1, 2, 3]), "not made of numbers"),
    "area is nan": (lambda r: r["annotations"][1].update(area=float("nan")), "not made of numbers"),
    "unlisted image": (lambda r: r["annotations"][1].update(image_id=8), "does not list.*8"),
    "same id twice": (lambda r: r["images"][0].update(id=3), "two images.*same id.*3"),
    "no id": (lambda r: r["images"][0].pop("id"), "id of an image.*is missing"),
    "text for an id": (lambda r: r["images"][0].update(id="b"), "must be an integer; it is of type str.*'b.png'"),
    "half an id": (lambda r: r["images"][0].update(id=7.5), "must be an integer; it is of type float"),
    "true for an id": (lambda r: r["images"][0].update(id=True), "must be an integer; it is of type bool"),
    "no size": (lambda r: r["images"][0].update(height="tall"), "height of the image b.png .*number of pixels.*tall"),
    "a negative area": (lambda r: r["annotations"][0].update(area=-1), "area -1 is negative.*annotation 0"),
    "half a crowd": (lambda r: r["annotations"][0].update(iscrowd="some"), "iscrowd is neither 0 nor 1 but 'some'"),
    "another category": (
        lambda r: r.update(annotations=[a | {"category_id": 1} for a in r["annotations"]]),
        "no annotation of people.json is of the category 'person', whose id is 5.*category_id 1",
    ),
    "no category": (
        lambda r: [a.pop("category_id") for a in r["annotations"]], "no annotation.*category 'person'.*category_id none"
    ),
    "no file name": (lambda r: r["images"][0].pop("file_name"), "has no file_name"),
    "a path to the parent": (lambda r: r["images"][0].update(file_name="../images/b.png"), "leads out of the folder"),
    "a Windows path to the parent": (lambda r: r["images"][0].update(file_name="..\\b.png"), "leads out of the folder"),
    "a drive": (lambda r: r["images"][0].update(file_name="C:\\b.png"), "leads out of the folder"),
    "an absolute name": (lambda r: r["images"][0].update(file_name="/etc/hostname"), "leads out of the folder"),
    "a missing image": (lambda r: r["images"][0].update(file_name="c.png"), "1 of 2 images are not in.*'c.png'"),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_a_malformed_record_is_refused(tmp_path: Path, images: Path, edit: Edit, message: str) -> None:
    content: Any = record()
    edited = edit(content)
    path = write_record(tmp_path / "people.json", edited if message.startswith("no images and") else content)
    with pytest.raises(DataError, match=message):
        CocoDataset(path, images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (json.dumps(record()).encode()[:-50], "not JSON, or truncated.*person_keypoints"),
        (b"\xff\xd8\xff\xe0 an image", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"3", "no images and annotations"),
        (None, "does not exist"),
    ],
)
def test_a_file_without_a_record_is_refused(tmp_path: Path, images: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "people.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        CocoDataset(path, images)


def test_missing_images_are_counted_and_the_first_ones_named(tmp_path: Path, images: Path) -> None:
    content = record()
    content["images"] += [{"id": 100 + n, "file_name": f"{n}.jpg"} for n in range(9)]
    with pytest.raises(DataError, match=r"9 of 11 images are not in .*0.jpg, 1.jpg, 2.jpg, \.\.\.'"):
        CocoDataset(write_record(tmp_path / "people.json", content), images)
    with pytest.raises(DataError, match="no such folder of images"):
        CocoDataset(write_record(tmp_path / "people.json", record()), tmp_path / "nowhere")


def test_images_may_be_in_subfolders(tmp_path: Path, images: Path) -> None:
    write_images(images / "val")
    content = record()
    content["images"][0]["file_name"] = "val/b.png"
    dataset = CocoDataset(write_record(tmp_path / "people.json", content), images)
    assert dataset[0].name == "val/b.png"
    assert len(dataset[0].people) == 4


def test_an_image_that_does_not_decode_or_fit_is_named_when_it_is_read(tmp_path: Path, images: Path) -> None:
    dataset = CocoDataset(write_record(tmp_path / "people.json", record()), images)
    whole = (images / "b.png").read_bytes()
    (images / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"does not decode.*b\.png"):
        dataset[0]
    cv2.imwrite(str(images / "b.png"), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match=r"b\.png has another size.*20, 30.*40 rows and 60 columns"):
        dataset[0]


def test_run_lengths_of_another_image_are_refused_when_the_sample_is_read(tmp_path: Path, images: Path) -> None:
    content = record()
    content["annotations"][1]["segmentation"] = {"counts": [100], "size": [10, 10]}
    dataset = CocoDataset(write_record(tmp_path / "people.json", content), images)
    with pytest.raises(DataError, match=r"image of \(10, 10\) pixels, not \(40, 60\)"):
        dataset[0]


@pytest.mark.real
def test_the_real_annotations_agree_with_pycocotools(assets: Path) -> None:
    path = assets / "annotations" / "person_keypoints_val2017_subset.json"
    dataset = CocoDataset(path, assets / "images" / "coco" / "val2017")
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(path))
    assert len(dataset) == 100
    assert len(dataset.ground_truth()["annotations"]) == 380
    hidden = 0
    for sample in iterate(dataset):
        untrusted = np.zeros(sample.mask.shape, np.bool_)
        for annotation in reference.loadAnns(reference.getAnnIds(imgIds=sample.image_id)):
            if annotation["iscrowd"] or not annotation["num_keypoints"]:
                untrusted |= reference.annToMask(annotation).astype(np.bool_)
        # Along the edges of polygons the two may differ by a pixel, but nowhere by a patch of three by three.
        differ = (~sample.mask != untrusted).astype(np.uint8)
        assert not cv2.erode(differ, np.ones((3, 3)), borderValue=0).any()
        hidden += int(untrusted.sum())
    assert hidden > 10_000
