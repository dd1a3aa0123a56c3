"""The images of pictures, videos and cameras as one stream."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from compress.data.sample import Image
from compress.data.sources import Camera, Picture, Source
from compress.errors import DataError, UsageError


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
        Index of the frame in its video, from 0; None for a picture.
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
    """A video or camera that stopped after ``read`` frames of ``promised``, the number its file announces."""

    name: str
    read: int
    promised: int | None


class Frames:
    """The images of all sources, one after the other.

    The ids of the images are, as in COCO, the numbers that the files are named by, if all sources are pictures named by
    different numbers; else they are counted from 1.

    Parameters
    ----------
    sources : sequence of Source
        As `compress.data.sources.open_sources` gives them.
    limit : int, optional
        Maximum number of images.

    Attributes
    ----------
    total : int or None
        Expected number of images; None if unknown.
    live : bool
        Whether a camera is among them, so that the stream need not end.
    ended : list of Ended
        Videos and cameras that stopped early, as far as they have been read.

    Raises
    ------
    UsageError
        If ``limit`` is not positive.
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
        numbered = all(isinstance(source, Picture) for source in sources) and min(numbers, default=0) > 0
        self._ids = numbers if numbered and len(set(numbers)) == len(numbers) else None

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
            # A file that does not announce its length can't fall short of it.
            if isinstance(source, Camera) or (source.promised is not None and number < source.promised):
                self.ended.append(Ended(source.name, number, source.promised))
