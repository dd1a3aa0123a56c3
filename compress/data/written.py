"""Drawn pictures and videos, each written completely or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from types import TracebackType

import cv2

from compress.data.frames import Frame
from compress.data.sample import Image
from compress.data.sources import Source, open_capture, opencv_takes, quiet_opencv, usable_rate
from compress.errors import FileError, UsageError
from compress.files import atomic_path

#: Format of the videos that are written: MPEG-4, which OpenCV encodes on every platform.
VIDEO_SUFFIX = ".mp4"
_CODEC = "mp4v"

#: MPEG-4 stores frame rates as fractions of two numbers of 16 bits.
_MAX_RATE_NUMERATOR = 2**16 - 1


def write_picture(path: Path, image: Image, *, force: bool = True) -> None:
    """Write a BGR image in the format of the path's suffix, in one step.

    Raises
    ------
    FileError
        If it can't be encoded or written, or the file exists and ``force`` is false.
    """
    try:
        encoded, content = cv2.imencode(path.suffix, image)
    except cv2.error:
        encoded = False
    if not encoded:
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
        Frames per second; `container_rate` says which are written.
    size : (int, int)
        Height and width of all frames. The format has even sides only: the last row or column of an odd one is lost.
    force : bool
        Whether an existing file may be replaced.

    Raises
    ------
    FileError
        If the video can't be written, a frame has another size, or frames were lost, as on a full disk.
    """
    frames = 0
    if not opencv_takes(path):
        raise FileError(
            "a video can't be written there: the path is not valid UTF-8", found=str(path), hint="Name another folder"
        )
    with atomic_path(path, force=force) as temporary:
        with quiet_opencv():
            codec = cv2.VideoWriter.fourcc(*_CODEC)
            writer = cv2.VideoWriter(str(temporary), codec, container_rate(fps), (size[1], size[0]))
        if not writer.isOpened():
            raise FileError(
                "this OpenCV can't write such a video",
                found=f"{path}, {size[1]}x{size[0]} at {fps:g} frames per second",
                hint="Write pictures of single frames instead, or install opencv-python-headless",
            )

        def add(image: Image) -> None:
            nonlocal frames
            if image.shape[:2] != size:  # OpenCV would silently leave it out
                raise FileError("a frame has another size than those before it", found=image.shape[:2])
            writer.write(image)
            frames += 1

        try:
            yield add
        finally:
            writer.release()
        written = _frame_count(temporary)
        if written != frames:
            raise FileError(
                f"only {written} of {frames} frames are in the video", found=str(path), hint="Is the disk full?"
            )


def container_rate(fps: float) -> float:
    """The frame rate as MPEG-4 can store it, rounded no more than needed; `DEFAULT_FPS` for one that makes no sense.

    OpenCV writes a rate as a fraction of at most three decimals, whose numerator has to fit into 16 bits: 211.223 does
    not, 211.22 does.
    """
    exact = usable_rate(fps)
    rates = (Fraction(round(exact * 10**digits), 10**digits) for digits in (3, 2, 1))
    return float(next((rate for rate in rates if rate.numerator <= _MAX_RATE_NUMERATOR), round(exact)))


def _frame_count(path: Path) -> int:
    capture = open_capture(str(path))
    try:
        return int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    finally:
        capture.release()


def output_paths(sources: Sequence[Source], folder: Path) -> dict[Source, Path]:
    """Where the drawn images of each source go: its name in the folder, numbered where several have the same.

    Raises
    ------
    UsageError
        If an output would replace one of the sources.
    """
    paths: dict[Source, Path] = {}
    taken: set[str] = set()
    inputs = {source.path.resolve() for source in sources if source.path is not None}
    for source in sources:
        suffix = VIDEO_SUFFIX
        if source.fps is None:
            # Lossless formats become PNG.
            jpeg = source.path is not None and source.path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif")
            suffix = ".jpg" if jpeg else ".png"
        numbers = (f"-{number}" if number > 1 else "" for number in count(1))
        name = next(name for number in numbers if (name := f"{source.stem}{number}{suffix}") not in taken)
        taken.add(name)
        paths[source] = folder / name
        if paths[source].resolve() in inputs:
            raise UsageError(
                "an output would replace an input", found=str(paths[source]), hint="Name another folder with -o"
            )
    return paths


@dataclass(frozen=True)
class Undrawn:
    """A source whose drawing could not be written, and why."""

    name: str
    why: str


class Album:
    """Writes images to the paths of their sources; a video gets its name with its last frame, or not at all.

    A drawing that can't be written is recorded, and its source's other frames are left out: results are worth more
    than their pictures.

    Parameters
    ----------
    paths : dict of Source to Path
        As `output_paths` gives it.
    force : bool
        Whether existing files may be replaced.

    Attributes
    ----------
    written : list of Path
        Complete files, and the video that is being written.
    undrawn : list of Undrawn
        Sources without a drawing.
    """

    def __init__(self, paths: dict[Source, Path], force: bool) -> None:
        self.written: list[Path] = []
        self.undrawn: list[Undrawn] = []
        self._paths, self._force = paths, force
        self._video = ExitStack()
        self._source: Source | None = None
        self._add: Callable[[Image], None] = _drop

    def __enter__(self) -> Album:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._video.__exit__(kind, error, trace)
        else:
            self._close_video()

    def add(self, frame: Frame, image: Image) -> None:
        """Write a picture, or the next frame of a video; the frames of a video come one after the other."""
        if frame.source is not self._source:
            self._close_video()
            self._source = frame.source
            self._start(frame.source, image)
        try:
            self._add(image)
        except FileError as error:
            self._fail(error)

    def _start(self, source: Source, image: Image) -> None:
        path = self._paths[source]
        self.written.append(path)
        if source.fps is None:
            self._add = lambda picture: write_picture(path, picture, force=self._force)
            return
        size = (image.shape[0], image.shape[1])
        try:
            self._add = self._video.enter_context(open_video(path, source.fps, size, force=self._force))
        except FileError as error:
            self._fail(error)

    def _close_video(self) -> None:
        try:
            self._video.close()
        except FileError as error:
            self._fail(error)

    def _fail(self, error: FileError) -> None:
        """Record that the current source has no drawing, drop what there is of it and ignore its other frames."""
        if self._source is None:
            return
        self.written.remove(self._paths[self._source])
        self.undrawn.append(Undrawn(self._source.name, str(error)))
        self._add = _drop
        unfinished, self._video = self._video, ExitStack()
        with suppress(FileError):
            unfinished.__exit__(type(error), error, error.__traceback__)


def _drop(image: Image) -> None:
    """Ignore an image."""
