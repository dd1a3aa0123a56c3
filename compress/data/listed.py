"""Lists of images with their people: what the readers of MPII, LSP and LIP share."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from numpy.typing import NDArray

from compress.data.images import locate_images, read_image
from compress.data.sample import Person, Sample
from compress.errors import DataError, FileError
from compress.files import read_bytes
from compress.pose.skeleton import Skeleton

#: What scipy raises on files that are not MATLAB's, truncated, or of an unsupported version.
_MATLAB_ERRORS = (
    scipy.io.matlab.MatReadError, zlib.error, struct.error, OSError, ValueError, NotImplementedError, TypeError,
    KeyError, IndexError, MemoryError,
)  # fmt: skip


@dataclass(frozen=True)
class Listed:
    """One image of a list.

    Attributes
    ----------
    name : str
        File name in the folder of images.
    people : tuple of Person
        Its people.
    facts : tuple of mapping
        For each person, values that its annotation in the ground truth has in addition or instead.
    """

    name: str
    people: tuple[Person, ...]
    facts: tuple[Mapping[str, Any], ...] = field(default=())


class ListedImages:
    """Samples of a list of images with people; image ids are the index plus one.

    Parameters
    ----------
    name : str
        Name of the data set.
    images : Path
        Folder of the images.
    entries : sequence of Listed
        Every image once.
    skeleton : Skeleton
        Of the keypoints.
    whole : bool
        Whether each image shows one person, whose view is the whole image.

    Raises
    ------
    DataError
        If images are missing in the folder, or there are none.
    """

    annotated = True

    def __init__(
        self, name: str, images: Path, entries: Sequence[Listed], skeleton: Skeleton, *, whole: bool = False
    ) -> None:
        if not entries:
            raise DataError("the data set lists no images", found=name)
        self._paths = locate_images([entry.name for entry in entries], images)
        self.name, self._entries, self._skeleton, self._whole = name, entries, skeleton, whole

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        entry = self._entries[index]
        image = read_image(self._paths[index], upright=False)
        people = entry.people
        if self._whole:
            view = np.array([0, 0, image.shape[1], image.shape[0]], dtype=np.float32)
            people = tuple(replace(person, view=view) for person in people)
        mask = np.ones(image.shape[:2], dtype=np.bool_)
        return Sample(image, people, mask, index + 1, entry.name, self._skeleton.name)

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images as a COCO keypoint record with the joints of this data set."""
        annotations: list[dict[str, Any]] = []
        for number, entry in enumerate(self._entries, start=1):
            for person, facts in zip(entry.people, entry.facts or ({},) * len(entry.people), strict=True):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number,
                        "category_id": 1,
                        "iscrowd": 0,
                        "keypoints": person.keypoints.ravel().tolist(),
                        "num_keypoints": int((person.keypoints[:, 2] > 0).sum()),
                        "bbox": person.box.tolist(),
                        "area": person.area,
                        **facts,
                    }
                )
        return {
            "images": [{"id": n, "file_name": entry.name} for n, entry in enumerate(self._entries, start=1)],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person", "keypoints": list(self._skeleton.joints)}],
        }


def joints_person(keypoints: NDArray[np.floating], view: NDArray[np.float32] | None = None) -> Person:
    """A person of whom only joints (K, 3) are annotated: the box is the bounds of the labelled ones."""
    labelled = keypoints[:, 2] > 0
    cleaned = np.where(labelled[:, None], keypoints, 0).astype(np.float32)
    low, high = np.zeros(2, np.float32), np.ones(2, np.float32)
    if labelled.any():
        low, high = cleaned[labelled, :2].min(axis=0) - 0.5, cleaned[labelled, :2].max(axis=0) + 0.5
    box = np.concatenate([low, high - low]).astype(np.float32)
    return Person(cleaned, box, float(box[2] * box[3]), view=view)


def expect_files(folder: Path, kind: str, names: Sequence[str]) -> None:
    """Raise a `DataError` if a folder lacks some of the files of its kind."""
    if not folder.is_dir():
        raise DataError(f"there is no such folder of {kind}", found=str(folder), hint="Check the path")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise DataError(
            f"the folder is not one of {kind}: it lacks {', '.join(missing)}",
            found=str(folder),
            hint=f"A folder of {kind} holds {', '.join(names)}",
        )


def content_of(path: Path) -> bytes:
    """The bytes of an annotation file; a `DataError` if it can't be read."""
    try:
        return read_bytes(path, "annotation file")
    except FileError as error:
        raise DataError(error.cause, found=error.found, hint=error.hint) from error


def read_list(path: Path) -> list[dict[str, Any]]:
    """The JSON list of objects in a file; a `DataError` if it holds anything else."""
    try:
        record = json.loads(content_of(path))
    except (RecursionError, ValueError) as error:
        raise DataError(f"the annotation file is not JSON, or truncated ({error})", found=str(path)) from error
    if not isinstance(record, list) or not all(isinstance(entry, dict) for entry in record):
        raise DataError("the annotation file is not a list of people", found=str(path))
    return record


def read_matlab(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of a MATLAB file by name; a `DataError` if it can't be read or lacks one."""
    try:
        content = scipy.io.loadmat(str(path), variable_names=list(names))
    except _MATLAB_ERRORS as error:
        raise DataError(f"the MATLAB file can't be read: {error}", found=str(path)) from error
    missing = [name for name in names if name not in content]
    if missing:
        raise DataError(f"the MATLAB file has no {', '.join(missing)}", found=str(path))
    return {name: np.asarray(content[name]) for name in names}
