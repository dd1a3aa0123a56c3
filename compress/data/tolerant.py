"""Data sets with unreadable images: they are skipped or replaced, counted and reported."""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import c_bool
from multiprocessing.sharedctypes import RawArray
from typing import Any

import numpy as np

from compress.data.sample import Dataset, Sample
from compress.errors import DataError
from compress.progress import Progress, Silent

#: After this many unreadable images in a row the fault is unlikely to lie in single images.
_MAX_TRIES = 20


def readable(dataset: Dataset, progress: Progress | None = None) -> Iterator[Sample]:
    """Iterate over the readable samples in order.

    Parameters
    ----------
    dataset : Dataset
        Where samples come from.
    progress : Progress, optional
        Told the number of unreadable images and the first error, when the iteration ends or is abandoned.

    Yields
    ------
    Sample
        Every readable one.

    Raises
    ------
    DataError
        If no image can be read.
    """
    unreadable: list[DataError] = []
    read = 0
    try:
        for index in range(len(dataset)):
            try:
                sample = dataset[index]
            except DataError as error:
                unreadable.append(error)
                continue
            read += 1
            yield sample
    except GeneratorExit:  # the caller has enough
        if read:
            _report(dataset, unreadable, read, progress)
        raise
    _report(dataset, unreadable, read, progress)


def spread(dataset: Dataset, count: int, progress: Progress | None = None) -> tuple[Sample, ...]:
    """Samples spread evenly over a data set, the next readable one in the place of one that can't be read.

    Parameters
    ----------
    dataset : Dataset
        Where samples come from.
    count : int
        Maximum number of samples.
    progress : Progress, optional
        As of `readable`.

    Raises
    ------
    DataError
        If no image can be read.
    """
    length = len(dataset)
    tried: set[int] = set()
    unreadable: list[DataError] = []
    samples: list[Sample] = []
    for start in np.linspace(0, length - 1, min(count, length)).astype(int).tolist():
        for index in range(start, length):
            if index in tried:
                continue
            tried.add(index)
            try:
                samples.append(dataset[index])
                break
            except DataError as error:
                unreadable.append(error)
    _report(dataset, unreadable, len(samples), progress)
    return tuple(samples)


def _report(dataset: Dataset, unreadable: list[DataError], read: int, progress: Progress | None) -> None:
    """Report unreadable images, or raise a `DataError` if there are no others."""
    if not unreadable:
        return
    first = unreadable[0]
    if not read:
        raise DataError(
            f"none of the {len(unreadable)} images of {dataset.name} can be read; the first: {first.cause}",
            found=first.found,
            hint=first.hint,
        )
    images = "image" if len(unreadable) == 1 else "images"
    (progress or Silent()).say(f"{len(unreadable)} unreadable {images} of {dataset.name} left out; the first: {first}")


class Tolerant:
    """A data set in which the next readable image takes the place of an unreadable one.

    So every epoch keeps its length and order with any number of loading processes, all of which record unreadable
    images in shared memory.

    Parameters
    ----------
    data : Dataset
        Where samples come from.
    """

    def __init__(self, data: Dataset) -> None:
        self.data = data
        self.name, self.annotated = data.name, data.annotated
        self._broken = RawArray(c_bool, max(1, len(data)))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:
        """The sample, or the next one that can be read.

        Raises
        ------
        DataError
            That of the sample itself, if many in a row can't be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        error: DataError | None = None
        for other in range(index, index + min(_MAX_TRIES, len(self))):
            try:
                return self.data[other % len(self)]
            except DataError as unreadable:
                self._broken[other % len(self)] = True
                error = error or unreadable
        raise error or DataError("the data set is empty", found=self.name)

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images, including the unreadable ones."""
        return self.data.ground_truth()

    def broken(self) -> tuple[str, ...]:
        """The error of each image found unreadable so far, in the data set's order."""
        errors = []
        for index, is_broken in enumerate(self._broken[: len(self)]):
            if is_broken:
                try:
                    self.data[index]
                except DataError as error:
                    errors.append(f"{error.cause} ({error.found})" if error.found else error.cause)
        return tuple(errors)
