"""Image files: reading them, finding them by name, and folders of them as samples without annotations."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from compress.data.sample import Image, Sample, unannotated
from compress.errors import DataError, FileError
from compress.files import read_bytes

#: Suffixes of image files, in lower case.
IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp",
)  # fmt: skip

#: Bits a sample of images that are stored in 16 bits; an image has the fewest that hold its brightest value.
_BIT_DEPTHS = (8, 10, 12, 14, 16)

#: Percentile of a high-dynamic-range image that becomes white.
_HDR_WHITE = 99.5


def read_image(path: Path, *, upright: bool = True) -> Image:
    """The pixels of an image file.

    Parameters
    ----------
    path : Path
        A file in any format that OpenCV reads; of an animation the first frame is taken.
    upright : bool
        Rotate the image by its EXIF orientation.

    Returns
    -------
    array, shape (H, W, 3), uint8
        BGR; a grey image has three equal channels, transparency is dropped. Deeper pixels are scaled by `to_bytes`.

    Raises
    ------
    DataError
        If the file is missing, empty, truncated, or no image.
    """
    image = decode(read_content(path), upright=upright)
    if image is None:
        raise DataError(
            "the image does not decode: it is damaged, truncated, or of an unknown format",
            found=str(path),
            hint="Fetch it again, or leave it out",
        )
    return image


def read_content(path: Path) -> bytes:
    """The bytes of an image file; a `DataError` if it can't be read or is empty."""
    try:
        return read_bytes(path, "image")
    except FileError as error:
        raise DataError(error.cause, found=error.found, hint=error.hint) from error


def decode(content: bytes, *, upright: bool = True) -> Image | None:
    """The pixels of an encoded image as `read_image` gives them; None if it does not decode."""
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        pixels = cv2.imdecode(np.frombuffer(content, dtype=np.uint8), flags)
    except cv2.error:
        return None
    return None if pixels is None else to_bytes(pixels)


def to_bytes(pixels: NDArray[Any]) -> Image:
    """Pixels of any depth in 8 bits, scaled by the range that the image uses.

    Cameras and scanners store 10 or 12 bits in files of 16: of 8, 10, 12, 14 or 16 bits the fewest that hold the
    brightest value are taken. Floating-point images are white at 1, or at their brightest value if that is larger;
    above 255, where a few highlights would leave everything else black, at the 99.5th percentile.
    """
    if pixels.dtype == np.uint8:
        return np.asarray(pixels, dtype=np.uint8)
    if pixels.dtype == np.uint16:
        used = int(pixels.max()).bit_length()
        bits = next(depth for depth in _BIT_DEPTHS if used <= depth)
        return (pixels >> (bits - 8)).astype(np.uint8)
    values = np.maximum(np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0), 0)
    white = max(float(values.max()), 1.0)
    if white > 255:
        white = max(float(np.percentile(values, _HDR_WHITE)), 1.0)
    return np.rint(np.minimum(values * (255 / white), 255)).astype(np.uint8)


def printable(name: str) -> str:
    """A file name with the replacement character for bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def locate_images(names: Sequence[str], folder: Path) -> tuple[Path, ...]:
    """Where the images of an annotation file lie.

    A name fits a file as it is, or else in another Unicode normalisation (macOS decomposes accents), with backslashes
    for slashes, or with its suffix in another case.

    Parameters
    ----------
    names : sequence of str
        File names below the folder, as the annotations give them.
    folder : Path
        Folder of the images.

    Raises
    ------
    DataError
        If the folder or some of the images are missing.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder of images", found=str(folder), hint="Check the path")
    # One listing of the folder is much faster than a hundred thousand questions about single files.
    listings = {folder: _listing(folder)}
    present = set(listings[folder].values())
    places: list[Path] = []
    missing: list[str] = []
    for name in names:
        place = folder / name
        if name not in present and not place.is_file():
            similar = _similar_file(name, folder, listings)
            if similar is None:
                missing.append(name)
                continue
            place = similar
        places.append(place)
    if missing:
        first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(
            f"{len(missing)} of {len(names)} images are not in {folder}",
            found=first,
            hint="Fetch them, name the folder they lie in, or use annotations of the existing images",
        )
    return tuple(places)


def _similar_file(name: str, folder: Path, listings: dict[Path, dict[str, str]]) -> Path | None:
    place = folder
    for part in PurePosixPath(name.replace("\\", "/")).parts:
        if place not in listings:
            listings[place] = _listing(place) if place.is_dir() else {}
        entry = listings[place].get(_normalised(part))
        if entry is None:
            return None
        place = place / entry
    return place if place.is_file() else None


def _listing(folder: Path) -> dict[str, str]:
    """Names of what lies in the folder by their normalised form."""
    return {_normalised(path.name): path.name for path in folder.iterdir()}


def _normalised(name: str) -> str:
    stem, dot, suffix = unicodedata.normalize("NFC", name).rpartition(".")
    return f"{stem}{dot}{suffix.lower()}" if dot else suffix


def check_inside(name: str, source: Path) -> str:
    """The file name; a `DataError` if it leads out of the folder that the user named."""
    windows = PureWindowsPath(name)  # splits at slashes and backslashes
    if not name or windows.drive or windows.root or ".." in windows.parts:
        raise DataError(f"a file_name of {source.name} leads out of the folder of images", found=name)
    return name


class ImageFiles:
    """Image files as samples without annotations; image ids are the index plus one.

    Parameters
    ----------
    paths : sequence of Path
        The files, in their order.
    name : str
        Name of the data set.
    """

    annotated = False

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.name = name
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        path = self._paths[index]
        return unannotated(read_image(path), index, printable(path.name))

    def ground_truth(self) -> dict[str, Any]:
        """Always a `DataError`: image files have no annotations."""
        raise DataError(
            "a folder of images has no annotations to score against",
            found=self.name,
            hint="Use --data coco:DIR, --annotations FILE --images DIR, or --data synthetic",
        )


class ImageFolder(ImageFiles):
    """The image files of one or more folders, each sorted by name; subfolders are not searched.

    Parameters
    ----------
    *folders : Path
        Where the images lie.

    Raises
    ------
    DataError
        If a folder is missing, or holds no images.
    """

    def __init__(self, *folders: Path) -> None:
        name = "images:" + ",".join(printable(folder.name or str(folder)) for folder in folders)
        super().__init__([path for folder in folders for path in _image_files(folder)], name)


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError("there is no such folder of images", found=str(folder), hint="Check the path")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not paths:
        raise DataError(
            "the folder holds no images", found=str(folder), hint=f"Files end in {', '.join(IMAGE_SUFFIXES)}"
        )
    return paths
