"""Look Into Person (LIP): one person an image, joints from the public CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from compress.data.images import check_inside
from compress.data.listed import Listed, ListedImages, content_of, expect_files, joints_person
from compress.errors import DataError
from compress.pose.skeleton import LIP16

#: Folder of the annotations.
_ANNOTATIONS = "TrainVal_pose_annotations"


def lip_files(folder: Path, part: str) -> tuple[Path, Path]:
    """The joints of a part and the folder of its images, of several possible ones the first that exists."""
    part = "train" if part == "train" else "val"
    images = Path(f"{part}_images")
    nested = folder / "TrainVal_images"
    places = (nested / images, nested / "TrainVal_images" / images, folder / images)
    place = next((place for place in places if place.is_dir()), places[0])
    return folder / _ANNOTATIONS / f"lip_{part}_set.csv", place


def open_lip(folder: Path, part: str) -> ListedImages:
    """LIP's training or validation images (Gong et al., 2017).

    The folder holds ``TrainVal_pose_annotations/lip_train_set.csv`` and ``lip_val_set.csv``: the file name, then x, y
    and a flag for each of the 16 joints, ``NaN`` for a joint that is not annotated. The images lie in
    ``TrainVal_images/train_images`` and ``val_images``, once more inside ``TrainVal_images``, or in the folder itself.
    All annotated joints count as visible: the public evaluation does not read the flag.

    Parameters
    ----------
    folder : Path
        The data set.
    part : str
        ``"train"``, or anything else for the validation.

    Raises
    ------
    DataError
        If the folder has another layout, or a row can't be used.
    """
    path, images = lip_files(folder, part)
    expect_files(folder, "LIP", (str(path.relative_to(folder)),))
    if not images.is_dir():
        raise DataError(
            "there are no images of LIP",
            found=str(images),
            hint=f"Put them there, or into {folder / images.name}",
        )
    try:
        text = content_of(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("the annotation file is not text in UTF-8", found=str(path)) from error
    entries = [_entry(row, number, path) for number, row in enumerate(csv.reader(text.splitlines()), start=1) if row]
    return ListedImages(f"lip:{'train' if part == 'train' else 'val'}", images, entries, LIP16, whole=True)


def _entry(row: list[str], number: int, path: Path) -> Listed:
    try:
        values = np.array(row[1:], dtype=np.float64)
        keypoints = values.reshape(16, 3)
    except ValueError as error:
        raise DataError(
            f"line {number} of {path.name} can't be used",
            found=",".join(row)[:80],
            hint="A line holds the image's name, then x, y and a flag for each of 16 joints",
        ) from error
    keypoints[:, 2] = 2 * np.isfinite(keypoints[:, :2]).all(axis=1)
    return Listed(check_inside(row[0].strip(), path), (joints_person(keypoints),))
