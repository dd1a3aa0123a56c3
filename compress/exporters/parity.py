"""Whether an exported file does what its network does, on real inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from compress.errors import CompressError, ParityError, UsageError
from compress.exporters.paired_people import FAR, PeopleErrors
from compress.exporters.peaks_graph import PeakOptions, missed_peaks
from compress.pose.crop import crop_image, image_region
from compress.pose.decoders.base import Decoder, Pose
from compress.pose.decoders.registry import get_decoder
from compress.pose.prepare import batch_inputs
from compress.runtime.runner import PEAKS, Array, ArrayInputs

if TYPE_CHECKING:
    from compress.data.sample import Image
    from compress.pose.decoders.base import NetworkInput
    from compress.pose.spec import PoseSpec
    from compress.runtime.runner import Runner

Maps = Mapping[str, NDArray[Any]]

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
        Share of keypoints that may be found by one side alone; None where that is reported but not judged.
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
#: in bfloat16 by mistake 0.12. Keypoints are not judged: a network that was compressed and not yet fine-tuned detects
#: people in noise, and a small change of the noise changes them.
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
    people : (int, int) or None
        People found by the reference and by the exported file; None for a network without keypoints.
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
    outputs : mapping of str to float
        Largest absolute difference of each output, as a share of its largest absolute value.
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
    people: tuple[int, int] | None
    keypoints: int
    lost: int
    moved_px_max: float
    moved_px_mean: float
    tolerance: Tolerance
    peaks: tuple[int, int] | None = None
    outputs: Mapping[str, float] = field(default_factory=dict)

    @property
    def problems(self) -> tuple[str, ...]:
        """What exceeds the tolerance, each with its value."""
        problems = []
        limit = self.tolerance.maps * self.map_range
        if not math.isfinite(self.max_error):
            problems.append("the outputs have non-finite values")
        elif self.people is None:
            problems += [
                f"the output {name} differs by up to {error:.3g} of its range, allowed are {self.tolerance.maps:.3g}"
                for name, error in self.outputs.items()
                if error > self.tolerance.maps
            ]
        elif self.max_error > limit:
            problems.append(f"the outputs differ by up to {self.max_error:.3g}, allowed are {limit:.3g}")
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
            "people": None if self.people is None else list(self.people),
            "outputs": dict(self.outputs),
            "peaks": None if self.peaks is None else list(self.peaks),
            "ok": self.ok,
        }


def check_heights(pose: PoseSpec, height: int | None = None) -> tuple[int, int]:
    """Two heights to compare at: the given or the network's own, and about 0.7 of it.

    A file that works at one size alone is no copy of a network that takes any.
    """
    height = pose.height if height is None else height
    step = _COARSEST if get_decoder(pose).top_down else pose.stride
    return height, step * max(1, round(0.7 * height / step))


def check(
    reference: Runner,
    exported: Runner,
    images: Sequence[Image],
    *,
    heights: Sequence[int] | None = None,
    precision: str = "fp32",
    peaks: PeakOptions | None = None,
) -> Parity:
    """Compare two runners of a pose network on images, at several sizes and with one and two images at a time.

    The second image of a batch is the mirrored first one.

    Parameters
    ----------
    reference, exported : Runner
        The network and what was made of it; the reference's pose specification is used for both.
    images : sequence of array, shape (H, W, 3), uint8
        BGR images with people, so that there are keypoints to compare.
    heights : sequence of int, optional
        Heights that images are scaled to; those of `check_heights` by default.
    precision : {"fp32", "fp16"}
        Of the stored weights: chooses the tolerance.
    peaks : PeakOptions, optional
        The exported file finds peaks itself: they are compared with those of its own maps.

    Raises
    ------
    UsageError
        If there is no image, the precision is unknown, or the network has no pose specification.
    ParityError
        If the exported file can't be run on an input, lacks an output, or gives outputs of another shape.
    """
    pose = reference.pose
    if pose is None:
        raise UsageError("a network without a pose specification is compared by its outputs alone")
    _check_arguments(images, precision)
    decoder = get_decoder(pose)
    heights = check_heights(pose) if heights is None else tuple(heights)
    errors = _OutputErrors()
    people = PeopleErrors()
    peak_errors = None if peaks is None else _PeakErrors(peaks, pose)
    sizes: dict[tuple[int, int], None] = {}
    for image in images:
        for height in heights:
            view = _view(image, decoder, pose, height)
            sizes[view.array.shape[1], view.array.shape[2]] = None
            pair = batch_inputs([view.array, view.array[..., ::-1]], pose)
            wanted, found = reference.run(pair), _run(exported, pair)
            errors.add(wanted, found, pose.outputs)
            if peak_errors is not None:
                peak_errors.add(found)
            alone = _run(exported, pair[:1])
            errors.add({name: maps[:1] for name, maps in wanted.items()}, alone, pose.outputs)
            both = (_decode(maps, view, decoder, pose) for maps in (wanted, found))
            for ours, theirs in zip(*both, strict=True):
                people.add(ours, theirs, far=FAR * float(np.hypot(*image.shape[:2])))
    moved = np.asarray(people.moved or [0.0])
    return replace(
        errors.parity(reference, exported, precision, len(images)),
        sizes=tuple(sizes),
        batches=(1, 2),
        people=people.counts,
        keypoints=len(people.moved),
        lost=people.lost,
        moved_px_max=float(moved.max()),
        moved_px_mean=float(moved.mean()),
        peaks=None if peak_errors is None else (peak_errors.count, peak_errors.missed),
    )


def check_outputs(
    reference: Runner, exported: Runner, inputs: Sequence[ArrayInputs], *, precision: str = "fp32"
) -> Parity:
    """Compare all outputs of two runners, as of a network without keypoints.

    Each output is judged by its own largest value, because outputs of one network may differ in size.

    Parameters
    ----------
    reference, exported : Runner
        The network and what was made of it.
    inputs : sequence of arrays, or of tuples of arrays
        What the network reads.
    precision : {"fp32", "fp16"}
        Of the stored weights: chooses the tolerance.

    Raises
    ------
    UsageError
        If there is no input, or the precision is unknown.
    ParityError
        If the exported file can't be run on an input, lacks an output, or gives outputs of another shape.
    """
    _check_arguments(inputs, precision)
    errors = _OutputErrors()
    for given in inputs:
        wanted = reference.run(given)
        errors.add(wanted, _run(exported, given), tuple(wanted))
    images = [given[0] if isinstance(given, tuple) else given for given in inputs]
    return replace(
        errors.parity(reference, exported, precision, len(inputs)),
        sizes=tuple({image.shape[2:]: None for image in images if image.ndim == 4}),
        batches=tuple(sorted({len(image) for image in images})),
    )


def _check_arguments(images: Sequence[object], precision: str) -> None:
    if not images:
        raise UsageError("parity needs at least one image", hint="Name a data set with --data")
    if precision not in TOLERANCES:
        raise UsageError("unknown precision", found=precision, hint=f"Known: {', '.join(TOLERANCES)}")


def require(parity: Parity) -> Parity:
    """The same parity if it is good, else a `ParityError` with its values."""
    if parity.ok:
        return parity
    raise ParityError(
        f"the file for {parity.exported} ({parity.precision}) does not reproduce the network: "
        + "; ".join(parity.problems),
        hint="The runtime may lack an operation, or compute in a lower precision than it was told to",
    )


def _run(exported: Runner, images: ArrayInputs) -> dict[str, Array]:
    try:
        return exported.run(images)
    except CompressError as error:
        raise ParityError(
            f"the exported file does not run as the network does: {error.cause}",
            found=error.found,
            hint=error.hint,
        ) from error


class _OutputErrors:
    """Differences of outputs, gathered over all runs."""

    def __init__(self) -> None:
        self.total = 0.0
        self.values = 0
        self.largest: dict[str, float] = {}
        self.range: dict[str, float] = {}

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
            if not np.issubdtype(wanted[name].dtype, np.floating):
                continue  # indices and masks change at ties by the last digit of what they are made from
            difference = np.abs(found[name].astype(np.float64) - wanted[name])
            # A NaN would compare as neither larger nor smaller and slip through.
            largest = float(difference.max(initial=0)) if np.isfinite(difference).all() else np.inf
            self.largest[name] = max(self.largest.get(name, 0.0), largest)
            self.range[name] = max(self.range.get(name, 0.0), float(np.abs(wanted[name]).max(initial=0)))
            self.total += float(difference.sum())
            self.values += difference.size

    def parity(self, reference: Runner, exported: Runner, precision: str, images: int) -> Parity:
        """The differences as a record without keypoints."""
        largest = max(self.largest.values(), default=0.0)
        spread = max(self.range.values(), default=0.0)
        mean = self.total / max(self.values, 1)
        tolerance = TOLERANCES[precision]
        return Parity(
            reference=reference.name,
            exported=exported.name,
            precision=precision,
            images=images,
            sizes=(),
            batches=(),
            max_error=largest,
            mean_error=mean / spread if spread else mean,
            map_range=spread,
            people=None,
            keypoints=0,
            lost=0,
            moved_px_max=0.0,
            moved_px_mean=0.0,
            tolerance=tolerance if reference.pose else replace(tolerance, lost=None, moved_px=None),
            outputs={name: _share(self.largest[name], self.range[name]) for name in self.largest},
        )


def _share(error: float, spread: float) -> float:
    """An error relative to the largest value of an output; without values other than 0 the error itself."""
    return error / spread if spread else error


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


def _view(image: Image, decoder: Decoder, pose: PoseSpec, height: int) -> NetworkInput:
    """The whole image as the network's input; at another height than its own with sides that all networks take."""
    if decoder.top_down and height != pose.height:
        width = max(1, round(height * pose.size[1] / pose.size[0] / _COARSEST)) * _COARSEST
        return crop_image(image, image_region(image.shape, (height, width)), pose, (height, width))
    return decoder.whole_image(image, pose, height)


def _decode(outputs: Maps, view: NetworkInput, decoder: Decoder, pose: PoseSpec) -> list[list[Pose]]:
    """The people in each of a batch of two; none where outputs have non-finite values."""
    if not all(np.isfinite(outputs[name]).all() for name in pose.outputs):
        return [[], []]
    return decoder.decode({name: outputs[name] for name in pose.outputs}, [view, view], pose)
