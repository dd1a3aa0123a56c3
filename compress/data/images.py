"""Image files, and a folder of them as samples without annotations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np

from compress.data.sample import Image, Sample
from compress.errors import DataError, FileError
from compress.files import read_bytes

#: Suffixes that are taken for images.
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def read_image(path: Path, *, upright: bool = True) -> Image:
    """The pixels of an image file.

    Parameters
    ----------
    path : Path
        A file of any kind that OpenCV reads.
    upright : bool
        Turn the image as its camera noted in the file. Annotated images are left as they lie in the file, because
        that is what their annotations were drawn on.

    Returns
    -------
    array, shape (H, W, 3), uint8
        BGR; a grey image has three equal channels, transparency is dropped.

    Raises
    ------
    DataError
        If the file is missing, empty, cut off, or no image.
    """
    try:
        content = read_bytes(path, "image")
    except FileError as error:
        raise DataError(error.cause, found=error.found, hint=error.hint) from error
    except OSError as error:
        raise DataError(f"the image can't be read: {error.strerror}", found=str(path)) from error
    flags = cv2.IMREAD_COLOR if upright else cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        image = None
    if image is None:
        raise DataError(
            "the image does not decode: it is damaged, cut off, or of an unknown kind",
            found=str(path),
            hint="Fetch it again, or leave it out",
        )
    return np.asarray(image, dtype=np.uint8)


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError("there is no such folder of images", found=str(folder), hint="Check the path")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not paths:
        raise DataError("the folder holds no images", found=str(folder), hint=f"Files end in {', '.join(SUFFIXES)}")
    return paths


def check_there(names: Sequence[str], folder: Path) -> None:
    """Refuse, with a `DataError`, a folder that lacks some of the image files."""
    if not folder.is_dir():
        raise DataError("there is no such folder of images", found=str(folder), hint="Check the path")
    # One listing of the folder is much faster than a hundred thousand questions about single files.
    listed = {path.name for path in folder.iterdir()}
    missing = [name for name in names if name not in listed and not (folder / name).is_file()]
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(names)} images are not in {folder}",
            found=first,
            hint="Fetch them, name the folder they lie in, or take annotations of the images that are there",
        )


def check_inside(name: str, source: Path) -> str:
    """The file name, refused with a `DataError` where it leads out of the folder that the user named."""
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError(f"a file_name of {source.name} leads out of the folder of images", found=name)
    return name


class ImageFolder:
    """The image files of one or more folders, each sorted by name, without annotations.

    Subfolders are not searched. Image ids are the index plus one.

    Parameters
    ----------
    *folders : Path
        Where the images lie.

    Raises
    ------
    DataError
        If a folder is not there, or holds no image.
    """

    annotated = False

    def __init__(self, *folders: Path) -> None:
        self.name = "images:" + ",".join(folder.name or str(folder) for folder in folders)
        self._paths = [path for folder in folders for path in _image_files(folder)]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        path = self._paths[index]
        image = read_image(path)
        return Sample(
            image=image,
            people=(),
            mask=np.ones(image.shape[:2], dtype=np.bool_),
            image_id=index + 1,
            name=path.name,
        )

    def ground_truth(self) -> dict[str, Any]:
        """Always a `DataError`: a folder of images has no annotations."""
        raise DataError(
            "a folder of images has no annotations to score against",
            found=self.name,
            hint="Use --data coco:DIR, --annotations FILE --images DIR, or --data synthetic",
        )
