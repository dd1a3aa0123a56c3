"""A data set that goes on where an image can't be read, and remembers which."""

from __future__ import annotations

from ctypes import c_bool
from multiprocessing.sharedctypes import RawArray
from typing import Any

from compress.data.sample import Dataset, Sample
from compress.errors import DataError

#: Unreadable images in a row after which something else must be wrong than single images.
_TRIES = 20


class Tolerant:
    """Shows the next image that can be read in the place of one that can't.

    So every epoch has its length and order, with any number of loading processes, which all note in shared memory what
    they could not read.

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
        """The sample, or the next one.

        Raises
        ------
        DataError
            That of the sample itself, if many in a row can't be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        error: DataError | None = None
        for other in range(index, index + min(_TRIES, len(self))):
            try:
                return self.data[other % len(self)]
            except DataError as unreadable:
                self._broken[other % len(self)] = True
                error = error or unreadable
        raise error or DataError("the data set is empty", found=self.name)

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images, those that can't be read too."""
        return self.data.ground_truth()

    def broken(self) -> tuple[str, ...]:
        """What is wrong with each image that could not be read so far, in the data set's order."""
        found = []
        for index, noted in enumerate(self._broken[: len(self)]):
            if noted:
                try:
                    self.data[index]
                except DataError as error:
                    found.append(f"{error.cause} ({error.found})" if error.found else error.cause)
        return tuple(found)
