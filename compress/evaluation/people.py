"""From an image to the people that a network finds in it: the one way, for scores, drawings, gates and reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from compress.data.boxes import Box
from compress.data.person_view import person_region, usable_people
from compress.data.sample import Image, Sample
from compress.errors import DataError
from compress.model import Model
from compress.pose.crop import Region, box_region, crop_image, crop_size, image_region, scaled_size
from compress.pose.decoders.base import Decoder, NetworkInput, Pose
from compress.pose.decoders.registry import get_decoder
from compress.pose.metrics.oks import without_doubles
from compress.pose.skeleton import COCO17
from compress.pose.spec import PoseSpec
from compress.pose.views import Run, View, average_views
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner

#: Most crops in a batch.
_MAX_CROPS = 16

#: A joint whose score is nowhere this high counts as not found where presence is judged without annotations.
PRESENT = 0.1


@dataclass(frozen=True)
class Place:
    """Where a top-down network looks for a person, and the confidence that somebody is there."""

    region: Region
    score: float = 1.0


def find_people(
    runner: Runner | Model,
    image: Image | Sample,
    *,
    decoder: Decoder | None = None,
    view: View | None = None,
    boxes: Sequence[Box] | None = None,
) -> list[Pose]:
    """The people that a network finds in an image.

    A network that sees one person at a time is given a crop for each of the boxes; without boxes, one for each
    annotated person of a sample, and the whole image if there are none. Of people that are almost the same the best is
    kept (OKS above 0.9), except on data sets that are scored person by person (MPII, LIP, LSP).

    Parameters
    ----------
    runner : Runner or Model
        Runs the network; a model is run by torch on the CPU. For many images make a runner once.
    image : array, shape (H, W, 3), uint8, or Sample
        Pixels in BGR order, or an image with its annotations.
    decoder : Decoder, optional
        From outputs to people; that of the network's pose specification by default.
    view : View, optional
        Height that images or crops are scaled to, flip test and scales.
    boxes : sequence of Box, optional
        Where a top-down network looks; a person's score is multiplied by that of its box.

    Returns
    -------
    list of Pose
        In pixels of the image, joints in the order of the network's skeleton.

    Raises
    ------
    DataError
        If the network has no pose specification, or finds people by itself and is given boxes.
    """
    runner = TorchRunner.of(runner) if isinstance(runner, Model) else runner
    pose = pose_of(runner)
    decoder = decoder or get_decoder(pose)
    view = view or View()
    pixels = image.image if isinstance(image, Sample) else image
    if not decoder.top_down:
        if boxes is not None:
            raise DataError("this network finds people by itself and takes no boxes")
        outputs, inputs = average_views(
            runner.run, lambda scale: [decoder.whole_image(pixels, pose, view.height, scale)], decoder, pose, view
        )
        return decoder.decode(outputs, inputs, pose)[0]
    places = find_places(image, boxes, crop_size(pose, view.height))
    poses = []
    for start in range(0, len(places), _MAX_CROPS):
        poses += _look_at(runner.run, pixels, places[start : start + _MAX_CROPS], decoder, pose, view)
    if isinstance(image, Sample) and boxes is None and image.skeleton != COCO17.name:
        return poses
    return without_doubles(poses, [place.region.area for place in places], pose.joints)


def pose_of(runner: Runner) -> PoseSpec:
    """The pose specification of a runner; a `DataError` if its network has none."""
    if runner.pose is None:
        raise DataError(
            "the network has no pose specification, so its outputs can't be decoded to people",
            hint="Give it one: compress.wrap(net, example, pose=PoseSpec(...)); or compare outputs by difference=",
        )
    return runner.pose


def find_places(image: Image | Sample, boxes: Sequence[Box] | None, size: tuple[int, int]) -> list[Place]:
    """Where a top-down network with inputs of that height and width looks for people; see `find_people`."""
    if boxes is not None:
        return [Place(box_region(box.box, size), box.score) for box in boxes]
    if not isinstance(image, Sample):
        return [Place(image_region(image.shape, size))]
    if not image.people:
        return [Place(image_region(image.image.shape, size))]
    if image.skeleton == COCO17.name:
        return [Place(person_region(person, size)) for person, _ in usable_people(image, COCO17)]
    return [Place(person_region(person, size)) for person in image.people]


def _look_at(
    run: Run, image: Image, places: Sequence[Place], decoder: Decoder, pose: PoseSpec, view: View
) -> list[Pose]:
    """One person for each place."""
    size = crop_size(pose, view.height)

    def crops(scale: float) -> list[NetworkInput]:
        return [crop_image(image, place.region, pose, scaled_size(size, pose, scale)) for place in places]

    outputs, inputs = average_views(run, crops, decoder, pose, view)
    found = [people[0] for people in decoder.decode(outputs, inputs, pose)]
    return [Pose(one.keypoints, one.score * place.score) for one, place in zip(found, places, strict=True)]
