"""A data set seen person by person, as top-down networks count their epochs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compress.data.joined import Joined
from compress.data.sample import Dataset, Sample
from compress.errors import DataError


def people_of(data: Dataset) -> list[tuple[int, int]]:
    """Index of the sample and number in it of everybody with labelled joints.

    No image is read: a data set's ground truth lists images, and the people of an image, in the order of its samples.
    """
    found: list[tuple[int, int]] = []
    start = 0
    for part in data.parts if isinstance(data, Joined) else (data,):
        truth = part.ground_truth()
        places = {image["id"]: index for index, image in enumerate(truth["images"], start=start)}
        seen = dict.fromkeys(places, 0)
        for entry in truth["annotations"]:
            image = entry["image_id"]
            if not entry["iscrowd"] and entry["num_keypoints"]:
                found.append((places[image], seen[image]))
            seen[image] += 1
        start += len(part)
    return sorted(found)


class EachPerson:
    """One sample for each annotated person with labelled joints: the image with that person alone.

    The public top-down training goes through all people once an epoch; of the images themselves a view of one random
    person each would be shown. For networks that see one person at a time.

    Parameters
    ----------
    data : Dataset
        Annotated.
    people : list of (int, int), optional
        What `people_of` gave, where ``data`` is the same data set in another guise.

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
