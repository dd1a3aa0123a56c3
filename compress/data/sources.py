"""Sources of images: pictures, animations, videos and cameras."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from compress.data.images import IMAGE_SUFFIXES, printable, read_content, read_image, to_bytes
from compress.data.sample import Image
from compress.errors import DataError, UsageError

#: Suffixes of the videos that are looked for in folders. A file that is named itself may have any.
VIDEO_SUFFIXES = (
    ".3gp", ".avi", ".m2ts", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv",
    ".webm", ".wmv",
)  # fmt: skip

#: Suffixes of image files that may hold several images.
_ANIMATED = (".apng", ".avif", ".gif", ".png", ".tif", ".tiff", ".webp")

#: Frames per second of a video or camera that names no usable rate, and of animations without durations.
DEFAULT_FPS = 25.0

#: Pages per second of a TIFF file.
_PAGES_PER_SECOND = 1.0

#: Frames of an animation that are in memory at once.
_CHUNK = 64


class Source(Protocol):
    """Something that gives images.

    Attributes
    ----------
    name, stem : str
        Its name in results, and the name of its output without a suffix.
    path : Path or None
        Its file, if it has one.
    fps : float or None
        Frames per second; None for a picture.
    promised : int or None
        Number of images that its file announces; None if unknown.
    """

    name: str
    stem: str
    path: Path | None
    fps: float | None
    promised: int | None

    def images(self) -> Generator[Image, None, None]:
        """Its images in order; a `DataError` if none can be read."""
        ...


class Picture:
    """An image file."""

    fps: float | None = None
    promised: int | None = 1

    def __init__(self, path: Path) -> None:
        self.name, self.stem = printable(path.name), printable(path.stem)
        self.path: Path | None = path
        self._file = path

    def images(self) -> Generator[Image, None, None]:
        """The image, rotated by its EXIF orientation."""
        yield read_image(self._file)


class Animation:
    """An image file with several images: an animated GIF, PNG, WebP or AVIF, or the pages of a TIFF.

    Parameters
    ----------
    path : Path
        The file.
    count : int
        Number of its images.
    """

    def __init__(self, path: Path, count: int) -> None:
        self.name, self.stem = printable(path.name), printable(path.stem)
        self.path: Path | None = path
        self._file = path
        self._paged = path.suffix.lower() in (".tif", ".tiff")
        self.promised: int | None = count
        self.fps: float | None = _PAGES_PER_SECOND if self._paged else self._frame_rate()

    def _frame_rate(self) -> float:
        try:
            _, durations = self._decode(0)
        except DataError:  # reported when the images are read
            durations = []
        seconds = sum(durations) / 1000
        return usable_rate(len(durations) / seconds if seconds > 0 else 0.0)

    def images(self) -> Generator[Image, None, None]:
        """All frames or pages."""
        start = 0
        while True:
            frames, _ = self._decode(start)
            yield from frames
            start += len(frames)
            if self._paged or len(frames) < _CHUNK:
                return

    def _decode(self, start: int) -> tuple[list[Image], list[int]]:
        """Images from one on, at most `_CHUNK` of an animation, and their durations in milliseconds."""
        content = np.frombuffer(read_content(self._file), dtype=np.uint8)
        durations: list[int] = []
        try:
            if self._paged:
                decoded, frames = cv2.imdecodemulti(content, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
            else:
                decoded, animation = cv2.imdecodeanimation(content, start=start, count=_CHUNK)
                frames, durations = animation.frames, [int(value) for value in animation.durations]
        except cv2.error:
            decoded, frames = False, ()
        if not decoded or (start == 0 and not len(frames)):
            raise DataError(
                "no frame of the animation can be read: it is damaged or truncated",
                found=str(self.path),
                hint="Fetch it again, or leave it out",
            )
        return [to_bytes(np.ascontiguousarray(frame[..., :3])) for frame in frames], durations


class Video:
    """A video file."""

    def __init__(self, path: Path) -> None:
        self.name, self.stem = printable(path.name), printable(path.stem)
        self.path: Path | None = path
        self.fps: float | None = DEFAULT_FPS
        self.promised: int | None = None
        if not opencv_takes(path):
            return
        capture = open_capture(str(path))
        self.fps = _frame_rate(capture)
        # Streams without an index give nonsense here, below zero or beyond every length.
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0.0
        self.promised = int(count) if 0 < count < 2**31 else None
        capture.release()

    def images(self) -> Generator[Image, None, None]:
        """All frames that decode."""
        if self.path is None or not opencv_takes(self.path):
            raise DataError(
                "the video can't be opened: its path is not valid UTF-8", found=str(self.path), hint="Rename it"
            )
        capture = open_capture(str(self.path))
        try:
            first = _next_frame(capture)
            if first is None:
                raise DataError(
                    "no frame of it can be read: it is damaged, no video, or in a codec that OpenCV does not know",
                    found=str(self.path),
                    hint="Fetch it again, or convert it to H.264 in .mp4",
                )
            yield first
            while (image := _next_frame(capture)) is not None:
                yield image
        finally:
            capture.release()


class Camera:
    """A camera of this machine, by its number.

    Raises
    ------
    DataError
        If it is missing or can't be opened.
    """

    path: Path | None = None
    promised: int | None = None

    def __init__(self, number: int) -> None:
        self.name, self.stem = f"camera {number}", f"camera-{number}"
        self._capture = open_capture(number)
        if not self._capture.isOpened():
            present = sorted(int(p.name[5:]) for p in Path("/dev").glob("video*") if p.name[5:].isdecimal())
            raise DataError(
                f"there is no camera {number}, or access to it is denied",
                found=str(number),
                hint=f"This machine has: {', '.join(map(str, present)) or 'none'}; or name a video or pictures",
            )
        self.fps: float | None = _frame_rate(self._capture)

    def images(self) -> Generator[Image, None, None]:
        """Frames until it is unplugged."""
        try:
            while (image := _next_frame(self._capture)) is not None:
                yield image
        finally:
            self._capture.release()


def open_sources(inputs: Sequence[Path]) -> tuple[Source, ...]:
    """The sources that inputs stand for: files, the files of folders in the order of their names, and cameras.

    Parameters
    ----------
    inputs : sequence of Path
        Pictures, videos, folders with either, or a camera's number.

    Raises
    ------
    UsageError
        If there is no input.
    DataError
        If one does not exist, or a folder holds neither pictures nor videos.
    """
    if not inputs:
        raise UsageError("there is no input", hint="Name pictures, folders, videos, or a camera's number")
    sources: list[Source] = []
    for path in inputs:
        if path.is_dir():
            files = sorted(entry for entry in path.iterdir() if _is_wanted(entry))
            if not files:
                raise DataError(
                    "the folder holds neither pictures nor videos",
                    found=str(path),
                    hint=f"Files end in {', '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)}; subfolders are not searched",
                )
            sources += [_open(file) for file in files]
        elif path.exists():
            sources.append(_open(path))
        elif path.name.isdecimal() and path.name.isascii() and path.parent == Path():
            sources.append(Camera(int(path.name)))
        else:
            raise DataError("there is no such picture, video or folder", found=str(path), hint="Check the path")
    return tuple(sources)


def skipped_entries(inputs: Sequence[Path]) -> tuple[Path, ...]:
    """Files and subfolders of the input folders that `open_sources` passes over; hidden ones are not listed."""
    entries = [entry for path in inputs if path.is_dir() for entry in sorted(path.iterdir())]
    return tuple(entry for entry in entries if not _is_wanted(entry) and not entry.name.startswith("."))


def _is_wanted(entry: Path) -> bool:
    return entry.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and entry.is_file()


def _open(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix in VIDEO_SUFFIXES:
        return Video(path)
    if suffix not in IMAGE_SUFFIXES and not (path.is_file() and opencv_takes(path) and cv2.haveImageReader(str(path))):
        return Video(path)
    count = _image_count(path)
    return Animation(path, count) if count > 1 else Picture(path)


def _image_count(path: Path) -> int:
    """Number of images in a file; 1 if unknown."""
    suffix = path.suffix.lower()
    if (suffix in IMAGE_SUFFIXES and suffix not in _ANIMATED) or not opencv_takes(path):
        return 1
    try:
        with path.open("rb") as file:
            if suffix == ".png" and b"acTL" not in file.read(4096):  # the chunk of an animation; most have none
                return 1
        with quiet_opencv():
            return int(cv2.imcount(str(path)))
    except (OSError, cv2.error):  # reported when the image is read
        return 1


def opencv_takes(path: Path) -> bool:
    """Whether OpenCV can be given the path: it crashes on names that are not valid UTF-8."""
    return printable(str(path)) == str(path)


def open_capture(source: str | int) -> Any:
    """OpenCV's reader of a video file or camera, which reports nothing by itself."""
    with quiet_opencv():
        return cv2.VideoCapture(source)


def usable_rate(fps: float) -> float:
    """The frame rate, or `DEFAULT_FPS` where it makes no sense: NaN, below 0.01 or from 1000 on."""
    return fps if 0.01 <= fps < 1000 else DEFAULT_FPS


def _next_frame(capture: Any) -> Image | None:
    decoded, image = capture.read()
    return np.asarray(image, dtype=np.uint8) if decoded else None


def _frame_rate(capture: Any) -> float:
    return usable_rate(float(capture.get(cv2.CAP_PROP_FPS)) if capture.isOpened() else 0.0)


@contextmanager
def quiet_opencv() -> Iterator[None]:
    """Keep OpenCV from printing about files and cameras that it can't open; we report them ourselves."""
    # FFmpeg's level is read once, when OpenCV first loads it.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    log = cv2.utils.logging
    level = log.setLogLevel(log.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        log.setLogLevel(level)
