"""How well a network finds people: a data set and a runner in, a score out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from compress.data.boxes import Boxes
from compress.data.sample import Dataset, Sample
from compress.errors import DataError
from compress.evaluation.people import find_people, pose_of
from compress.pose.crop import crop_size
from compress.pose.decoders.base import Decoder
from compress.pose.decoders.registry import get_decoder
from compress.pose.metrics.oks import keypoint_ap, people_records
from compress.pose.metrics.pck import Pck, pck_lsp, pckh_lip, pckh_mpii
from compress.pose.skeleton import COCO17, LIP16, LSP14, MPII16, Skeleton, get_skeleton
from compress.pose.spec import PoseSpec
from compress.pose.views import View
from compress.runtime.runner import Runner

T = TypeVar("T")

#: More unreadable images than this are an error of the data set.
_MAX_UNREADABLE = 100

#: What scores of boxes taken from the annotations are called.
GT_BOXES = "gt boxes"

_OKS = "COCO OKS AP, ten thresholds"


@dataclass(frozen=True)
class Score:
    """Keypoint metrics with the conditions they hold under.

    Attributes
    ----------
    metrics : mapping of str to float
        The metrics that apply to the data, the headline first: COCO's ten numbers,
        `compress.pose.metrics.oks.METRICS`, or shares of joints found, `compress.pose.metrics.pck`. All lie between 0
        and 1, or are -1 without people.
    images : int
        Number of images.
    runtime, device, precision : str
        What the network ran on.
    height : int
        Height in pixels that images, or crops of people, were scaled to.
    data : str
        Name of the data set.
    seconds : float
        Wall time of everything: reading images, network, decoding and scoring.
    convention : str
        What the metrics mean, and how people were found.
    boxes : str or None
        Where a top-down network's boxes come from: ``"gt boxes"`` (the annotations, which is worth one or two points
        of AP) or the name of a file of detections. None for networks that find people by themselves.
    broken : tuple of str
        For each image that could not be read and was left out, the reason.
    """

    metrics: Mapping[str, float]
    images: int
    runtime: str
    device: str
    precision: str
    height: int
    data: str
    seconds: float
    convention: str = _OKS
    boxes: str | None = None
    broken: tuple[str, ...] = ()

    @property
    def headline(self) -> tuple[str, float]:
        """Name and value of the main metric."""
        return next(iter(self.metrics.items()))


@dataclass(frozen=True)
class Evaluation:
    """A score and what it was computed from.

    Attributes
    ----------
    score : Score
        The metrics.
    detections : list of dict
        All people that were found as COCO keypoint results.
    """

    score: Score
    detections: list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluationOptions:
    """How people are found and scored.

    Attributes
    ----------
    decoder : Decoder or None
        From outputs to people; that of the network's pose specification by default.
    view : View
        Height that images or crops are scaled to, flip test and scales.
    boxes : Boxes or None
        Where a top-down network looks for people; the annotated boxes by default.
    strict : bool
        Whether an image that can't be read is an error. Otherwise it and its people are left out, and the score says
        how many there were.
    """

    decoder: Decoder | None = None
    view: View = field(default_factory=View)
    boxes: Boxes | None = None
    strict: bool = True


class ProcessGroup(Protocol):
    """Processes that share the images of an evaluation: this one is ``number`` of ``count``."""

    number: int
    count: int

    def gather(self, value: T) -> list[T]:
        """The values of all processes, in the order of their numbers."""

    def from_main(self, compute: Callable[[], T]) -> T:
        """What the main process computes."""


@dataclass
class _Found:
    """What one process found, by index of the image."""

    results: dict[int, tuple[int, list[dict[str, Any]]]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    skeleton: Skeleton = COCO17


def evaluate_dataset(
    dataset: Dataset,
    runner: Runner,
    options: EvaluationOptions | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    group: ProcessGroup | None = None,
) -> Evaluation:
    """Find people in all images of a data set and score them.

    A network that sees one person at a time is given a crop for each annotated person with labelled joints, or for
    each of the given boxes; any other is given whole images. See `compress.evaluation.people.find_people`.

    Data with the joints of COCO is scored by OKS, that of MPII, LIP and LSP by the share of joints found, one crop for
    each annotated person. Joints that the network's skeleton lacks count as not found.

    Parameters
    ----------
    dataset : Dataset
        Annotated images; those without people count too.
    runner : Runner
        Runs the network.
    options : EvaluationOptions, optional
        How people are found.
    progress : callable, optional
        Called as ``progress(images done, all images)`` after each image.
    group : ProcessGroup, optional
        Processes that share the images; each gets the result that one alone would have.

    Raises
    ------
    DataError
        If the data set has no annotations or no images, none or (``strict``) one can't be read, or the network or the
        boxes do not suit the data.
    """
    start = time.perf_counter()
    options = options or EvaluationOptions()
    pose = pose_of(runner)
    decoder = options.decoder or get_decoder(pose)
    if not dataset.annotated:
        raise DataError(
            "there are no annotations to score against",
            found=dataset.name,
            hint="Use --data coco:DIR, --annotations FILE --images DIR, or --data synthetic",
        )
    if options.boxes is not None and not decoder.top_down:
        raise DataError("this network finds people by itself and takes no boxes", found=options.boxes.name)
    number, count = (0, 1) if group is None else (group.number, group.count)
    found = _find_all(dataset, range(number, len(dataset), count), runner, decoder, options, progress)
    if group is not None:
        found = _gather(found, group)
    if found.unreadable and not found.results:
        count = len(found.unreadable)
        raise DataError(f"none of the {count} images of {dataset.name} can be read; the first: {found.unreadable[0]}")
    image_ids = [found.results[index][0] for index in sorted(found.results)]
    detections = [record for index in sorted(found.results) for record in found.results[index][1]]

    def measure() -> tuple[Mapping[str, float], str]:
        if found.skeleton is COCO17:
            return keypoint_ap(dataset.ground_truth(), detections, image_ids), _OKS
        shares = _pck(dataset.ground_truth(), detections, found.skeleton.name)
        return shares.metrics, shares.convention

    metrics, convention = measure() if group is None else group.from_main(measure)
    source = (GT_BOXES if options.boxes is None else options.boxes.name) if decoder.top_down else None
    words = [convention, _describe(source, options.view, decoder)]
    if found.unreadable:
        words.append(f"{len(found.unreadable)} unreadable images left out")
    score = Score(
        metrics=metrics,
        images=len(image_ids),
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        height=crop_size(pose, options.view.height)[0],
        data=dataset.name,
        seconds=time.perf_counter() - start,
        convention="; ".join(words),
        boxes=source,
        broken=tuple(found.unreadable),
    )
    return Evaluation(score, detections)


def _find_all(
    dataset: Dataset,
    indices: range,
    runner: Runner,
    decoder: Decoder,
    options: EvaluationOptions,
    progress: Callable[[int, int], None] | None,
) -> _Found:
    """People of some images of a data set."""
    pose, found = pose_of(runner), _Found()
    for index in indices:
        try:
            sample = dataset[index]
        except DataError as error:
            if options.strict or len(found.unreadable) == _MAX_UNREADABLE:
                raise
            found.unreadable.append(str(error))
            continue
        found.skeleton = get_skeleton(sample.skeleton)
        _check_data(found.skeleton, decoder, options)
        found.results[index] = (sample.image_id, _records(sample, runner, pose, decoder, options))
        if progress is not None:
            progress(min(len(found.results) * indices.step, len(dataset)), len(dataset))
    return found


def _check_data(skeleton: Skeleton, decoder: Decoder, options: EvaluationOptions) -> None:
    """Refuse data that is scored person by person where people are not found in their annotated places."""
    if skeleton is not COCO17 and (options.boxes is not None or not decoder.top_down):
        raise DataError(
            f"people with the joints {skeleton.name} are scored one by one, in their annotated places",
            found="boxes of a file" if decoder.top_down else "a bottom-up network",
            hint="Leave out --boxes" if decoder.top_down else "Score bottom-up networks on data with COCO's joints",
        )


def _records(
    sample: Sample, runner: Runner, pose: PoseSpec, decoder: Decoder, options: EvaluationOptions
) -> list[dict[str, Any]]:
    """People of one image as results."""
    boxes = None
    if options.boxes is not None:
        boxes = options.boxes.by_image.get(sample.image_id, ())
    elif decoder.top_down and not sample.people:
        boxes = ()  # nobody is annotated: the whole image shows no single person
    people = find_people(runner, sample, decoder=decoder, view=options.view, boxes=boxes)
    return people_records(people, sample.image_id, pose.joints, get_skeleton(sample.skeleton))


def _gather(found: _Found, group: ProcessGroup) -> _Found:
    # A process that could read no image knows no skeleton.
    skeleton = get_skeleton(max(group.gather((bool(found.results), found.skeleton.name)))[1])
    results = {index: one for part in group.gather(found.results) for index, one in part.items()}
    return _Found(results, [text for part in group.gather(found.unreadable) for text in part], skeleton)


def _describe(boxes: str | None, view: View, decoder: Decoder) -> str:
    """How people were found, in words."""
    scales, flip = view.describe()
    parts = [scales, flip] if boxes is None else [boxes, flip, *([scales] if len(view.scales) > 1 else [])]
    return ", ".join([*parts, *filter(None, [decoder.describe()])])


def _pck(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], skeleton: str) -> Pck:
    """Shares of joints found, the people of an image paired with its annotations in order."""
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in truth["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    order = list(dict.fromkeys(record["image_id"] for record in detections))
    annotations = [annotation for image in order for annotation in by_image[image]]
    found, expected = (
        np.array([record["keypoints"] for record in records], dtype=np.float64).reshape(len(records), -1, 3)
        for records in (detections, annotations)
    )
    if skeleton == LSP14.name:
        return pck_lsp(found, expected)
    if skeleton == LIP16.name:
        return pckh_lip(found, expected)
    if skeleton != MPII16.name:
        raise DataError("there is no metric for data with these joints", found=skeleton)
    if not any("head_box" in annotation for annotation in annotations):
        raise DataError(
            "MPII's PCKh needs the boxes of the heads",
            hint="Put gt_valid.mat of the public training code beside annot/valid.json, and score that part",
        )
    # People without a head box are left out: their head has no size.
    return pckh_mpii(found, expected, [annotation.get("head_box", (math.nan,) * 4) for annotation in annotations])
