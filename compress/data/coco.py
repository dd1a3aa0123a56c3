"""COCO keypoint annotations with their images."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compress.data.images import check_inside, locate_images, read_image
from compress.data.sample import Image, Person, Sample
from compress.data.segmentation import region_mask
from compress.errors import DataError, FileError
from compress.files import read_bytes
from compress.pose.skeleton import COCO17, CROWDPOSE14, Skeleton

#: Keys of an annotation that scores depend on; segmentations, which take megabytes, are left out.
_SCORED = ("image_id", "iscrowd", "num_keypoints", "keypoints", "bbox", "area")

#: Our names of joints that files name differently.
_OTHER_NAMES = {"head": "head_top", "top_head": "head_top"}

#: Area of a person as a share of the box where CrowdPose gives none, as in its own evaluation.
_BOX_SHARE = 0.53


class CocoDataset:
    """COCO keypoints with their images; also those of CrowdPose, which have the same format.

    All images of the file are samples, those without people too, in the file's order. The mask is false over crowds
    and over people without labelled keypoints. Images are read as they are stored, or rotated by their EXIF
    orientation where only that gives the size that the file lists.

    Parameters
    ----------
    annotations : Path
        A COCO keypoint file (``person_keypoints_*.json``).
    images : Path
        Folder of the images.

    Raises
    ------
    DataError
        If the file is not a COCO keypoint file, has annotations but none of people, or images are missing.
    """

    annotated = True

    def __init__(self, annotations: Path, images: Path) -> None:
        record = _read(annotations)
        self.name = annotations.stem
        self._category, self._skeleton = _person_category(record, annotations)
        self._images = [_image(entry, annotations) for entry in _entries(record, "images", annotations)]
        self._people: dict[int, list[dict[str, Any]]] = {}
        for entry in self._images:
            if entry["id"] in self._people:
                raise DataError(f"two images of {annotations.name} have the same id", found=entry["id"])
            self._people[entry["id"]] = []
        for annotation in self._of_people(_entries(record, "annotations", annotations), annotations):
            number = integer(annotation.get("image_id"))
            of_image = None if number is None else self._people.get(number)
            if of_image is None:
                raise DataError(
                    f"an annotation of {annotations.name} is of an image that the file does not list",
                    found=annotation.get("image_id"),
                )
            of_image.append(_checked(annotation, annotations, self._skeleton) | {"image_id": number})
        self._paths = locate_images([entry["file_name"] for entry in self._images], images)

    def _of_people(self, annotations: list[dict[str, Any]], path: Path) -> list[dict[str, Any]]:
        category = self._category["id"]
        people = [annotation for annotation in annotations if integer(annotation.get("category_id")) == category]
        if annotations and not people:
            ids = {
                repr(annotation["category_id"]) if "category_id" in annotation else "none" for annotation in annotations
            }
            raise DataError(
                f"no annotation of {path.name} is of the category {self._category['name']!r}, whose id is {category}",
                found=f"category_id {', '.join(sorted(ids)[:8])}",
                hint=f"Give annotations of people the category_id {category}",
            )
        return people

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self._images[index]
        image = self._read_image(index)
        size = (image.shape[0], image.shape[1])
        mask = np.ones(size, dtype=np.bool_)
        annotations = self._people[entry["id"]]
        for annotation in annotations:
            if annotation["iscrowd"] or not annotation["num_keypoints"]:
                mask &= ~region_mask(annotation, size)
        return Sample(
            image=image,
            people=tuple(_person(annotation) for annotation in annotations),
            mask=mask,
            image_id=entry["id"],
            name=entry["file_name"],
            skeleton=self._skeleton.name,
        )

    def _read_image(self, index: int) -> Image:
        """The image in the orientation that its annotations were drawn in."""
        entry, path = self._images[index], self._paths[index]
        image = read_image(path, upright=False)
        stored = image.shape[:2]
        listed = (entry.get("height", stored[0]), entry.get("width", stored[1]))
        if listed == stored:
            return image
        upright = read_image(path)
        if upright.shape[:2] == listed:
            return upright
        swapped = "Height and width look swapped in the file" if listed == stored[::-1] else "Fetch the original image"
        raise DataError(
            f"the image {entry['file_name']} has another size than its annotations say",
            found=(*stored,),
            hint=f"The annotations are of {listed[0]} rows and {listed[1]} columns. {swapped}",
        )

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images as a COCO keypoint record without segmentations; people are category 1.

        Annotations are renumbered from 1: in COCO's evaluation an id of 0 means that there is no match.
        """
        people = [annotation for annotations in self._people.values() for annotation in annotations]
        return {
            "images": [dict(entry) for entry in self._images],
            "annotations": [
                {key: person[key] for key in _SCORED} | {"id": number, "category_id": 1}
                for number, person in enumerate(people, start=1)
            ],
            "categories": [self._category | {"id": 1}],
        }


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_bytes(path, "annotation file")
    except FileError as error:
        raise DataError(error.cause, found=error.found, hint=error.hint) from error
    try:
        record = json.loads(content)
    except (RecursionError, ValueError) as error:
        raise DataError(
            f"the annotation file is not JSON, or truncated ({error})",
            found=str(path),
            hint="Give a COCO keypoint file such as person_keypoints_val2017.json",
        ) from error
    if not isinstance(record, dict):
        raise DataError(
            "the annotation file has no images and annotations",
            found=type(record).__name__,
            hint="Give a COCO keypoint file such as person_keypoints_val2017.json, not results or boxes",
        )
    return record


def _entries(record: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = record.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{path.name} has no list of {key}",
            found=sorted(map(str, record))[:8],
            hint="Give a COCO keypoint file such as person_keypoints_val2017.json",
        )
    return entries


def _person_category(record: dict[str, Any], path: Path) -> tuple[dict[str, Any], Skeleton]:
    """The category with the 17 joints of COCO or the 14 of CrowdPose under our names, and its skeleton."""
    with_keypoints = [c for c in _entries(record, "categories", path) if c.get("keypoints")]
    if not with_keypoints:
        raise DataError(
            f"{path.name} has no category with keypoints",
            found=[str(c.get("name")) for c in record["categories"]][:8],
            hint="Give the keypoint annotations (person_keypoints_*.json), not those of boxes or captions",
        )
    for category in with_keypoints:
        named = tuple(_OTHER_NAMES.get(str(joint), str(joint)) for joint in category["keypoints"])
        for skeleton in (COCO17, CROWDPOSE14):
            number = integer(category.get("id"))
            if named == skeleton.joints and number is not None:
                plain = {"id": number, "name": str(category.get("name", "person")), "keypoints": [*named]}
                return plain, skeleton
    raise DataError(
        f"{path.name} has other joints than the 17 of COCO, or a category without an integer id",
        found=[str(joint) for joint in with_keypoints[0]["keypoints"]][:20],
        hint=f"In this order they are: {', '.join(COCO17.joints)}",
    )


def integer(value: Any) -> int | None:
    """The integer that an id or flag of an annotation file stands for (3, ``"3"`` or 3.0), or None."""
    if isinstance(value, str):
        return int(value) if value.strip().removeprefix("-").isdecimal() else None
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None


def _image(entry: dict[str, Any], path: Path) -> dict[str, Any]:
    """The id, file name and size of an image in plain values; a height or width of null is left out."""
    name, number = entry.get("file_name"), integer(entry.get("id"))
    if not isinstance(name, str) or not name:
        raise DataError(f"an image of {path.name} has no file_name", found=entry)
    if number is None:
        kind = f"of type {type(entry['id']).__name__}" if "id" in entry else "missing"
        raise DataError(
            f"the id of an image of {path.name} must be an integer; it is {kind}", found={"file_name": name} | entry
        )
    image: dict[str, Any] = {"id": number, "file_name": check_inside(name, path)}
    for key in ("height", "width"):
        if entry.get(key) is not None:
            pixels = integer(entry[key])
            if pixels is None or pixels < 1:
                raise DataError(
                    f"the {key} of the image {name} in {path.name} is not a number of pixels", found=entry[key]
                )
            image[key] = pixels
    return image


def _checked(annotation: dict[str, Any], path: Path, skeleton: Skeleton) -> dict[str, Any]:
    """The annotation with every key that is read later, in plain values."""
    try:
        return annotation | _values(annotation, skeleton)
    except KeyError as error:
        reason = f"it has no {error.args[0]}"
    except (TypeError, ValueError) as error:
        reason = str(error)
    raise DataError(
        f"an annotation of {path.name} can't be used: {reason}",
        found=f"annotation {annotation.get('id')}",
        hint="Give COCO keypoint annotations with keypoints, bbox and area",
    )


def _values(annotation: dict[str, Any], skeleton: Skeleton) -> dict[str, Any]:
    flag, joints = annotation.get("iscrowd") or 0, len(skeleton.joints)
    crowd = int(flag) if isinstance(flag, bool) else integer(flag)
    if crowd not in (0, 1):
        raise ValueError(f"its iscrowd is neither 0 nor 1 but {flag!r}")
    # A person whose keypoints are missing, null or empty has no labelled joints.
    keypoints = annotation.get("keypoints") or [0] * 3 * joints
    if len(keypoints) != 3 * joints or not np.isfinite(np.array(keypoints, dtype=np.float64)).all():
        raise ValueError(f"its keypoints are not x, y and visibility of {joints} joints but {len(keypoints)} values")
    keypoints = [float(value) if isinstance(value, str) else value for value in keypoints]
    box = [float(value) for value in annotation["bbox"]]
    if annotation.get("area") is None and skeleton is CROWDPOSE14 and len(box) == 4:
        area = box[2] * box[3] * _BOX_SHARE
    else:
        area = float(annotation["area"])
    if len(box) != 4 or not all(map(math.isfinite, (*box, area))):
        raise ValueError(f"its bbox {box} or area {area} is not made of numbers")
    if area < 0:
        raise ValueError(f"its area {area:g} is negative")
    return {
        "iscrowd": crowd,
        "keypoints": keypoints,
        "num_keypoints": sum(value > 0 for value in keypoints[2::3]),
        "bbox": box,
        "area": area,
    }


def _person(annotation: dict[str, Any]) -> Person:
    crowd = bool(annotation["iscrowd"])
    keypoints: NDArray[np.float32] = np.array(annotation["keypoints"], dtype=np.float32).reshape(-1, 3)
    return Person(
        keypoints=keypoints[:0] if crowd else keypoints,
        box=np.array(annotation["bbox"], dtype=np.float32),
        area=annotation["area"],
        crowd=crowd,
    )
