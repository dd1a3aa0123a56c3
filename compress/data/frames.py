"""Pictures, folders of them, videos and cameras as one stream of images."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from compress.data.images import SUFFIXES, read_image
from compress.data.sample import Image
from compress.errors import DataError, UsageError

#: Suffixes of the videos that are looked for in folders. A file that is named itself may have any.
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")

#: Frames a second of a video or camera that does not say.
_FPS = 25.0


class Source(Protocol):
    """Something that gives images.

    Attributes
    ----------
    name, stem : str
        What it is called, and the name of its output without a suffix.
    path : Path or None
        Its file, if it has one.
    fps : float or None
        Frames a second; None for a picture.
    promised : int or None
        Images that it should give; None where nobody knows.
    """

    name: str
    stem: str
    path: Path | None
    fps: float | None
    promised: int | None

    def images(self) -> Generator[Image, None, None]:
        """Its images in order; a `DataError` where there should be one and none can be read."""
        ...


@dataclass(frozen=True)
class Frame:
    """An image and where it came from.

    Attributes
    ----------
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    image_id : int
        The id that results refer to.
    source : Source
        What it belongs to.
    number : int or None
        Which frame of a video it is, from 0 on; None for a picture.
    """

    image: Image
    image_id: int
    source: Source
    number: int | None


@dataclass(frozen=True)
class Unreadable:
    """A picture or video that gave no image, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Ended:
    """A video or camera that stopped after ``read`` frames; ``promised`` is what a video's file says it has."""

    name: str
    read: int
    promised: int | None


class Picture:
    """An image file."""

    fps: float | None = None
    promised: int | None = 1

    def __init__(self, path: Path) -> None:
        self.name, self.stem = path.name, path.stem
        self.path: Path | None = path
        self._file = path

    def images(self) -> Generator[Image, None, None]:
        """The image, turned as its camera noted."""
        yield read_image(self._file)


class Video:
    """A video file."""

    def __init__(self, path: Path) -> None:
        self.name, self.stem = path.name, path.stem
        self.path: Path | None = path
        capture = _capture(str(path))
        self.fps: float | None = _rate(capture)
        # Streams without an index give nonsense here, below zero or beyond every length.
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0.0
        self.promised: int | None = int(count) if 0 < count < 2**31 else None
        capture.release()

    def images(self) -> Generator[Image, None, None]:
        """All frames that decode."""
        capture = _capture(str(self.path))
        try:
            first = _next(capture)
            if first is None:
                raise DataError(
                    "no frame of it can be read: it is damaged, no video, or coded in a way that OpenCV does not know",
                    found=str(self.path),
                    hint="Fetch it again, or convert it to H.264 in .mp4",
                )
            yield first
            while (image := _next(capture)) is not None:
                yield image
        finally:
            capture.release()


class Camera:
    """A camera of this machine, by its number.

    Raises
    ------
    DataError
        If it is not there or gives nothing.
    """

    path: Path | None = None
    promised: int | None = None

    def __init__(self, number: int) -> None:
        self.name, self.stem = f"camera {number}", f"camera-{number}"
        self._capture = _capture(number)
        if not self._capture.isOpened():
            there = sorted(int(p.name[5:]) for p in Path("/dev").glob("video*") if p.name[5:].isdecimal())
            raise DataError(
                f"there is no camera {number}, or it may not be used",
                found=str(number),
                hint=f"This machine has: {', '.join(map(str, there)) or 'none'}; or name a video or pictures",
            )
        self.fps: float | None = _rate(self._capture)

    def images(self) -> Generator[Image, None, None]:
        """Frames until it is unplugged."""
        try:
            while (image := _next(self._capture)) is not None:
                yield image
        finally:
            self._capture.release()


class Frames:
    """The images of all sources, one after the other.

    The images of a run have ids as results need them: the number that is the file's name, as in COCO, if all sources
    are pictures with different ones; else they are counted from 1 on.

    Parameters
    ----------
    sources : sequence of Source
        As `open_sources` gives them.
    limit : int, optional
        Most images.

    Attributes
    ----------
    total : int or None
        How many images there should be; None if nobody knows.
    live : bool
        Whether a camera is among them, so that they don't end by themselves.
    ended : list of Ended
        Videos and cameras that stopped before they should have, as far as they have been read.
    """

    def __init__(self, sources: Sequence[Source], limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise UsageError("--limit must be at least 1", found=limit)
        self.sources = tuple(sources)
        self.live = any(isinstance(source, Camera) for source in sources)
        promised = [source.promised for source in sources]
        self.total = limit if None in promised else sum(count for count in promised if count is not None)
        if limit is not None and self.total is not None:
            self.total = min(limit, self.total)
        self.ended: list[Ended] = []
        self._limit = limit
        stems = [source.stem for source in sources]
        numbers = [int(stem) if stem.isdecimal() and stem.isascii() else 0 for stem in stems]
        named = all(isinstance(source, Picture) for source in sources) and min(numbers, default=0) > 0
        self._ids = numbers if named and len(set(numbers)) == len(numbers) else None

    def read(self) -> Generator[Frame | Unreadable, None, None]:
        """All images; for a source without a readable one the reason."""
        count = given = 0
        for index, source in enumerate(self.sources):
            number = 0
            try:
                for image in source.images():
                    count, given, number = count + 1, given + 1, number + 1
                    place = None if source.fps is None else number - 1
                    yield Frame(image, count if self._ids is None else self._ids[index], source, place)
                    if given == self._limit:
                        return
            except DataError as error:
                count += 1
                yield Unreadable(source.name, str(error))
                continue
            # A file that does not say how long it is can't break its word.
            if isinstance(source, Camera) or (source.promised is not None and number < source.promised):
                self.ended.append(Ended(source.name, number, source.promised))


def open_sources(inputs: Sequence[Path]) -> tuple[Source, ...]:
    """What inputs stand for: files, the files of folders in the order of their names, and cameras.

    Parameters
    ----------
    inputs : sequence of Path
        Pictures, videos, folders with either, or a camera's number.

    Raises
    ------
    UsageError
        If there is no input.
    DataError
        If one is not there, or a folder holds neither pictures nor videos.
    """
    if not inputs:
        raise UsageError("nothing to look at", hint="Name pictures, folders, videos, or a camera's number")
    found: list[Source] = []
    for path in inputs:
        if path.is_dir():
            files = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES + VIDEO_SUFFIXES and p.is_file())
            if not files:
                raise DataError(
                    "the folder holds neither pictures nor videos",
                    found=str(path),
                    hint=f"Files end in {', '.join(SUFFIXES + VIDEO_SUFFIXES)}; subfolders are not searched",
                )
            found += [_open(file) for file in files]
        elif path.exists():
            found.append(_open(path))
        elif path.name.isdecimal() and path.name.isascii() and path.parent == Path():
            found.append(Camera(int(path.name)))
        else:
            raise DataError("there is no such picture, video or folder", found=str(path), hint="Check the path")
    return tuple(found)


def _open(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return Picture(path)
    if suffix in VIDEO_SUFFIXES:
        return Video(path)
    return Picture(path) if path.is_file() and cv2.haveImageReader(str(path)) else Video(path)


def _capture(what: str | int) -> Any:
    # Read once, when OpenCV loads its decoder: what goes wrong is told in our words.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with _quiet():
        return cv2.VideoCapture(what)


def _next(capture: Any) -> Image | None:
    there, image = capture.read()
    return np.asarray(image, dtype=np.uint8) if there else None


def _rate(capture: Any) -> float:
    fps = float(capture.get(cv2.CAP_PROP_FPS)) if capture.isOpened() else 0.0
    return fps if 0 < fps < 1000 else _FPS


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep OpenCV from writing about cameras and files that it can't open."""
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)
