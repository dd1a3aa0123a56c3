"""How well a network finds people: a data set and a runner in, a score out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from compress.data.boxes import Boxes
from compress.data.person_view import person_region, usable_people
from compress.data.sample import Dataset, Image, Sample
from compress.errors import DataError
from compress.pose.crop import Region, box_region, cut, fill_colour, image_region, normalise_crop, region_matrix
from compress.pose.decoders.heatmap import HeatmapOptions, decode_heatmaps
from compress.pose.decoders.paf import PafOptions, Pose, decode
from compress.pose.metrics.oks import coco_results, keypoint_ap, without_doubles
from compress.pose.metrics.pck import Pck, pck_lsp, pckh_lip, pckh_mpii
from compress.pose.prepare import prepare
from compress.pose.skeleton import COCO17, LIP16, LSP14, MPII16, convert_keypoints, get_skeleton
from compress.pose.spec import PoseSpec
from compress.pose.views import person_maps, whole_image_maps
from compress.runtime.runner import Array, Runner

T = TypeVar("T")

#: Images that can't be read after which something else must be wrong than single images.
_UNREADABLE = 100

#: Most crops that a network is given at once.
_CROPS = 16

#: A joint counts for a person's score from this height of its maximum on, as in public top-down code.
_SEEN = 0.2

#: A joint whose map nowhere reaches this height is not seen; decoders use about the same threshold.
SEEN = 0.1

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
        What is wrong with each image that could not be read and was left out.
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
        """Name and value of the metric that stands for all."""
        return next(iter(self.metrics.items()))


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


class Crew(Protocol):
    """Processes that share the images of an evaluation: this one is ``number`` of ``count``."""

    number: int
    count: int

    def gather(self, value: T) -> list[T]:
        """What each process has, in the order of their numbers."""

    def from_main(self, compute: Callable[[], T]) -> T:
        """What the main process computes."""


def detect(
    runner: Runner,
    image: Image,
    *,
    height: int | None = None,
    options: PafOptions | None = None,
    heatmap: HeatmapOptions | None = None,
    regions: Sequence[Region] | None = None,
) -> list[Pose]:
    """People in an image.

    Parameters
    ----------
    runner : Runner
        Runs the network.
    image : array, shape (H, W, 3), uint8
        Pixels in BGR order.
    height : int, optional
        Height in pixels that the image, or a crop, is scaled to; the network's own by default.
    options : PafOptions, optional
        How maps of a bottom-up network become people.
    heatmap : HeatmapOptions, optional
        How maps of a network that sees one person become joints.
    regions : sequence of Region, optional
        Where that network looks for a person each; by default the whole image shows one. A bottom-up network finds
        people by itself.

    Returns
    -------
    list of Pose
        In pixels of the image, joints in the order of the runner's skeleton; one for each region.
    """
    if runner.pose.decoder == "heatmap":
        size = crop_size(runner.pose, height)
        if regions is None:
            regions = [image_region(image.shape, size)]
        return _detect_in(runner, image, regions, size, heatmap or HeatmapOptions())
    options = options or PafOptions()
    heatmaps, pafs, prepared = whole_image_maps(
        runner.run, image, runner.pose, height=height, flip=options.flip, scales=options.scales
    )
    return decode(heatmaps, pafs, prepared, runner.pose, options)


def detect_people(
    runner: Runner,
    sample: Sample,
    *,
    height: int | None = None,
    options: PafOptions | None = None,
    heatmap: HeatmapOptions | None = None,
) -> list[Pose]:
    """`detect`, where a network that sees one person is shown the annotated ones, if there are any."""
    regions = None
    if runner.pose.decoder == "heatmap" and sample.people:
        regions = [region for region, _ in _regions(sample, None, runner.pose, height)]
    return detect(runner, sample.image, height=height, options=options, heatmap=heatmap, regions=regions)


def network_inputs(sample: Sample, pose: PoseSpec, height: int | None = None) -> list[Array]:
    """What a network is shown of a sample, each (3, H, W) float32.

    The whole image for a bottom-up network; for one that sees one person a crop for each annotated person, or the
    whole image where there are none.

    Parameters
    ----------
    sample : Sample
        The image and its people.
    pose : PoseSpec
        What the network expects.
    height : int, optional
        Height in pixels that the image, or a crop, is scaled to; the network's own by default.
    """
    if pose.decoder != "heatmap":
        return [prepare(sample.image, pose, height).array]
    size = crop_size(pose, height)
    regions = [region for region, _ in _regions(sample, None, pose, height)]
    matrices = [
        region_matrix(region, size, corner_grid=pose.corner_grid)
        for region in regions or [image_region(sample.image.shape, size)]
    ]
    return [normalise_crop(cut(sample.image, matrix, size, fill_colour(pose)), pose) for matrix in matrices]


def crop_size(pose: PoseSpec, height: int | None = None) -> tuple[int, int]:
    """Height and width of the crops of a network that sees one person, at another height in the same proportions."""
    own = pose.size
    if height is None or height == own[0]:
        return own
    return height, max(1, round(height * own[1] / own[0] / pose.stride)) * pose.stride


def _detect_in(
    runner: Runner, image: Image, regions: Sequence[Region], size: tuple[int, int], options: HeatmapOptions
) -> list[Pose]:
    """One person in each region."""
    pose = runner.pose
    found: list[Pose] = []
    for start in range(0, len(regions), _CROPS):
        some = regions[start : start + _CROPS]
        maps, matrices = person_maps(runner.run, image, some, pose, size, flip=options.flip, scales=options.scales)
        for keypoints in decode_heatmaps(maps, matrices, pose, options):
            seen = keypoints[:, 2][keypoints[:, 2] > _SEEN]
            found.append(Pose(keypoints, float(seen.mean()) if len(seen) else 0.0))
    return found


def _regions(sample: Sample, boxes: Boxes | None, pose: PoseSpec, height: int | None) -> list[tuple[Region, float]]:
    """Where a top-down network looks in a sample, and how sure it is that somebody is there."""
    size = crop_size(pose, height)
    if boxes is not None:
        return [(box_region(box.box, size), box.score) for box in boxes.by_image.get(sample.image_id, ())]
    if sample.skeleton == COCO17.name:
        return [(person_region(person, size), 1.0) for person, _ in usable_people(sample, COCO17)]
    return [(person_region(person, size), 1.0) for person in sample.people]


def evaluate(
    dataset: Dataset,
    runner: Runner,
    *,
    height: int | None = None,
    options: PafOptions | None = None,
    heatmap: HeatmapOptions | None = None,
    boxes: Boxes | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew | None = None,
    strict: bool = True,
) -> Evaluation:
    """Find people in all images of a data set and score them.

    A bottom-up network is given whole images. A network that sees one person is given a crop for each annotated person
    with labelled joints, or for each of the given boxes; its people are then ranked by the box's score times the mean
    of their joints' scores above 0.2, and of people that are almost the same the best stays (OKS above 0.9).

    Data with the joints of COCO is scored by OKS, that of MPII, LIP and LSP by the share of joints found, one crop for
    each annotated person. Joints that the network's skeleton lacks count as not found.

    Parameters
    ----------
    dataset : Dataset
        Annotated images; those without people count too.
    runner : Runner
        Runs the network.
    height : int, optional
        Height in pixels that images or crops are scaled to; the network's own by default.
    options : PafOptions, optional
        How maps of a bottom-up network become people.
    heatmap : HeatmapOptions, optional
        How maps of a network that sees one person become joints.
    boxes : Boxes, optional
        Where it looks for people; the annotated boxes by default.
    progress : callable, optional
        Called as ``progress(images done, all images)`` after each image.
    crew : Crew, optional
        Processes that share the images; each gets the result that one alone would have.
    strict : bool
        Whether an image that can't be read is an error. Otherwise it and its people are left out, and the score says
        how many there were.

    Raises
    ------
    DataError
        If the data set has no annotations or no images, none or (``strict``) one can't be read, or the network or the
        boxes do not suit the data.
    """
    start = time.perf_counter()
    if not dataset.annotated:
        raise DataError(
            "there are no annotations to score against",
            found=dataset.name,
            hint="Use --data coco:DIR, --annotations FILE --images DIR, or --data synthetic",
        )
    top_down = runner.pose.decoder == "heatmap"
    if boxes is not None and not top_down:
        raise DataError("this network finds people by itself and takes no boxes", found=boxes.name)
    heatmap = heatmap or HeatmapOptions()
    number, count = (0, 1) if crew is None else (crew.number, crew.count)
    found: dict[int, tuple[int, list[dict[str, Any]]]] = {}
    broken: list[str] = []
    skeleton = COCO17
    for index in range(number, len(dataset), count):
        try:
            sample = dataset[index]
        except DataError as error:
            if strict or len(broken) == _UNREADABLE:
                raise
            broken.append(str(error))
            continue
        skeleton = get_skeleton(sample.skeleton)
        if skeleton is not COCO17 and (boxes is not None or not top_down):
            raise DataError(
                f"people with the joints {skeleton.name} are scored one by one, in their annotated places",
                found="boxes of a file" if top_down else "a bottom-up network",
                hint="Leave out --boxes" if top_down else "Score bottom-up networks on data with COCO's joints",
            )
        if top_down:
            places = _regions(sample, boxes, runner.pose, height)
            poses = detect(runner, sample.image, height=height, heatmap=heatmap, regions=[r for r, _ in places])
            poses = [Pose(p.keypoints, p.score * sure) for p, (_, sure) in zip(poses, places, strict=True)]
        else:
            poses = detect(runner, sample.image, height=height, options=options)
        if skeleton is COCO17:
            if top_down:
                poses = without_doubles(poses, [r.area for r, _ in places], runner.pose.joints)
            results = coco_results(poses, sample.image_id, runner.pose.joints)
        else:
            results = [
                {
                    "image_id": sample.image_id,
                    "category_id": 1,
                    "keypoints": convert_keypoints(p.keypoints, runner.pose.joints, skeleton).ravel().tolist(),
                    "score": p.score,
                }
                for p in poses
            ]
        found[index] = (sample.image_id, results)
        if progress is not None:
            progress(min(len(found) * count, len(dataset)), len(dataset))
    if crew is not None:
        # A process that could read no image saw no skeleton.
        skeleton = get_skeleton(max(crew.gather((bool(found), skeleton.name)))[1])
        found = {index: one for part in crew.gather(found) for index, one in part.items()}
        broken = [message for part in crew.gather(broken) for message in part]
    image_ids = [found[index][0] for index in sorted(found)]
    detections = [one for index in sorted(found) for one in found[index][1]]

    def measure() -> tuple[Mapping[str, float], str]:
        if skeleton is COCO17:
            return keypoint_ap(dataset.ground_truth(), detections, image_ids), _OKS
        shares = _pck(dataset.ground_truth(), detections, skeleton.name)
        return shares.metrics, shares.convention

    metrics, convention = measure() if crew is None else crew.from_main(measure)
    source = (GT_BOXES if boxes is None else boxes.name) if top_down else None
    found_by = _describe(source, heatmap) if source else _describe(None, options or PafOptions())
    score = Score(
        metrics=metrics,
        images=len(image_ids),
        runtime=runner.name,
        device=runner.device,
        precision=runner.precision,
        height=crop_size(runner.pose, height)[0],
        data=dataset.name,
        seconds=time.perf_counter() - start,
        convention="; ".join(
            [convention, found_by, *([f"{len(broken)} unreadable images left out"] if broken else [])]
        ),
        boxes=source,
        broken=tuple(broken),
    )
    return Evaluation(score, detections)


def _describe(boxes: str | None, options: HeatmapOptions | PafOptions) -> str:
    scales = "single scale" if len(options.scales) == 1 else f"scales {', '.join(f'{s:g}' for s in options.scales)}"
    parts = [boxes] if boxes is not None else [scales]
    parts.append("flip" if options.flip else "no flip")
    if boxes is not None and len(options.scales) > 1:
        parts.append(scales)
    if isinstance(options, HeatmapOptions) and options.blur is not None:
        parts.append(f"Gaussian filter {options.blur}")
    if isinstance(options, PafOptions):
        fast = f"fast x{options.upsample}, {options.assignment} assignment"
        parts.append(f"decoder {fast if options.mode == 'fast' else options.mode}")
    return ", ".join(parts)


def _pck(truth: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], skeleton: str) -> Pck:
    """Shares of joints found, the people of an image paired with its annotations in order."""
    by_image: dict[int, list[Mapping[str, Any]]] = {}
    for annotation in truth["annotations"]:
        by_image.setdefault(annotation["image_id"], []).append(annotation)
    order = list(dict.fromkeys(found["image_id"] for found in detections))
    annotations = [annotation for image in order for annotation in by_image[image]]
    found, wanted = (
        np.array([entry["keypoints"] for entry in entries], dtype=np.float64).reshape(len(entries), -1, 3)
        for entries in (detections, annotations)
    )
    if skeleton == LSP14.name:
        return pck_lsp(found, wanted)
    if skeleton == LIP16.name:
        return pckh_lip(found, wanted)
    if skeleton != MPII16.name:
        raise DataError("there is no metric for data with these joints", found=skeleton)
    if any("head_box" not in annotation for annotation in annotations):
        raise DataError(
            "MPII's PCKh needs the boxes of the heads",
            hint="Put gt_valid.mat of the public training code beside annot/valid.json, and score that part",
        )
    return pckh_mpii(found, wanted, [annotation["head_box"] for annotation in annotations])
