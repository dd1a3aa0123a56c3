"""Pictures of a report: the people that all models find in the same images, side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from compress.data.sample import Dataset
from compress.data.tolerant import Tolerant
from compress.evaluation.people import find_people, pose_of
from compress.pose.decoders.base import Decoder
from compress.pose.skeleton import get_skeleton
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.reporting.drawing import draw_poses
from compress.reporting.figures import side_by_side
from compress.runtime.runner import Runner


def draw_scenes(
    runners: Mapping[str, Runner],
    dataset: Dataset,
    count: int,
    *,
    decoder: Callable[[PoseSpec], Decoder],
    view: View,
    strict: bool,
) -> tuple[tuple[str, bytes], ...]:
    """Name and PNG of images spread over a data set, with the people of the annotation and of each model.

    Parameters
    ----------
    runners : mapping of str to Runner
        Pose networks by label.
    dataset : Dataset
        Where images come from.
    count : int
        At most this many images.
    decoder : callable
        The decoder for a pose specification.
    view : View
        How networks look at an image.
    strict : bool
        Whether an unreadable image is an error; otherwise the next readable one takes its place.
    """
    if not strict:
        dataset = Tolerant(dataset)
    scenes = []
    for index in np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int):
        sample = dataset[int(index)]
        pictures, labels = [], []
        if dataset.annotated:
            people = [person.keypoints for person in sample.people if not person.crowd]
            pictures.append(draw_poses(sample.image, people, get_skeleton(sample.skeleton)))
            labels.append("annotation")
        for label, runner in runners.items():
            pose = pose_of(runner)
            poses = find_people(runner, sample, decoder=decoder(pose), view=view)
            keypoints = [person.keypoints for person in poses]
            pictures.append(draw_poses(sample.image, keypoints, pose.joints, above=pose.joint_threshold))
            labels.append(label)
        scenes.append((sample.name, side_by_side(pictures, labels)))
    return tuple(scenes)
