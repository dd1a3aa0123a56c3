"""A data set with one sample per person, as epochs of top-down networks are counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compress.data.joined import Joined
from compress.data.sample import Dataset, Sample
from compress.errors import DataError


def people_of(data: Dataset) -> list[tuple[int, int]]:
    """Indices of the sample, and of the person in it, of all people with labelled joints.

    No image is read: a data set's ground truth lists images, and the people of an image, in the order of its samples.
    """
    people: list[tuple[int, int]] = []
    start = 0
    for part in data.parts if isinstance(data, Joined) else (data,):
        truth = part.ground_truth()
        indices = {image["id"]: index for index, image in enumerate(truth["images"], start=start)}
        counts = dict.fromkeys(indices, 0)
        for entry in truth["annotations"]:
            image = entry["image_id"]
            if not entry["iscrowd"] and entry["num_keypoints"]:
                people.append((indices[image], counts[image]))
            counts[image] += 1
        start += len(part)
    return sorted(people)


class EachPerson:
    """One sample for each annotated person with labelled joints: the image with only that person.

    The public top-down training shows every person once an epoch; the images themselves would show one random person
    each.

    Parameters
    ----------
    data : Dataset
        Annotated.
    people : list of (int, int), optional
        The result of `people_of` for a data set that ``data`` wraps.

    Raises
    ------
    DataError
        If it is not annotated, or nobody has a labelled joint.
    """

    annotated = True

    def __init__(self, data: Dataset, people: list[tuple[int, int]] | None = None) -> None:
        self.data = data
        self._people = people_of(data) if people is None else people
        if not self._people:
            raise DataError("nobody in the data set has a labelled joint", found=data.name)
        self.name = f"{data.name} (each person)"

    def __len__(self) -> int:
        return len(self._people)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        image, person = self._people[index]
        sample = self.data[image]
        return replace(sample, people=(sample.people[person],))

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images, each image once."""
        return self.data.ground_truth()
