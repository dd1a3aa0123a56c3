"""Several data sets as one, and which of a network's joints each of them knows."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from compress.data.sample import Dataset, Sample
from compress.errors import DataError
from compress.pose.decoders.registry import get_decoder
from compress.pose.skeleton import Skeleton, convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec


@dataclass(frozen=True)
class Joints:
    """What a data set knows of a skeleton.

    Attributes
    ----------
    data : str
        Name of the data set.
    known : tuple of str
        Joints of the skeleton that its annotations have, or that lie midway between two they have.
    missing : tuple of str
        The others: they stay unlabelled.
    """

    data: str
    known: tuple[str, ...]
    missing: tuple[str, ...]


class Joined:
    """Data sets one after the other; samples keep their skeletons, and their image ids are the index plus one.

    Parameters
    ----------
    *parts : Dataset
        At least one. Together they count as annotated if all are.
    """

    def __init__(self, *parts: Dataset) -> None:
        if not parts:
            raise DataError("there are no data sets to join")
        self.parts = parts
        self.name, self.annotated = " + ".join(part.name for part in parts), all(part.annotated for part in parts)
        self._ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect_right(self._ends, index)
        part = self.parts[number]
        return replace(part[index - self._ends[number] + len(part)], image_id=index + 1)

    def ground_truth(self) -> dict[str, Any]:
        """Annotations of all images; a `DataError` where the data sets have different joints."""
        truths = [part.ground_truth() for part in self.parts]
        joints = {tuple(truth["categories"][0]["keypoints"]) for truth in truths}
        if len(joints) > 1:
            raise DataError(
                "data sets with different joints can't be scored together",
                found=self.name,
                hint="Score them one by one",
            )
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for truth in truths:
            numbers = {image["id"]: len(images) + at for at, image in enumerate(truth["images"], start=1)}
            images += [image | {"id": numbers[image["id"]]} for image in truth["images"]]
            for entry in truth["annotations"]:
                annotations.append(entry | {"id": len(annotations) + 1, "image_id": numbers[entry["image_id"]]})
        return {"images": images, "annotations": annotations, "categories": truths[0]["categories"]}


def known_joints(source: Skeleton, target: Skeleton) -> tuple[bool, ...]:
    """For each joint of a skeleton, whether annotations of another have it (`compress.pose.skeleton`)."""
    converted = convert_keypoints(np.ones((len(source.joints), 3), dtype=np.float32), source, target)
    return tuple(bool(seen) for seen in converted[:, 2] > 0)


def check_joints(parts: Sequence[Dataset], pose: PoseSpec) -> tuple[Joints, ...]:
    """What each data set knows of a network's joints.

    Parameters
    ----------
    parts : sequence of Dataset
        Annotated data; the first sample of each that can be read tells its skeleton.
    pose : PoseSpec
        Of the network.

    Raises
    ------
    DataError
        If one knows none of the joints; or not all, for a network that finds several people: joints that are not
        annotated can be left out of the loss of one person, but not of a map that shows everybody.
    """
    found = []
    for part in parts:
        source = get_skeleton(_first(part).skeleton)
        known = known_joints(source, pose.joints)
        names = pose.joints.joints
        joints = Joints(
            part.name,
            tuple(name for name, there in zip(names, known, strict=True) if there),
            tuple(name for name, there in zip(names, known, strict=True) if not there),
        )
        if not joints.known or (joints.missing and not get_decoder(pose).top_down):
            raise DataError(
                f"{part.name} does not have the joints that the network finds ({pose.skeleton})",
                found=f"{source.name} without {', '.join(joints.missing)}",
                hint="Leave it out, or train a network that sees one person at a time",
            )
        found.append(joints)
    return tuple(found)


def _first(data: Dataset) -> Sample:
    """The first sample that can be read."""
    error: DataError | None = None
    for index in range(len(data)):
        try:
            return data[index]
        except DataError as unreadable:
            error = error or unreadable
    raise error or DataError("the data set is empty", found=data.name)
