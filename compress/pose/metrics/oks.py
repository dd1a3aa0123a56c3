"""Object keypoint similarity (OKS) and COCO's average precision."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError
from compress.pose.skeleton import COCO17, Skeleton, convert_keypoints

if TYPE_CHECKING:
    from compress.pose.decoders.base import Pose

#: The ten numbers of COCO's keypoint evaluation, in its order.
METRICS = ("AP", "AP50", "AP75", "APM", "APL", "AR", "AR50", "AR75", "ARM", "ARL")


def oks(
    found: ArrayLike, truth: ArrayLike, areas: ArrayLike, boxes: ArrayLike, sigmas: Sequence[float] = COCO17.sigmas
) -> NDArray[np.float64]:
    """Object keypoint similarity of each detected person to each annotated one.

    ``mean over labelled k of exp(-d_k^2 / (2 (2 sigma_k)^2 area))``, as in COCO's evaluation (Lin et al. 2014 and
    the data set's web page). For a person without labelled joints, ``d_k`` is the distance to the box enlarged by its
    own width and height on each side, and all joints count: such people only excuse nearby detections.

    Parameters
    ----------
    found : array, shape (N, K, 2 or more)
        x and y in pixels of N detected people; further columns are not read. All K joints are taken as found.
    truth : array, shape (M, K, 3)
        x, y and visibility of M annotated people; a joint with visibility 0 is not labelled.
    areas : array, shape (M,)
        Areas of the annotated people in square pixels.
    boxes : array, shape (M, 4)
        Their boxes: x, y, width, height.
    sigmas : sequence of K floats
        Spread of the annotators for each joint, as a share of the square root of the area.

    Returns
    -------
    array, shape (N, M)
        Between 0 and 1.
    """
    joints = len(sigmas)
    points = np.asarray(found, dtype=np.float64)[..., :2].reshape(-1, 1, joints, 2)  # [N, 1, K, 2]
    people = np.asarray(truth, dtype=np.float64).reshape(-1, joints, 3)  # [M, K, 3]
    corner, extent = np.split(np.asarray(boxes, dtype=np.float64).reshape(-1, 1, 4), 2, axis=-1)  # [M, 1, 2] each
    labelled = np.asarray(people[..., 2] > 0)  # [M, K]
    unlabelled = ~np.any(labelled, axis=1, keepdims=True)  # [M, 1]
    beyond = np.maximum(0, corner - extent - points) + np.maximum(0, points - corner - 2 * extent)  # [N, M, K, 2]
    offset = np.where(np.expand_dims(unlabelled, -1), beyond, points - people[..., :2])  # [N, M, K, 2]
    variance = (2 * np.asarray(sigmas)) ** 2  # [K]
    area = np.asarray(areas, dtype=np.float64).reshape(-1, 1) + np.spacing(1)  # [M, 1]
    similarity = np.exp(-(offset**2).sum(axis=-1) / variance / area / 2)  # [N, M, K]
    weight = labelled | unlabelled  # [M, K]
    return np.asarray((similarity * weight).sum(axis=-1) / weight.sum(axis=-1))


def oks_nms(poses: Sequence[Pose], areas: ArrayLike, sigmas: Sequence[float], threshold: float = 0.9) -> list[int]:
    """Which people to keep where several crops show the same one: hard suppression, as in public top-down code.

    The best person is kept, all others whose similarity to it exceeds the threshold are removed, and so on. The
    similarity of two people counts all joints and takes the mean of both areas.

    Parameters
    ----------
    poses : sequence of Pose
        People of one image.
    areas : array, shape (N,)
        Area of each person's region in square pixels.
    sigmas : sequence of K floats
        As in `oks`.
    threshold : float, optional
        Similarity above which the person with the lower score is removed.

    Returns
    -------
    list of int
        Indices of those kept, best first; of equal ones the earlier.
    """
    if not poses:
        return []
    points = np.stack([pose.keypoints[:, :2] for pose in poses]).astype(np.float64)  # [N, K, 2]
    size = np.asarray(areas, dtype=np.float64)
    variance = (2 * np.asarray(sigmas)) ** 2
    kept: list[int] = []
    left = sorted(range(len(poses)), key=lambda index: -poses[index].score)
    while left:
        best, *left = left
        kept.append(best)
        square = ((points[left] - points[best]) ** 2).sum(axis=-1)  # [M, K]
        mean_area = (size[left, None] + size[best]) / 2 + np.spacing(1)
        similarity = np.exp(-square / variance / mean_area / 2).mean(axis=-1)
        left = [index for index, value in zip(left, similarity.tolist(), strict=True) if value <= threshold]
    return kept


def without_doubles(poses: Sequence[Pose], areas: ArrayLike, skeleton: Skeleton) -> list[Pose]:
    """The people without those that are almost the same as one with a higher score, in their original order.

    Parameters
    ----------
    poses : sequence of Pose
        People of one image.
    areas : array, shape (N,)
        Their areas in square pixels.
    skeleton : Skeleton
        Of the poses; they are compared by the joints that COCO has too. Without such joints all people are kept.
    """
    shared = [joint for joint in skeleton.joints if joint in COCO17.joints]
    if not shared:
        return list(poses)
    columns = [skeleton.joints.index(joint) for joint in shared]
    sigmas = [COCO17.sigmas[COCO17.joints.index(joint)] for joint in shared]
    kept = oks_nms([replace(p, keypoints=p.keypoints[columns]) for p in poses], areas, sigmas)
    return [poses[index] for index in sorted(kept)]


def people_records(
    poses: Iterable[Pose], image_id: int, skeleton: Skeleton, target: Skeleton = COCO17
) -> list[dict[str, Any]]:
    """People of one image as COCO keypoint results.

    Parameters
    ----------
    poses : iterable of Pose
        People in pixels of the image.
    image_id : int
        The image's id in the ground truth.
    skeleton : Skeleton
        Joints of the poses.
    target : Skeleton, optional
        Joints of the results; those that it lacks are dropped.

    Returns
    -------
    list of dict
        ``image_id``, ``category_id`` 1, ``score``, and ``keypoints`` as x, y and score of each joint of the target, 17
        for COCO; a joint that was not found is 0, 0, 0.
    """
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": [float(v) for v in convert_keypoints(pose.keypoints, skeleton, target).ravel()],
            "score": float(pose.score),
        }
        for pose in poses
    ]


def result_skeleton(skeleton: Skeleton) -> Skeleton:
    """Joints in which results without annotations are written: COCO's if the skeleton has them all, else its own."""
    return COCO17 if set(COCO17.joints) <= set(skeleton.joints) else skeleton


def keypoint_ap(
    ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]], image_ids: Iterable[int] | None = None
) -> dict[str, float]:
    """COCO's ten keypoint metrics, computed by faster-coco-eval.

    Parameters
    ----------
    ground_truth : mapping
        A COCO keypoint record; it is not changed.
    results : sequence of mapping
        Detections as `people_records` gives them. At most 20 of an image count, those of the highest scores.
    image_ids : iterable of int, optional
        Images to score, including those without people; all of the record by default. Results on others do not count.

    Returns
    -------
    dict of str to float
        `METRICS`: mean average precision and recall over OKS thresholds 0.50 to 0.95, at 0.50 and 0.75 alone, and for
        medium and large people. A metric over no people is -1, as in COCO's own evaluation.

    Raises
    ------
    DataError
        If there is no image to score, or a result or an image id is of an image that the ground truth does not list.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    listed = {image["id"] for image in ground_truth["images"]}
    scored = listed if image_ids is None else set(image_ids)
    unlisted = ({result["image_id"] for result in results} | scored) - listed
    if not scored:
        raise DataError("there are no images to score")
    if unlisted:
        raise DataError("results of images that the annotations do not list", found=sorted(unlisted, key=str)[:5])
    # Copies: the evaluation adds keys of its own to every annotation and result.
    truth = COCO({key: [dict(entry) for entry in ground_truth[key]] for key in ("images", "annotations", "categories")})
    kept = [dict(result) for result in results if result["image_id"] in scored]
    evaluation = COCOeval_faster(
        truth, truth.loadRes(kept), "keypoints", print_function=_silent, kpt_oks_sigmas=list(COCO17.sigmas)
    )
    evaluation.params.imgIds = sorted(scored)
    evaluation.params.catIds = [category["id"] for category in ground_truth["categories"]]
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=False)}


def _silent(*words: object) -> None:
    """Discard the evaluation's progress messages."""
