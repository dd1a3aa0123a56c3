"""From a bottom-up network's maps to people: peaks, limbs along part-affinity fields, and their grouping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.decoders.grouping import Assignment, Limbs, assign, group
from compress.pose.decoders.limbs import score_limbs
from compress.pose.decoders.paf_compat import enlarge, find_public_peaks, score_public_limbs
from compress.pose.decoders.peaks import Peaks, find_peaks
from compress.pose.prepare import Prepared, to_image
from compress.pose.spec import PoseSpec

Maps = NDArray[np.float32]
Mode = Literal["fast", "compat"]


@dataclass(frozen=True)
class Pose:
    """A detected person.

    Attributes
    ----------
    keypoints : array, shape (K, 3), float32
        x, y in pixels of the original image and score, the height of the joint's peak; all 0 for a joint that was not
        found. The centre of the image's top-left pixel is (0, 0), also for positions in COCO results; mode
        ``"compat"`` has added the half pixel that the public decoder adds to its results.
    score : float
        ``(sum of peak heights + sum of limb scores) * max(0, parts - 1)``, by which the public decoder ranks people.
    """

    keypoints: NDArray[np.float32]
    score: float


@dataclass(frozen=True)
class PafOptions:
    """How maps become people.

    Attributes
    ----------
    mode : str
        ``"fast"`` finds peaks between the cells of the network's maps and reads the fields as they are; ``"compat"``
        repeats the public decoder of lightweight OpenPose, which enlarges all maps to the size of the image.
    assignment : str
        Which limbs are taken: the best one at a time (``"greedy"``) or those with the largest sum (``"jv"``, Jonker
        and Volgenant). ``"compat"`` is greedy.
    upsample : int
        Interpolated points per cell and axis among which ``"fast"`` looks for peaks, 1 to 8.
    merge : bool
        Whether ``"fast"`` makes one person of two without a common joint where shoulder and ear belong together.
    max_peaks : int
        Most peaks that ``"fast"`` takes from one map, the highest first: bounds the work on maps full of noise.
    peak_threshold : float
        Smallest height of a peak.
    peak_distance : float
        Least distance between two peaks of one map in pixels, of the network's input for ``"fast"`` and of the
        original image for ``"compat"``.
    samples : int
        Points at which a field is read along a limb.
    paf_threshold : float
        What the field's component along the limb has to exceed at a point.
    paf_share : float
        What the share of such points has to exceed.
    min_parts : int
        Fewest joints of a person; a joint found only by a limb from shoulder to ear does not count.
    min_score : float
        Smallest sum of scores per joint of a person.
    flip : bool
        Average the maps with those of the mirrored image.
    scales : tuple of float
        Heights at which the network runs, as shares of the one asked for, the largest first; the maps are averaged.

    Raises
    ------
    UsageError
        If a value has no meaning.
    """

    mode: Mode = "fast"
    assignment: Assignment = "greedy"
    upsample: int = 4
    merge: bool = True
    max_peaks: int = 100
    peak_threshold: float = 0.1
    peak_distance: float = 6.0
    samples: int = 10
    paf_threshold: float = 0.05
    paf_share: float = 0.8
    min_parts: int = 3
    min_score: float = 0.2
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        checks = (
            ("mode", self.mode in get_args(Mode), "Known: fast, compat"),
            ("assignment", self.assignment in get_args(Assignment), "Known: greedy, jv"),
            ("upsample", isinstance(self.upsample, int) and 1 <= self.upsample <= 8, "Give a whole number from 1 to 8"),
            ("max_peaks", isinstance(self.max_peaks, int) and self.max_peaks >= 1, "Give a whole number from 1 on"),
            ("peak_threshold", 0 < self.peak_threshold < math.inf, "Give a number above 0"),
            ("peak_distance", 0 <= self.peak_distance < math.inf, "Give 0 or more pixels"),
            ("samples", isinstance(self.samples, int) and self.samples >= 2, "Give a whole number from 2 on"),
            ("paf_threshold", 0 <= self.paf_threshold < math.inf, "Give 0 or more"),
            ("paf_share", 0 <= self.paf_share < 1, "Give a share from 0 to below 1"),
            ("min_parts", isinstance(self.min_parts, int) and self.min_parts >= 1, "Give a whole number from 1 on"),
            ("min_score", 0 <= self.min_score < math.inf, "Give 0 or more"),
        )
        for name, good, hint in checks:
            if not good:
                raise UsageError(f"{name} of the decoder makes no sense", found=getattr(self, name), hint=hint)
        if self.mode == "compat" and self.assignment != "greedy":
            raise UsageError(
                "the public decoder assigns limbs greedily",
                found=self.assignment,
                hint="Leave the assignment out, or choose the mode fast",
            )


def decode(
    heatmaps: NDArray[np.float32],
    pafs: NDArray[np.float32],
    prepared: Prepared,
    spec: PoseSpec,
    options: PafOptions | None = None,
) -> list[Pose]:
    """The people in an image, from a network's final maps.

    Parameters
    ----------
    heatmaps : array, shape (C, h, w), float32
        One map a joint, and the background if the network has one.
    pafs : array, shape (2 * limbs, h, w), float32
        Part-affinity fields.
    prepared : Prepared
        The network's input.
    spec : PoseSpec
        Skeleton, stride and background of the maps.
    options : PafOptions, optional
        Mode and thresholds.

    Returns
    -------
    list of Pose
        In pixels of the original image, in the order in which the grouping began them.

    Raises
    ------
    DataError
        If the maps have other shapes than the specification and the input say, or values that are not finite, or the
        skeleton has no part-affinity fields.
    """
    options = options or PafOptions()
    skeleton = spec.joints
    if not skeleton.paf_channels:
        raise DataError("the skeleton has no part-affinity fields to decode", found=skeleton.name)
    heatmaps = _check(heatmaps, len(skeleton.joints) + spec.background, "heatmaps", prepared, spec.stride)
    pafs = _check(pafs, 2 * len(skeleton.limbs), "pafs", prepared, spec.stride)
    find = _find_fast if options.mode == "fast" else _find_compat
    peaks, limbs, places = find(heatmaps, pafs, prepared, spec, options)
    connections = assign(limbs, skeleton, options.assignment)
    merge = options.merge and options.mode == "fast"
    entries = group(connections, peaks.scores, skeleton, merge=merge)
    people = [e for e in entries if e.parts >= options.min_parts and e.total / e.parts >= options.min_score]
    joints = np.column_stack([places, peaks.scores]).astype(np.float32)  # (P, 3)
    joints = np.concatenate([joints, np.zeros((1, 3), dtype=np.float32)])  # the last one stands for a missing joint
    return [Pose(joints[entry.peaks], entry.total * max(0, entry.parts - 1)) for entry in people]


Found = tuple[Peaks, Limbs, NDArray[np.floating]]


def _find_fast(heatmaps: Maps, pafs: Maps, prepared: Prepared, spec: PoseSpec, options: PafOptions) -> Found:
    """Peaks in cells, limbs, and the peaks' places in the image."""
    peaks = find_peaks(
        heatmaps[: len(spec.joints.joints)],
        upsample=options.upsample,
        threshold=options.peak_threshold,
        radius=options.peak_distance / spec.stride,
        limit=options.max_peaks,
    )
    limbs = score_limbs(
        pafs,
        peaks,
        spec.joints,
        samples=options.samples,
        threshold=options.paf_threshold,
        share=options.paf_share,
    )
    return peaks, limbs, to_image(peaks.points * spec.stride + (spec.stride - 1) / 2, prepared)


def _find_compat(heatmaps: Maps, pafs: Maps, prepared: Prepared, spec: PoseSpec, options: PafOptions) -> Found:
    """Peaks in pixels of the image, limbs, and the peaks' places as the public decoder reports them."""
    peaks = find_public_peaks(
        enlarge(heatmaps, prepared, spec.stride)[..., : len(spec.joints.joints)],
        threshold=options.peak_threshold,
        radius=options.peak_distance,
    )
    limbs = score_public_limbs(
        enlarge(pafs, prepared, spec.stride),
        peaks,
        spec.joints,
        samples=options.samples,
        threshold=options.paf_threshold,
        share=options.paf_share,
    )
    return peaks, limbs, peaks.points + 0.5


def _check(maps: NDArray[np.float32], channels: int, name: str, prepared: Prepared, stride: int) -> Maps:
    """The maps as float32, if they are what they should be."""
    expected = (channels, *(side // stride for side in prepared.array.shape[1:]))
    if np.shape(maps) != expected:
        raise DataError(
            f"the network's {name} have the wrong shape",
            found=np.shape(maps),
            hint=f"The pose specification and the input's size demand {expected}",
        )
    maps = np.asarray(maps, dtype=np.float32)
    if not np.isfinite(maps).all():
        raise DataError(
            f"the network's {name} have values that are not finite",
            hint="The network's weights are broken, or its precision is too low",
        )
    return maps
