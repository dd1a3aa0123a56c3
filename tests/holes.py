"""A data set with unreadable images, for tests of how they are handled."""

from __future__ import annotations

from typing import Any

from compress.data.sample import Sample
from compress.data.synthetic import DrawnPeople
from compress.errors import DataError


class Holes:
    """Drawn people; the images with the indices ``broken`` can't be read."""

    annotated = True

    def __init__(self, count: int, broken: set[int]) -> None:
        self.people, self.broken = DrawnPeople(1, count, (64, 64)), broken
        self.name = self.people.name

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, index: int) -> Sample:
        if index in self.broken:
            raise DataError("the image does not decode", found=f"{index}.jpg")
        return self.people[index]

    def ground_truth(self) -> dict[str, Any]:
        return self.people.ground_truth()
