"""How well a network finds people: a data set and a runner in, a score out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from compress.data.sample import Dataset, Image, iterate
from compress.errors import DataError
from compress.pose.oks import coco_results, keypoint_ap
from compress.pose.paf import PafOptions, Pose, decode
from compress.pose.prepare import prepare
from compress.runtime.runner import Runner


@dataclass(frozen=True)
class Score:
    """Keypoint metrics with the conditions they hold under.

    Attributes
    ----------
    metrics : mapping of str to float
        COCO's ten numbers, `compress.pose.oks.METRICS`.
    images : int
        Number of images.
    runtime, device, precision : str
        What the network ran on.
    height : int
        Height in pixels that images were scaled to.
    data : str
        Name of the data set.
    seconds : float
        Wall time of everything: reading images, network, decoding and scoring.
    """

    metrics: Mapping[str, float]
    images: int
    runtime: str
    device: str
    precision: str
    height: int
    data: str
    seconds: float


@dataclass(frozen=True)
class Evaluation:
    """A score and what it was computed from.

    Attributes
    ----------
    score : Score
        The metrics.
    detections : list of dict
        All found people as COCO keypoint results.
    """

    score: Score
    detections: list[dict[str, Any]]


def detect(runner: Runner, image: Image, *, height: int | None = None, options: PafOptions | None = None) -> list[Pose]:
    """People in an image.

    Parameters
    ----------
    runner : Runner
        Runs the network.
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    height : int, optional
        Height in pixels that the image is scaled to; the network's own by default.
    options : PafOptions, optional
        How maps become people.

    Returns
    -------
    list of Pose
        In pixels of the image, joints in the order of the runner's skeleton.
    """
    prepared = prepare(image, runner.pose, height)
    maps = runner.run(prepared.array[None])
    return decode(maps["heatmaps"][0], maps["pafs"][0], prepared, runner.pose, options or PafOptions())


def evaluate(
    dataset: Dataset,
    runner: Runner,
    *,
    height: int | None = None,
    options: PafOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Find people in all images of a data set and score them: single scale, no flip.

    Parameters
    ----------
    dataset : Dataset
        Annotated images; those without people count too.
    runner : Runner
        Runs the network.
    height : int, optional
        Height in pixels that images are scaled to; the network's own by default.
    options : PafOptions, optional
        How maps become people.
    progress : callable, optional
        Called as ``progress(images done, all images)`` after each image.

    Raises
    ------
    DataError
        If the data set has no annotations or no images, or an image can't be read.
    """
    start = time.perf_counter()
    if not dataset.annotated:
        raise DataError(
            "there are no annotations to score against",
            found=dataset.name,
            way_out="Use --data coco:DIR, --annotations FILE --images DIR, or --data synthetic",
        )
    detections: list[dict[str, Any]] = []
    image_ids = []
    for sample in iterate(dataset):
        poses = detect(runner, sample.image, height=height, options=options)
        detections += coco_results(poses, sample.image_id, runner.pose.joints)
        image_ids.append(sample.image_id)
        if progress is not None:
            progress(len(image_ids), len(dataset))
    metrics = keypoint_ap(dataset.ground_truth(), detections, image_ids)
    score = Score(
        metrics=metrics,
        images=len(image_ids),
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        height=runner.pose.height if height is None else height,
        data=dataset.name,
        seconds=time.perf_counter() - start,
    )
    return Evaluation(score, detections)
