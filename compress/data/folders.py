"""Folders in the layout of COCO and of CrowdPose: where their files lie."""

from __future__ import annotations

from pathlib import Path

from compress.data.coco import CocoDataset
from compress.data.listed import expect_files
from compress.errors import DataError

#: Splits of CrowdPose.
_CROWDPOSE_SPLITS = ("train", "val", "trainval", "test")


def coco_files(folder: Path, split: str) -> tuple[Path, Path]:
    """The annotation file and the image folder of a split; of two possible image folders the one that exists."""
    places = _coco_images(folder, split)
    images = next((place for place in places if place.is_dir()), places[0])
    return folder / "annotations" / f"person_keypoints_{split}.json", images


def open_coco(folder: Path, split: str) -> CocoDataset:
    """One split of a COCO folder.

    Parameters
    ----------
    folder : Path
        Holds ``annotations/person_keypoints_SPLIT.json`` and the images in ``SPLIT`` or ``images/SPLIT``.
    split : str
        For example ``"val2017"``.

    Raises
    ------
    DataError
        If the folder, its annotations or its images are missing.
    """
    if not folder.is_dir():
        raise DataError("there is no such COCO folder", found=str(folder), hint="Check the path")
    annotations, images = coco_files(folder, split)
    if not annotations.is_file():
        splits = sorted(p.stem.removeprefix("person_keypoints_") for p in annotations.parent.glob("person_keypoints_*"))
        raise DataError(
            f"the COCO folder has no keypoint annotations of the split {split}",
            found=str(annotations),
            hint=f"Pass --split: {', '.join(splits)}" if splits else "Put person_keypoints_SPLIT.json there",
        )
    if not images.is_dir():
        first, second = _coco_images(folder, split)
        raise DataError(
            f"the COCO folder has no images of the split {split}",
            found=str(folder),
            hint=f"Put them into {first} or {second}, or pass --annotations and --images",
        )
    return CocoDataset(annotations, images)


def _coco_images(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / split, folder / "images" / split


def crowdpose_files(folder: Path, split: str) -> tuple[Path, Path]:
    """The annotation file of a split, of several possible ones the first that exists, and the image folder."""
    name = _crowdpose_name(split)
    places = [folder / part / f"{before}{name}" for part in (".", "annotations", "json") for before in ("", "mmpose_")]
    return next((place for place in places if place.is_file()), places[0]), folder / "images"


def open_crowdpose(folder: Path, split: str) -> CocoDataset:
    """One split of CrowdPose (Li et al., 2019).

    Parameters
    ----------
    folder : Path
        Holds ``images`` and ``crowdpose_SPLIT.json``, beside them or in ``annotations`` or ``json``.
    split : str
        ``"train"``, ``"val"``, ``"trainval"`` or ``"test"``; COCO's ``"train2017"`` and ``"val2017"`` stand for the
        first two.

    Raises
    ------
    DataError
        If the folder, its annotations or its images are missing.
    """
    expect_files(folder, "CrowdPose", ("images",))
    annotations, images = crowdpose_files(folder, split)
    if not annotations.is_file():
        raise DataError(
            f"the CrowdPose folder has no {_crowdpose_name(split)}",
            found=str(folder),
            hint=f"Put it there, or into annotations or json; the splits are {', '.join(_CROWDPOSE_SPLITS)}",
        )
    return CocoDataset(annotations, images)


def _crowdpose_name(split: str) -> str:
    return f"crowdpose_{split.removesuffix('2017')}.json"
