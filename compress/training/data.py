"""Annotated data as training reads it: cached, person by person, tolerant of unreadable images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.data.cache import Cached
from compress.data.each_person import EachPerson, people_of
from compress.data.joined import check_joints
from compress.data.sample import Dataset
from compress.data.tolerant import Tolerant
from compress.errors import UsageError
from compress.pose.decoders.registry import get_decoder
from compress.pose.spec import PoseSpec
from compress.progress import Progress


@dataclass(frozen=True)
class DataPreparation:
    """What of a data set becomes training examples.

    Attributes
    ----------
    each_person : bool
        An epoch shows every annotated person once instead of every image (networks that see one person).
    strict : bool
        An unreadable image is an error; otherwise it is replaced by the next and counted.
    cache : Path or None
        Folder that keeps the decoded samples.
    """

    each_person: bool = False
    strict: bool = False
    cache: Path | None = None


def prepare_data(
    dataset: Dataset, pose: PoseSpec | None, preparation: DataPreparation, progress: Progress, *, labels: bool
) -> Dataset:
    """A data set for training; reports the joints of the network that it lacks.

    Parameters
    ----------
    dataset : Dataset
        Images, with or without annotations.
    pose : PoseSpec or None
        Of the network.
    preparation : DataPreparation
        What becomes an example.
    progress : Progress
        Where missing joints are reported.
    labels : bool
        Whether annotations are used.

    Raises
    ------
    DataError
        If annotations have none of the network's joints.
    UsageError
        If ``each_person`` is set for a network that finds several people.
    """
    if dataset.annotated and labels and pose is not None:
        for joints in check_joints(getattr(dataset, "parts", (dataset,)), pose):
            if joints.missing:
                progress.say(f"{joints.data}: {len(joints.known)} joints; no labels for {', '.join(joints.missing)}")
    if preparation.each_person and (pose is None or not get_decoder(pose).top_down):
        raise UsageError(
            "only networks that see one person at a time are trained person by person", hint="Leave out --each-person"
        )
    people = people_of(dataset) if preparation.each_person else None
    if preparation.cache is not None:
        dataset = Cached(dataset, preparation.cache)
    if people is not None:
        dataset = EachPerson(dataset, people)
    return dataset if preparation.strict else Tolerant(dataset)


def unreadable(dataset: object) -> tuple[str, ...]:
    """What is wrong with each image that training left out so far."""
    return dataset.broken() if isinstance(dataset, Tolerant) else ()
