"""From a bottom-up network's maps to people: peaks, limbs along part-affinity fields, and their grouping."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from compress.errors import DataError, UsageError
from compress.pose.decoders.averaging import merge_mirrored, merge_mirrored_pafs, resample_outputs
from compress.pose.decoders.base import Array, Arrays, Decoder, Image, NetworkInput, Pose, Targets, check_finite
from compress.pose.decoders.grouping import Assignment, Limbs, assign, group
from compress.pose.decoders.limbs import score_limbs
from compress.pose.decoders.paf_compat import enlarge, find_public_peaks, score_public_limbs
from compress.pose.decoders.peaks import Peaks, find_peaks
from compress.pose.prepare import Prepared, prepare
from compress.pose.skeleton import Skeleton
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, merge_heatmaps, merge_pafs, paf_targets, shrink_mask

Mode = Literal["fast", "compat"]
Overlap = Literal["lightweight", "cao"]

#: Peaks, limbs between them, and the places of the peaks in the image.
_Candidates = tuple[Peaks, Limbs, NDArray[np.floating]]


@dataclass(frozen=True)
class PafDecoder(Decoder):
    """Grouping of heatmap peaks by part-affinity fields (Cao et al., 2017).

    A person's score is ``(sum of peak heights + sum of limb scores) * max(0, parts - 1)``, by which the public decoder
    of lightweight OpenPose ranks people.

    Attributes
    ----------
    mode : str
        ``"fast"`` finds peaks between the cells of the network's maps and reads the fields as they are; ``"compat"``
        repeats the public decoder of lightweight OpenPose, which enlarges all maps to the size of the image.
    assignment : str
        Which limbs are chosen: the best remaining one each time (``"greedy"``) or those with the largest sum
        (``"jv"``, Jonker and Volgenant). ``"compat"`` is greedy.
    upsample : int
        Interpolated points per cell and axis among which ``"fast"`` looks for peaks, 1 to 8.
    merge : bool
        Whether ``"fast"`` merges two people without a common joint where shoulder and ear belong together.
    max_peaks : int
        Most peaks that ``"fast"`` takes from one map, the highest first: bounds the work on noisy maps.
    peak_threshold : float
        Least height of a peak.
    peak_distance : float
        Least distance between two peaks of one map in pixels, of the network's input for ``"fast"`` and of the
        original image for ``"compat"``.
    samples : int
        Points at which a field is read along a limb.
    paf_threshold : float
        What the field's component along the limb must exceed at a point.
    paf_share : float
        What the share of such points must exceed.
    min_parts : int
        Fewest joints of a person; a joint found only by a limb from shoulder to ear does not count.
    min_score : float
        Least sum of scores per joint of a person.

    overlap : str
        Training targets where people overlap. ``"lightweight"``, as in the training of lightweight OpenPose: heatmaps
        are summed and clipped at 1, and of several limbs' vectors the last person's stays. ``"cao"``, as Cao et al.
        define them (equations 7 and 9): the maximum of the heatmaps and the mean of the vectors.

    Raises
    ------
    UsageError
        If a value is not valid.
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
    overlap: Overlap = "lightweight"

    roles: ClassVar[tuple[str, ...]] = ("heatmaps", "pafs")

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
            ("overlap", self.overlap in get_args(Overlap), "Known: lightweight, cao"),
        )
        for name, valid, hint in checks:
            if not valid:
                raise UsageError(f"invalid {name} of the PAF decoder", found=getattr(self, name), hint=hint)
        if self.mode == "compat" and self.assignment != "greedy":
            raise UsageError(
                "the public decoder assigns limbs greedily",
                found=self.assignment,
                hint="Leave the assignment out, or choose the mode fast",
            )

    def channels(self, pose: PoseSpec) -> tuple[int | None, ...]:
        """Joints and background, and two channels for each limb."""
        return len(pose.joints.joints) + pose.background, 2 * len(pose.joints.limbs)

    def whole_image(self, image: Image, pose: PoseSpec, height: int | None = None, scale: float = 1.0) -> Prepared:
        """The image at that height times the scale, its aspect ratio kept (`compress.pose.prepare.prepare`)."""
        return prepare(image, pose, max(1, round((pose.height if height is None else height) * scale)))

    def decode(self, outputs: Arrays, inputs: Sequence[NetworkInput], pose: PoseSpec) -> list[list[Pose]]:
        """The people in each image; see `people`."""
        names = self.names(pose).values()
        heatmaps, pafs = (outputs[name] for name in names)
        return [self.people(heatmaps[i], pafs[i], _prepared(prepared), pose) for i, prepared in enumerate(inputs)]

    def people(
        self, heatmaps: NDArray[np.float32], pafs: NDArray[np.float32], prepared: Prepared, pose: PoseSpec
    ) -> list[Pose]:
        """The people in one image.

        Parameters
        ----------
        heatmaps : array, shape (C, h, w), float32
            One map for each joint, and the background if the network has one.
        pafs : array, shape (2 * limbs, h, w), float32
            Part-affinity fields.
        prepared : Prepared
            The network's input.
        pose : PoseSpec
            Skeleton, stride, grid and background of the maps.

        Returns
        -------
        list of Pose
            In pixels of the original image, in the order in which the grouping started them.

        Raises
        ------
        DataError
            If the maps have other shapes than the specification and the input say, or non-finite values, or the
            skeleton has no part-affinity fields.
        """
        skeleton = _with_pafs(pose)
        joints, fields = self.channels(pose)
        heatmaps = _check(heatmaps, joints, "heatmaps", prepared, pose.stride)
        pafs = _check(pafs, fields, "pafs", prepared, pose.stride)
        find = self._find_fast if self.mode == "fast" else self._find_compat
        peaks, limbs, places = find(heatmaps, pafs, prepared, pose)
        connections = assign(limbs, skeleton, self.assignment)
        entries = group(connections, peaks.scores, skeleton, merge=self.merge and self.mode == "fast")
        kept = [e for e in entries if e.parts >= self.min_parts and e.total / e.parts >= self.min_score]
        keypoints = np.column_stack([places, peaks.scores]).astype(np.float32)  # (P, 3)
        keypoints = np.concatenate([keypoints, np.zeros((1, 3), dtype=np.float32)])  # the last is a missing joint
        return [Pose(keypoints[entry.peaks], entry.total * max(0, entry.parts - 1)) for entry in kept]

    def _find_fast(self, heatmaps: Array, pafs: Array, prepared: Prepared, pose: PoseSpec) -> _Candidates:
        """Peaks in cells, limbs, and the peaks' places in the image."""
        peaks = find_peaks(
            heatmaps[: len(pose.joints.joints)],
            upsample=self.upsample,
            threshold=self.peak_threshold,
            radius=self.peak_distance / pose.stride,
            limit=self.max_peaks,
        )
        limbs = score_limbs(
            pafs,
            peaks,
            pose.joints,
            samples=self.samples,
            threshold=self.paf_threshold,
            share=self.paf_share,
        )
        return peaks, limbs, prepared.to_image(peaks.points * pose.stride + pose.first_cell)

    def _find_compat(self, heatmaps: Array, pafs: Array, prepared: Prepared, pose: PoseSpec) -> _Candidates:
        """Peaks in pixels of the image, limbs, and the peaks' places as the public decoder reports them."""
        peaks = find_public_peaks(
            enlarge(heatmaps, prepared, pose.stride)[..., : len(pose.joints.joints)],
            threshold=self.peak_threshold,
            radius=self.peak_distance,
        )
        limbs = score_public_limbs(
            enlarge(pafs, prepared, pose.stride),
            peaks,
            pose.joints,
            samples=self.samples,
            threshold=self.paf_threshold,
            share=self.paf_share,
        )
        return peaks, limbs, peaks.points + 0.5

    def merge_mirrored(
        self, outputs: Arrays, mirrored: Arrays, pose: PoseSpec, size: tuple[int, int]
    ) -> dict[str, Array]:
        """The mean of the maps and those of the mirrored image."""
        names = self.names(pose)
        heatmaps, pafs = names["heatmaps"], names["pafs"]
        skeleton = _with_pafs(pose)
        return {
            heatmaps: merge_mirrored(outputs[heatmaps], mirrored[heatmaps], skeleton, shift=pose.flip_shift),
            pafs: merge_mirrored_pafs(outputs[pafs], mirrored[pafs], skeleton),
        }

    def resample(self, outputs: Arrays, matrix: NDArray[np.float64], like: Arrays, pose: PoseSpec) -> dict[str, Array]:
        """The maps on the grid of others."""
        return resample_outputs({name: outputs[name] for name in self.names(pose).values()}, matrix, like, pose)

    def targets(
        self,
        people: Sequence[Array],
        size: tuple[int, int],
        pose: PoseSpec,
        *,
        sigma: float | None = None,
        trusted: NDArray[np.bool_] | None = None,
    ) -> Targets:
        """Heatmaps and part-affinity fields of all people; the weight (1, h, w) is the trusted share of each cell."""
        groups = [people] if self.overlap == "lightweight" or not people else [[person] for person in people]
        cells = (size[0] // pose.stride, size[1] // pose.stride)
        names, skeleton = self.names(pose), pose.joints
        heatmaps = [
            heatmap_targets(
                members,
                cells,
                pose.stride,
                sigma=self.default_sigma(pose) if sigma is None else sigma,
                skeleton=skeleton,
                background=pose.background,
                first_cell=pose.first_cell,
            )
            for members in groups
        ]
        pafs = [
            paf_targets(members, cells, pose.stride, skeleton=skeleton, first_cell=pose.first_cell)
            for members in groups
        ]
        trusted = np.ones(size, dtype=np.bool_) if trusted is None else trusted
        merged = {names["heatmaps"]: merge_heatmaps(heatmaps, pose.background), names["pafs"]: merge_pafs(pafs)}
        return Targets(merged, self.trust(trusted, pose))

    def trust(self, trusted: NDArray[np.bool_], pose: PoseSpec) -> Array:
        """The trusted share of each cell, (1, h, w)."""
        return shrink_mask(trusted, pose.stride)

    def describe(self) -> str:
        """Mode, upsampling and assignment."""
        return "decoder " + (
            f"fast x{self.upsample}, {self.assignment} assignment" if self.mode == "fast" else self.mode
        )


def _prepared(network_input: NetworkInput) -> Prepared:
    if not isinstance(network_input, Prepared):
        raise DataError("the PAF decoder reads maps of whole images", found=type(network_input).__name__)
    return network_input


def _with_pafs(pose: PoseSpec) -> Skeleton:
    if not pose.joints.paf_channels:
        raise DataError("the skeleton has no part-affinity fields to decode", found=pose.joints.name)
    return pose.joints


def _check(
    maps: NDArray[np.float32], channels: int | None, name: str, prepared: Prepared, stride: int
) -> NDArray[np.float32]:
    """The maps as float32, if their shape and values are valid."""
    expected = (channels, *(side // stride for side in prepared.array.shape[1:]))
    if np.shape(maps) != expected:
        raise DataError(
            f"the network's {name} have the wrong shape",
            found=np.shape(maps),
            hint=f"The pose specification and the input's size require {expected}",
        )
    return check_finite(maps, name)
