"""Data sets as they are named on a command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from compress.data.coco import CocoDataset
from compress.data.images import ImageFolder
from compress.data.lip import open_lip
from compress.data.listed import expect_files
from compress.data.lsp import open_lsp, open_lspet
from compress.data.mpii import open_mpii
from compress.data.sample import Dataset
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError, UsageError

#: What `open_data` understands.
FORMS = (
    "synthetic[:SEED[:COUNT]], coco:DIR[,SPLIT], mpii:DIR[,SPLIT], lsp:DIR[,SPLIT], lspet:DIR, lip:DIR[,SPLIT], "
    "crowdpose:DIR[,SPLIT], images:DIR[,DIR], or --annotations FILE with --images DIR"
)


def open_data(
    spec: str | None, *, split: str = "val2017", annotations: Path | None = None, images: Path | None = None
) -> Dataset:
    """The data set of a name.

    Parameters
    ----------
    spec : str or None
        ``synthetic[:SEED[:COUNT]]``: drawn people. ``coco:DIR``: a folder with
        ``annotations/person_keypoints_SPLIT.json`` and the images in ``SPLIT`` or ``images/SPLIT``. ``mpii:DIR``,
        ``lsp:DIR``, ``lspet:DIR``, ``lip:DIR``: folders of single people, see `compress.data.mpii`,
        `compress.data.lsp` and `compress.data.lip`. ``crowdpose:DIR``: a folder with ``images`` and
        ``crowdpose_SPLIT.json``, alone, in ``annotations`` or in ``json``; the split is train, val, trainval or test.
        ``,SPLIT`` after a folder stands for ``split``.
        ``images:DIR[,DIR]``: image files of one or more folders, without annotations. None where ``annotations`` and
        ``images`` say it.
    split : str
        Split of a COCO folder. Of the others the training part if it begins with ``train``, else what is scored.
    annotations, images : Path, optional
        A COCO keypoint file and the folder of its images, wherever they lie.

    Raises
    ------
    DataError
        If the form is unknown, or the data set can't be read.
    UsageError
        If no data set is named, or two are.
    """
    if annotations is not None or images is not None:
        if annotations is None or images is None:
            found = "--images alone" if annotations is None else "--annotations alone"
            raise UsageError("--annotations and --images go together", found=found, hint="Give both")
        if spec is not None:
            raise UsageError("two data sets are named", found=spec, hint="Give --data, or the other two options")
        return CocoDataset(annotations, images)
    if spec is None:
        raise UsageError("no data set is named", hint=f"Give --data: {FORMS}")
    kind, _, rest = spec.partition(":")
    if kind == "synthetic":
        return _drawn(spec)
    if kind in _FOLDERS and rest:
        folder, comma, named = rest.rpartition(",")
        if comma and not Path(rest).is_dir():
            rest, split = folder, named
        return _FOLDERS[kind](Path(rest), split)
    if kind == "images" and rest:
        return ImageFolder(*(Path(folder) for folder in rest.split(",")))
    raise DataError("this names no data set", found=spec, hint=f"Known: {FORMS}")


def _training(split: str) -> str:
    return "train" if split.startswith("train") else "valid"


#: Kinds of folders and what opens them.
_FOLDERS: dict[str, Callable[[Path, str], Dataset]] = {
    "coco": lambda folder, split: _coco(folder, split),
    "mpii": lambda folder, split: open_mpii(folder, _training(split)),
    "lsp": lambda folder, split: open_lsp(folder, _training(split)),
    "lspet": lambda folder, split: open_lspet(folder),
    "crowdpose": lambda folder, split: _crowdpose(folder, split),
    "lip": lambda folder, split: open_lip(folder, _training(split)),
}


#: Splits of CrowdPose.
_CROWDPOSE = ("train", "val", "trainval", "test")


def _drawn(spec: str) -> DrawnPeople:
    _, *numbers = spec.split(":")
    if len(numbers) > 2 or not all(number.lstrip("-").isdecimal() for number in numbers):
        raise DataError(
            "drawn people are named by a whole seed and a count", found=spec, hint="For example synthetic:1:100"
        )
    named: dict[str, Any] = dict(zip(("seed", "count"), map(int, numbers), strict=False))
    return DrawnPeople(**named)


def _coco(folder: Path, split: str) -> CocoDataset:
    if not folder.is_dir():
        raise DataError("there is no such COCO folder", found=str(folder), hint="Check the path")
    annotations = folder / "annotations" / f"person_keypoints_{split}.json"
    if not annotations.is_file():
        splits = sorted(p.stem.removeprefix("person_keypoints_") for p in annotations.parent.glob("person_keypoints_*"))
        raise DataError(
            f"the COCO folder has no keypoint annotations of the split {split}",
            found=str(annotations),
            hint=f"Pass --split: {', '.join(splits)}" if splits else "Put person_keypoints_SPLIT.json there",
        )
    places = (folder / split, folder / "images" / split)
    images = next((place for place in places if place.is_dir()), None)
    if images is None:
        raise DataError(
            f"the COCO folder has no images of the split {split}",
            found=str(folder),
            hint=f"Put them into {places[0]} or {places[1]}, or name them by --annotations and --images",
        )
    return CocoDataset(annotations, images)


def _crowdpose(folder: Path, split: str) -> CocoDataset:
    expect_files(folder, "CrowdPose", ("images",))
    # The splits of COCO are called train2017 and val2017.
    name = f"crowdpose_{split.removesuffix('2017')}.json"
    places = [folder / part / f"{before}{name}" for part in (".", "annotations", "json") for before in ("", "mmpose_")]
    annotations = next((place for place in places if place.is_file()), None)
    if annotations is None:
        raise DataError(
            f"the CrowdPose folder has no {name}",
            found=str(folder),
            hint=f"Put it there, or into its annotations or json; splits are {', '.join(_CROWDPOSE)}",
        )
    return CocoDataset(annotations, folder / "images")
