"""Whether an exported file does what its network does, on real inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from compress.errors import CompressError, ParityError, UsageError
from compress.evaluation.score import crop_size
from compress.exporters.peaks_graph import PeakOptions, missed_peaks
from compress.pose.crop import Matrix, cut, fill_colour, image_region, normalise_crop, region_matrix
from compress.pose.decoders.heatmap import decode_heatmaps
from compress.pose.decoders.paf import PafOptions, Pose, decode
from compress.pose.prepare import Prepared, prepare
from compress.runtime.runner import PEAKS

if TYPE_CHECKING:
    from compress.data.sample import Image
    from compress.pose.spec import PoseSpec
    from compress.runtime.runner import Runner

Maps = Mapping[str, NDArray[np.float32]]

#: Two keypoints of one joint that are farther apart than this share of the image's diagonal are not the same one.
_FAR = 0.05

#: Inputs of networks with maps at several resolutions are multiples of this.
_COARSEST = 32


@dataclass(frozen=True)
class Tolerance:
    """How much an exported file may differ.

    Attributes
    ----------
    maps : float
        Largest error of a map's cell, as a share of the largest absolute value of the reference's maps (which is
        close to 1 for a trained network).
    lost : float or None
        Share of keypoints that may be found by one side alone; None where that is told but not judged.
    moved_px : float or None
        Mean distance of the keypoints that both sides found, in pixels of the image; None as for ``lost``.
    """

    maps: float
    lost: float | None
    moved_px: float | None


#: By precision of the stored weights, arithmetic being float32 on both sides.
#: float32: only the order of additions differs. The maps of human-pose-estimation-0001 on COCO images then differ by
#: 3e-6; 1e-4 leaves room for other processors and deeper networks, and a change of 1 % in a single weight of its
#: backbone (0.03) is far beyond it.
#: float16: weights keep 11 bits. The maps of the same network, its weights made arbitrary in their last bits, then
#: differ by 0.009 to 0.011 and keypoints move by 0.03 to 0.06 px on average; weights in bfloat16 give 0.045, computing
#: in bfloat16 by mistake 0.12. Keypoints are not judged: a network that was compressed and not yet fine-tuned sees
#: people in noise, and a small change of noise makes others of them.
TOLERANCES = {
    "fp32": Tolerance(maps=1e-4, lost=0.01, moved_px=0.1),
    "fp16": Tolerance(maps=2e-2, lost=None, moved_px=None),
}

#: Decoding compares with thresholds, so a person whose score lies on one is there or not by the last digit of a map
#: (1 keypoint of 1025 in the float32 comparison above). One such person may be lost in any comparison.
_ALWAYS_SPARED = 18

#: Peaks that the graph may find otherwise than the decoder in the same maps, as a share and at least: those that lie on
#: the threshold, or of which two are equally high.
_PEAKS_MISSED, _PEAKS_SPARED = 0.01, 4


@dataclass(frozen=True)
class Parity:
    """An exported file against its network.

    Attributes
    ----------
    reference, exported : str
        Runtimes of the two sides.
    precision : str
        Key of `TOLERANCES`.
    images : int
        Images compared.
    sizes : tuple of (int, int)
        Heights and widths of the inputs.
    batches : tuple of int
        Batch sizes.
    max_error : float
        Largest absolute difference of the maps; infinite where maps are not finite numbers.
    mean_error : float
        Mean absolute difference, as a share of ``map_range``.
    map_range : float
        Largest absolute value of the reference's maps.
    people : (int, int)
        People found by the reference and by the exported file.
    keypoints : int
        Keypoints that both found.
    lost : int
        Keypoints that one of them alone found.
    moved_px_max, moved_px_mean : float
        Distance of the keypoints that both found, in pixels of the image; 0 if there are none.
    tolerance : Tolerance
        What was allowed.
    peaks : (int, int) or None
        Peaks in the exported file's own maps, and those of them, or of its output, that the other lacks; None for a
        file that finds none.
    """

    reference: str
    exported: str
    precision: str
    images: int
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    max_error: float
    mean_error: float
    map_range: float
    people: tuple[int, int]
    keypoints: int
    lost: int
    moved_px_max: float
    moved_px_mean: float
    tolerance: Tolerance
    peaks: tuple[int, int] | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        """What exceeds the tolerance, each with its value."""
        problems = []
        limit = self.tolerance.maps * self.map_range
        if not math.isfinite(self.max_error):
            problems.append("the maps are not all finite numbers")
        elif self.max_error > limit:
            problems.append(f"the maps differ by up to {self.max_error:.3g}, allowed are {limit:.3g}")
        allowed = self.tolerance.lost
        every = self.keypoints + self.lost
        if allowed is not None and self.lost > max(_ALWAYS_SPARED, allowed * every):
            problems.append(f"{self.lost} of {every} keypoints are found by one side alone")
        allowed = self.tolerance.moved_px
        if allowed is not None and self.moved_px_mean > allowed:
            problems.append(f"keypoints move by {self.moved_px_mean:.3g} px on average, allowed are {allowed:g}")
        if self.peaks is not None and self.peaks[1] > max(_PEAKS_SPARED, _PEAKS_MISSED * self.peaks[0]):
            problems.append(f"{self.peaks[1]} peaks are not those of its maps ({self.peaks[0]})")
        return tuple(problems)

    @property
    def ok(self) -> bool:
        """Whether the exported file may be called the same network."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        record = asdict(self)
        return record | {
            "sizes": [list(size) for size in self.sizes],
            "batches": list(self.batches),
            "people": list(self.people),
            "peaks": None if self.peaks is None else list(self.peaks),
            "ok": self.ok,
        }


def check(
    reference: Runner,
    exported: Runner,
    images: Sequence[Image],
    *,
    pose: PoseSpec | None = None,
    heights: Sequence[int] | None = None,
    precision: str = "fp32",
    options: PafOptions | None = None,
    peaks: PeakOptions | None = None,
) -> Parity:
    """Compare two runners on images, at several sizes and with one and two images at a time.

    The second image of a batch is the mirrored first one.

    Parameters
    ----------
    reference, exported : Runner
        The network and what was made of it.
    images : sequence of array, shape (H, W, 3), uint8
        BGR images with people, so that there are keypoints to compare.
    pose : PoseSpec, optional
        How images are prepared and maps decoded; by default the reference's.
    heights : sequence of int, optional
        Heights that images are scaled to; by default the pose specification's. A single height is joined by one of
        about 0.7 of it, because a file that works at one size alone is no copy of the network.
    precision : {"fp32", "fp16"}
        Of the stored weights: chooses the tolerance.
    options : PafOptions, optional
        Of the decoder.
    peaks : PeakOptions, optional
        The exported file finds peaks itself: they are compared with those of its own maps.

    Raises
    ------
    UsageError
        If there is no image, or the precision is unknown.
    ParityError
        If the exported file can't be run on an input, lacks an output, or gives maps of another shape.
    """
    if not images:
        raise UsageError("parity needs at least one image", hint="Name a data set with --data")
    if precision not in TOLERANCES:
        raise UsageError("unknown precision", found=precision, hint=f"Known: {', '.join(TOLERANCES)}")
    pose = pose or reference.pose
    options = options or PafOptions()
    heights = tuple(heights or (pose.height,))
    if len(heights) == 1:
        step = pose.stride if pose.decoder == "paf" else _COARSEST
        heights += (step * max(1, round(0.7 * heights[0] / step)),)
    errors = _MapErrors()
    people = _PeopleErrors()
    peak_errors = None if peaks is None else _PeakErrors(peaks, pose)
    sizes: dict[tuple[int, int], None] = {}
    for image in images:
        for height in heights:
            view = _View.of(image, pose, height)
            sizes[view.array.shape[1], view.array.shape[2]] = None
            pair = np.ascontiguousarray(np.stack([view.array, view.array[..., ::-1]]))  # [2, 3, H, W]
            wanted, found = reference.run(pair), _run(exported, pair)
            errors.add(wanted, found, pose.outputs)
            if peak_errors is not None:
                peak_errors.add(found)
            alone = _run(exported, pair[:1])
            errors.add({name: maps[:1] for name, maps in wanted.items()}, alone, pose.outputs)
            for index in range(len(pair)):
                both = (view.decode(maps, index, pose, options) for maps in (wanted, found))
                people.add(*both, far=_FAR * float(np.hypot(*image.shape[:2])))
    moved = np.asarray(people.moved or [0.0])
    return Parity(
        reference=reference.name,
        exported=exported.name,
        precision=precision,
        images=len(images),
        sizes=tuple(sizes),
        batches=(1, 2),
        max_error=errors.largest,
        mean_error=errors.total / errors.cells / errors.range if errors.range else errors.total,
        map_range=errors.range,
        people=people.counts,
        keypoints=len(people.moved),
        lost=people.lost,
        moved_px_max=float(moved.max()),
        moved_px_mean=float(moved.mean()),
        tolerance=TOLERANCES[precision],
        peaks=None if peak_errors is None else (peak_errors.count, peak_errors.missed),
    )


def require(parity: Parity) -> Parity:
    """The same parity if it is good, else a `ParityError` with its values."""
    if parity.ok:
        return parity
    raise ParityError(
        f"the file for {parity.exported} ({parity.precision}) does not reproduce the network: "
        + "; ".join(parity.problems),
        hint="The runtime may lack an operation, or compute in a lower precision than it was told to",
    )


def _run(exported: Runner, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    try:
        return exported.run(images)
    except CompressError as error:
        raise ParityError(
            f"the exported file does not run as the network does: {error.cause}",
            found=error.found,
            hint=error.hint,
        ) from error


class _MapErrors:
    """Differences of maps, gathered over all runs."""

    def __init__(self) -> None:
        self.largest = 0.0
        self.total = 0.0
        self.cells = 0
        self.range = 0.0

    def add(self, wanted: Maps, found: Maps, outputs: tuple[str, ...]) -> None:
        for name in outputs:
            if name not in found:
                raise ParityError("the exported file lacks an output", found=sorted(found), hint=f"Needed: {name}")
            if found[name].shape != wanted[name].shape:
                raise ParityError(
                    f"the exported file's {name} have another shape than the network's",
                    found=found[name].shape,
                    hint=f"Needed: {wanted[name].shape}",
                )
            difference = np.abs(found[name].astype(np.float64) - wanted[name])
            # A NaN would compare as neither larger nor smaller and slip through.
            self.largest = max(self.largest, float(difference.max()) if np.isfinite(difference).all() else np.inf)
            self.total += float(difference.sum())
            self.cells += difference.size
            self.range = max(self.range, float(np.abs(wanted[name]).max()))


class _PeakErrors:
    """Peaks that an exported file finds, against those of its own maps."""

    def __init__(self, options: PeakOptions, pose: PoseSpec) -> None:
        self.options, self.pose = options, pose
        self.count = self.missed = 0

    def add(self, found: Maps) -> None:
        if PEAKS not in found:
            raise ParityError("the exported file lacks an output", found=sorted(found), hint=f"Needed: {PEAKS}")
        for given, maps in zip(found[PEAKS], found["heatmaps"], strict=True):
            joints = maps[: len(self.pose.joints.joints)]
            self.count += int((given[..., 2] > 0).sum())
            self.missed += missed_peaks(given, joints, self.pose.stride, self.options)


class _PeopleErrors:
    """Differences of decoded people, gathered over all images."""

    def __init__(self) -> None:
        self.moved: list[float] = []
        self.lost = 0
        self.counts = (0, 0)

    def add(self, wanted: Sequence[Pose], found: Sequence[Pose], *, far: float) -> None:
        moved, lost = compare_people(wanted, found, far=far)
        self.moved += moved
        self.lost += lost
        self.counts = (self.counts[0] + len(wanted), self.counts[1] + len(found))


def compare_people(wanted: Sequence[Pose], found: Sequence[Pose], *, far: float) -> tuple[list[float], int]:
    """Pair people so that their joints lie closest, then compare joint by joint.

    Parameters
    ----------
    wanted, found : sequence of Pose
        People of one image.
    far : float
        Distance in pixels from which two points are not the same joint of the same person.

    Returns
    -------
    (list of float, int)
        Distance in pixels of each joint that both have, and the number of joints that one side alone has.
    """
    first, second = (_stack(people) for people in (wanted, found))  # [P, K, 3], [Q, K, 3]
    distance = np.linalg.norm(first[:, None, :, :2] - second[None, :, :, :2], axis=-1)  # [P, Q, K]
    there = (first[:, None, :, 2] > 0, second[None, :, :, 2] > 0)  # [P, 1, K], [1, Q, K]
    same = there[0] & there[1] & (distance < far)  # [P, Q, K]
    # Each joint that is the same gains at least a little, so the pairing prefers many joints, then close ones.
    gain = np.where(same, 1 - 0.5 * distance / far, 0.0).sum(axis=-1)  # [P, Q]
    rows, columns = linear_sum_assignment(gain, maximize=True)
    kept = same[rows, columns]  # [min(P, Q), K]
    moved = distance[rows, columns][kept]
    lost = int(there[0].sum() + there[1].sum()) - 2 * len(moved)
    return [float(d) for d in moved], lost


def _stack(people: Sequence[Pose]) -> NDArray[np.float64]:
    if not people:
        return np.zeros((0, 1, 3))
    return np.stack([pose.keypoints for pose in people]).astype(np.float64)


@dataclass(frozen=True)
class _View:
    """An image as a network reads it, and the way back: whole, or as the crop of one person."""

    array: NDArray[np.float32]
    prepared: Prepared | None = None
    matrix: Matrix | None = None

    @classmethod
    def of(cls, image: Image, pose: PoseSpec, height: int) -> _View:
        if pose.decoder == "paf":
            prepared = prepare(image, pose, height)
            return cls(prepared.array, prepared=prepared)
        size = crop_size(pose, height)
        size = (size[0], max(1, round(size[1] / _COARSEST)) * _COARSEST) if height != pose.height else size
        matrix = region_matrix(image_region(image.shape, size), size, corner_grid=pose.corner_grid)
        return cls(normalise_crop(cut(image, matrix, size, fill_colour(pose)), pose), matrix=matrix)

    def decode(self, maps: Maps, index: int, pose: PoseSpec, options: PafOptions) -> list[Pose]:
        if not all(np.isfinite(maps[name][index]).all() for name in pose.outputs):
            return []
        if self.prepared is not None:
            return decode(maps["heatmaps"][index], maps["pafs"][index], self.prepared, pose, options)
        assert self.matrix is not None
        keypoints = decode_heatmaps(maps["heatmaps"][index : index + 1], [self.matrix], pose)[0]
        return [Pose(keypoints, float(keypoints[:, 2].mean()))]
