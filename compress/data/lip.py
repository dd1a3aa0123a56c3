"""People of Look Into Person: one person an image, joints from the public CSV files."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from compress.data.images import check_inside
from compress.data.listed import Listed, ListedImages, content_of, expect_files, find_folder, joints_person
from compress.errors import DataError
from compress.pose.skeleton import LIP16

#: Folder of the annotations.
_ANNOTATIONS = "TrainVal_pose_annotations"


def open_lip(folder: Path, part: str) -> ListedImages:
    """LIP's training or validation images (Gong et al., 2017).

    The folder holds ``TrainVal_pose_annotations/lip_train_set.csv`` and ``lip_val_set.csv``: the file name, then x, y
    and a flag for each of the 16 joints, ``NaN`` for a joint that is not annotated. The images lie in
    ``TrainVal_images/train_images`` and ``val_images``, once more inside ``TrainVal_images``, or in the folder itself.
    All annotated joints count as visible: the public evaluation does not read the flag.

    Parameters
    ----------
    folder : Path
        Where it lies.
    part : str
        ``"train"``, or anything else for the validation.

    Raises
    ------
    DataError
        If the folder is another one, or a row can't be used.
    """
    part = "train" if part == "train" else "val"
    source = f"{_ANNOTATIONS}/lip_{part}_set.csv"
    expect_files(folder, "LIP", (source,))
    path = folder / source
    images = f"{part}_images"
    places = (folder / "TrainVal_images" / images, folder / "TrainVal_images" / "TrainVal_images" / images)
    place = find_folder((*places, folder / images), "images of LIP")
    try:
        text = content_of(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError("the annotation file is no text", found=str(path)) from error
    entries = [_entry(row, number, path) for number, row in enumerate(csv.reader(text.splitlines()), start=1) if row]
    return ListedImages(f"lip:{part}", place, entries, LIP16, whole=True)


def _entry(row: list[str], number: int, path: Path) -> Listed:
    try:
        values = np.array(row[1:], dtype=np.float64)
        keypoints = values.reshape(16, 3)
    except ValueError as error:
        raise DataError(
            f"line {number} of {path.name} can't be used",
            found=",".join(row)[:80],
            hint="Give the image's name, then x, y and a flag of 16 joints",
        ) from error
    keypoints[:, 2] = 2 * np.isfinite(keypoints[:, :2]).all(axis=1)
    return Listed(check_inside(row[0].strip(), path), (joints_person(keypoints),))
