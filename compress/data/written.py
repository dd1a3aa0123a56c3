"""Pictures and videos that are whole or not there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import cv2

from compress.data.frames import Frame, Source
from compress.data.sample import Image
from compress.errors import FileError, UsageError
from compress.files import atomic_path

#: Kind of the videos that are written: MPEG-4, which OpenCV codes everywhere.
VIDEO_SUFFIX = ".mp4"
_CODEC = "mp4v"


def write_picture(path: Path, image: Image, *, force: bool = True) -> None:
    """Write a BGR image in the format of the path's suffix, in one step.

    Raises
    ------
    FileError
        If it can't be coded or written, or the file is there and ``force`` is false.
    """
    try:
        coded, content = cv2.imencode(path.suffix, image)
    except cv2.error:
        coded = False
    if not coded:
        raise FileError("the picture can't be written in this format", found=str(path), hint="Use .png or .jpg")
    with atomic_path(path, force=force) as temporary:
        temporary.write_bytes(content.tobytes())


@contextmanager
def open_video(
    path: Path, fps: float, size: tuple[int, int], *, force: bool = True
) -> Iterator[Callable[[Image], None]]:
    """Give a function that adds a BGR frame to a video, which gets its name when the block ends without an error.

    Parameters
    ----------
    path : Path
        The video, `VIDEO_SUFFIX`.
    fps : float
        Frames a second.
    size : (int, int)
        Height and width of all frames. The format has even sides only: the last row or column of an odd one is lost.
    force : bool
        Whether a file that is there may be replaced.

    Raises
    ------
    FileError
        If the video can't be written, a frame has another size, or frames got lost, as on a full disk.
    """
    frames = 0
    with atomic_path(path, force=force) as temporary:
        writer = cv2.VideoWriter(str(temporary), cv2.VideoWriter.fourcc(*_CODEC), fps, (size[1], size[0]))
        if not writer.isOpened():
            raise FileError(
                "this OpenCV can't write such a video",
                found=f"{path}, {size[1]}x{size[0]} at {fps:g} frames a second",
                hint="Write pictures of single frames instead, or install opencv-python-headless",
            )

        def add(image: Image) -> None:
            nonlocal frames
            if image.shape[:2] != size:  # OpenCV would leave it out without a word
                raise FileError("a frame has another size than those before it", found=image.shape[:2])
            writer.write(image)
            frames += 1

        try:
            yield add
        finally:
            writer.release()
        written = _count(temporary)
        if written != frames:
            raise FileError(
                f"only {written} of {frames} frames are in the video", found=str(path), hint="Is the disk full?"
            )


def _count(path: Path) -> int:
    capture: Any = cv2.VideoCapture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()


def places(sources: Sequence[Source], folder: Path) -> dict[Source, Path]:
    """Where drawn images of each source go: its name in the folder, with a number where two have the same.

    Raises
    ------
    UsageError
        If that is a file of the sources themselves.
    """
    found: dict[Source, Path] = {}
    taken: set[str] = set()
    inputs = {source.path.resolve() for source in sources if source.path is not None}
    for source in sources:
        suffix = VIDEO_SUFFIX
        if source.fps is None:
            # Formats that lose nothing become PNG.
            suffix = ".jpg" if source.path is not None and source.path.suffix.lower() in (".jpg", ".jpeg") else ".png"
        numbers = (f"-{number}" if number > 1 else "" for number in count(1))
        name = next(name for number in numbers if (name := f"{source.stem}{number}{suffix}") not in taken)
        taken.add(name)
        found[source] = folder / name
        if found[source].resolve() in inputs:
            raise UsageError(
                "an output would replace an input", found=str(found[source]), hint="Name another folder by -o"
            )
    return found


class Album:
    """Writes images to the places of their sources; a video gets its name with its last frame, or not at all.

    Parameters
    ----------
    where : dict of Source to Path
        As `places` gives it.
    force : bool
        Whether files that are there may be replaced.

    Attributes
    ----------
    written : list of Path
        Files so far.
    """

    def __init__(self, where: dict[Source, Path], force: bool) -> None:
        self.written: list[Path] = []
        self._where, self._force = where, force
        self._video = ExitStack()
        self._source: Source | None = None
        self._add: Callable[[Image], None] = lambda image: None

    def __enter__(self) -> Album:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._video.__exit__(kind, error, trace)

    def add(self, frame: Frame, image: Image) -> None:
        """Write a picture, or the next frame of a video; the frames of a video come one after the other."""
        source, path = frame.source, self._where[frame.source]
        if source is not self._source:
            self._video.close()
            self._source = source
            if source.fps is None:
                write_picture(path, image, force=self._force)
            else:
                size = (image.shape[0], image.shape[1])
                self._add = self._video.enter_context(open_video(path, source.fps, size, force=self._force))
            self.written.append(path)
        if source.fps is not None:
            self._add(image)
