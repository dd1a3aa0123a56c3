"""The first images of a data set."""

from __future__ import annotations

from typing import Any

from compress.data.sample import Dataset, Sample
from compress.errors import UsageError


class Limited:
    """The first images of a data set, in its order.

    Parameters
    ----------
    data : Dataset
        The data set.
    count : int
        Maximum number of images.

    Raises
    ------
    UsageError
        If ``count`` is not positive.
    """

    def __init__(self, data: Dataset, count: int) -> None:
        if count < 1:
            raise UsageError("--limit must be at least 1", found=count)
        self.data, self._count = data, min(count, len(data))
        self.name, self.annotated = f"{data.name} (first {self._count})", data.annotated

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self._count:
            raise IndexError(index)
        return self.data[index]

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of the remaining images."""
        truth = self.data.ground_truth()
        kept = {image["id"] for image in truth["images"][: self._count]}
        return truth | {
            "images": [image for image in truth["images"] if image["id"] in kept],
            "annotations": [entry for entry in truth["annotations"] if entry["image_id"] in kept],
        }
