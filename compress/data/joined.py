"""Several data sets as one, and which of a network's joints each of them annotates."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from compress.data.sample import Dataset, Sample
from compress.data.tolerant import readable
from compress.errors import DataError
from compress.pose.decoders.registry import get_decoder
from compress.pose.skeleton import Skeleton, convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec


@dataclass(frozen=True)
class Joints:
    """Which joints of a skeleton a data set annotates.

    Attributes
    ----------
    data : str
        Name of the data set.
    known : tuple of str
        Joints of the skeleton that are annotated, or that lie midway between two annotated ones.
    missing : tuple of str
        The others, which stay unlabelled.
    """

    data: str
    known: tuple[str, ...]
    missing: tuple[str, ...]


class Joined:
    """Data sets one after the other; samples keep their skeletons, and image ids are the index plus one.

    Parameters
    ----------
    *parts : Dataset
        At least one. The whole is annotated if all parts are.
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
        """Annotations of all images; a `DataError` if the data sets have different joints."""
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
    """For each joint of the target skeleton, whether annotations of the source have it (`compress.pose.skeleton`)."""
    converted = convert_keypoints(np.ones((len(source.joints), 3), dtype=np.float32), source, target)
    return tuple(bool(known) for known in converted[:, 2] > 0)


def check_joints(parts: Sequence[Dataset], pose: PoseSpec) -> tuple[Joints, ...]:
    """Which of a network's joints each data set annotates.

    Parameters
    ----------
    parts : sequence of Dataset
        Annotated data sets; the first readable sample of each tells its skeleton.
    pose : PoseSpec
        Of the network.

    Raises
    ------
    DataError
        If one annotates none of the joints; or not all, for a bottom-up network: joints that are not annotated can be
        left out of the loss of one person, but not of a map that shows everybody.
    """
    result = []
    for part in parts:
        source = get_skeleton(_first(part).skeleton)
        known = known_joints(source, pose.joints)
        names = pose.joints.joints
        joints = Joints(
            part.name,
            tuple(name for name, is_known in zip(names, known, strict=True) if is_known),
            tuple(name for name, is_known in zip(names, known, strict=True) if not is_known),
        )
        if not joints.known or (joints.missing and not get_decoder(pose).top_down):
            raise DataError(
                f"{part.name} does not have the joints that the network finds ({pose.skeleton})",
                found=f"{source.name} without {', '.join(joints.missing)}",
                hint="Leave it out, or train a top-down network",
            )
        result.append(joints)
    return tuple(result)


def _first(data: Dataset) -> Sample:
    """The first sample that can be read."""
    for sample in readable(data):
        return sample
    raise DataError("the data set is empty", found=data.name)
