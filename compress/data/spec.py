"""Data sets as they are written on the command line, in recipes and in Python: ``"coco:DIR,SPLIT"``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from compress.data.coco import CocoDataset
from compress.data.folders import coco_files, crowdpose_files, open_coco, open_crowdpose
from compress.data.images import ImageFolder
from compress.data.lip import lip_files, open_lip
from compress.data.lsp import lsp_files, open_lsp, open_lspet
from compress.data.mpii import PARTS, mpii_files, open_mpii
from compress.data.sample import Dataset
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError

#: Every text that names a data set.
SPEC_HELP = (
    "synthetic[:SEED[:COUNT]], coco:DIR[,SPLIT], coco:FILE.json,DIR, mpii:DIR[,SPLIT], lsp:DIR[,SPLIT], lspet:DIR, "
    "lip:DIR[,SPLIT], crowdpose:DIR[,SPLIT] or images:DIR[,DIR]"
)

#: Split of a folder where neither the text nor ``--split`` names one.
DEFAULT_SPLIT = "val2017"


@dataclass(frozen=True)
class _Layout:
    """A kind of folder: how a split is opened, and the files and folders that are read then."""

    open: Callable[[Path, str], Dataset]
    files: Callable[[Path, str], tuple[Path, ...]]


_LAYOUTS = {
    "coco": _Layout(open_coco, coco_files),
    "crowdpose": _Layout(open_crowdpose, crowdpose_files),
    "mpii": _Layout(
        lambda folder, split: open_mpii(folder, _mpii_part(split)),
        lambda folder, split: mpii_files(folder, _mpii_part(split)),
    ),
    "lsp": _Layout(lambda folder, split: open_lsp(folder, _part(split)), lambda folder, split: lsp_files(folder)),
    "lspet": _Layout(lambda folder, split: open_lspet(folder), lambda folder, split: lsp_files(folder)),
    "lip": _Layout(
        lambda folder, split: open_lip(folder, _part(split)), lambda folder, split: lip_files(folder, _part(split))
    ),
}


#: Kinds of data sets: what stands before the colon.
KINDS = ("synthetic", "images", *_LAYOUTS)


def _part(split: str) -> str:
    return "train" if split.startswith("train") else "valid"


def _mpii_part(split: str) -> str:
    return split if split in PARTS else _part(split)


@dataclass(frozen=True)
class DataSpec:
    """A data set by name: what kind it is and where it lies. Nothing is read before `open`.

    Attributes
    ----------
    kind : str
        ``"synthetic"``, ``"images"``, or a folder layout such as ``"coco"``.
    places : tuple of Path
        ``images``: the folders. ``coco`` with two places: an annotation file and the folder of its images. Otherwise
        one folder, perhaps followed by ``,SPLIT``.
    numbers : tuple of int
        ``synthetic``: the seed and the number of images, as far as they are given.
    default_split : str
        The split where ``places`` names none.
    """

    kind: str
    places: tuple[Path, ...] = ()
    numbers: tuple[int, ...] = ()
    default_split: str = DEFAULT_SPLIT

    @classmethod
    def parse(cls, text: str, *, split: str = DEFAULT_SPLIT) -> DataSpec:
        """Read a data set's name.

        Parameters
        ----------
        text : str
            ``synthetic[:SEED[:COUNT]]``: drawn people. ``coco:DIR``: a folder with
            ``annotations/person_keypoints_SPLIT.json`` and the images in ``SPLIT`` or ``images/SPLIT``.
            ``coco:FILE.json,DIR``: a COCO keypoint file and the folder of its images. ``mpii:DIR``, ``lsp:DIR``,
            ``lspet:DIR``, ``lip:DIR``: folders with one person an image or a list of people, see
            `compress.data.mpii`, `compress.data.lsp` and `compress.data.lip`. ``crowdpose:DIR``: see
            `compress.data.folders`. ``,SPLIT`` after a folder replaces ``split``. ``images:DIR[,DIR]``: image files of
            one or more folders, without annotations. A leading ``~`` of a path is the home folder.
        split : str
            Split of COCO and CrowdPose; the others take their training part if it begins with ``train``, else the part
            that is scored. MPII also has ``train80`` and ``valid20``, see `compress.data.mpii.open_mpii`.

        Raises
        ------
        DataError
            If the text names no data set.
        """
        kind, _, rest = text.partition(":")
        if kind == "synthetic":
            return cls(kind, numbers=_numbers(text), default_split=split)
        if kind == "images" and rest:
            whole = _expand(rest)
            places = (whole,) if "," not in rest or whole.is_dir() else tuple(map(_expand, rest.split(",")))
            return cls(kind, places, default_split=split)
        if kind in _LAYOUTS and rest:
            annotations, comma, images = rest.partition(".json,")
            if kind == "coco" and comma and images:
                return cls.of_files(Path(f"{annotations}.json"), Path(images))
            return cls(kind, (_expand(rest),), default_split=split)
        hint = f"Name one of {SPEC_HELP}"
        if not rest and kind and _expand(kind).is_dir():
            hint = f"For the images of a folder write images:{text}; other data sets are {SPEC_HELP}"
        raise DataError("this names no data set", found=text, hint=hint)

    @classmethod
    def of_files(cls, annotations: Path, images: Path) -> DataSpec:
        """A COCO keypoint file and the folder of its images, wherever they lie."""
        return cls("coco", (_expand(str(annotations)), _expand(str(images))))

    def __str__(self) -> str:
        """The text that `parse` reads."""
        if self.kind == "synthetic":
            return ":".join([self.kind, *map(str, self.numbers)])
        text = f"{self.kind}:{','.join(map(str, self.places))}"
        named = self.kind == "images" or len(self.places) > 1 or self._folder_and_split()[0] != self.places[0]
        return text if named or self.default_split == DEFAULT_SPLIT else f"{text},{self.default_split}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files and folders that are read, whether they exist or not; absolute after `placed`."""
        if self.kind in _LAYOUTS and len(self.places) == 1:
            return _LAYOUTS[self.kind].files(*self._folder_and_split())
        return self.places

    def placed(self, base: Path) -> DataSpec:
        """The same data set with relative paths taken from ``base``; absolute if ``base`` is."""
        return replace(self, places=tuple(base / place for place in self.places))

    def open(self) -> Dataset:
        """The data set.

        Raises
        ------
        DataError
            If files are missing or can't be used.
        """
        if self.kind == "synthetic":
            named: dict[str, Any] = dict(zip(("seed", "count"), self.numbers, strict=False))
            return DrawnPeople(**named)
        if self.kind == "images":
            return ImageFolder(*self.places)
        if len(self.places) > 1:
            return CocoDataset(*self.places)
        return _LAYOUTS[self.kind].open(*self._folder_and_split())

    def _folder_and_split(self) -> tuple[Path, str]:
        """A comma divides folder and split, unless it belongs to the name of a folder that exists."""
        place = self.places[0]
        name, comma, split = place.name.rpartition(",")
        if not comma or place.is_dir():
            return place, self.default_split
        return place.parent / name, split


def _expand(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise DataError("there is no such home folder", found=text, hint="Write the path in full") from error


def _numbers(text: str) -> tuple[int, ...]:
    _, *numbers = text.split(":")
    if len(numbers) > 2 or not all(number.removeprefix("-").isdecimal() for number in numbers):
        raise DataError(
            "drawn people are named by an integer seed and a count", found=text, hint="For example synthetic:1:100"
        )
    return tuple(map(int, numbers))
