"""What every decoder can do: from a network's outputs to people and, for training, from people to targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError, UsageError
from compress.pose.crop import crop_image, crop_size, image_region, scaled_size

if TYPE_CHECKING:
    from compress.pose.spec import PoseSpec

Array = NDArray[np.float32]
Image = NDArray[np.uint8]

#: Outputs of a network by name, each (N, ...).
Arrays = Mapping[str, Array]


@dataclass(frozen=True)
class Pose:
    """A detected person.

    Attributes
    ----------
    keypoints : array, shape (K, 3), float32
        x, y in pixels of the original image and score; all 0 for a joint that was not found. The centre of the
        image's top-left pixel is (0, 0), also for positions in COCO results; mode ``"compat"`` of the PAF decoder has
        added the half pixel that the public decoder adds to its results.
    score : float
        Ranks people; what it means depends on the decoder.
    """

    keypoints: Array
    score: float


class NetworkInput(Protocol):
    """A network's input and where it lies in an image: `compress.pose.prepare.Prepared`, `compress.pose.crop.Crop`."""

    @property
    def array(self) -> Array:
        """Normalised channels, (C, H, W)."""
        ...

    def to_image(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points (..., 2) in pixels of the input as pixels of the image."""
        ...

    def pixels_to(self, other: Any) -> NDArray[np.float64]:
        """The affine map (2, 3) from pixels of this input to those of another input of the same image."""
        ...


@dataclass(frozen=True)
class Targets:
    """What a network should return for people at known places.

    Attributes
    ----------
    outputs : dict of str to array
        One target for each of the network's outputs, without a batch axis.
    weight : array
        Factor of the squared errors, broadcast to each output: 0 where the annotation says nothing, else 1 or a share.
    """

    outputs: dict[str, Array]
    weight: Array


@dataclass(frozen=True)
class Decoder(ABC):
    """From a network's outputs to people; the fields of a subclass are its options.

    A decoder of your own implements `decode`; `CropDecoder` is simpler for networks that see one person at a time. Its
    outputs are checked when a network is loaded if it sets `roles` and `channels`, or `expected_outputs`.
    """

    #: Whether each input is a crop that shows one person.
    top_down: ClassVar[bool] = False

    #: The outputs that it reads, by their usual names; empty if it takes all outputs as they are.
    roles: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def decode(self, outputs: Arrays, inputs: Sequence[NetworkInput], pose: PoseSpec) -> list[list[Pose]]:
        """The people that each input shows.

        Parameters
        ----------
        outputs : mapping of str to array, shape (N, ...), float32
            The network's outputs by the names of ``pose.outputs``.
        inputs : sequence of N NetworkInputs
            What the network read; ``to_image`` leads back to pixels of the image.
        pose : PoseSpec
            What the network expects and returns.

        Returns
        -------
        list of N lists of Pose
            In pixels of the image, joints in the order of ``pose.joints``. A top-down decoder gives one for each input.

        Raises
        ------
        DataError
            If the outputs have other shapes than they should, or non-finite values.
        """

    def channels(self, pose: PoseSpec) -> tuple[int | None, ...]:
        """Size of axis 1 of each of the `roles`; None where it is free."""
        return (None,) * len(self.roles)

    def names(self, pose: PoseSpec) -> dict[str, str]:
        """The name in ``pose.outputs`` of each role: found by name, else by order.

        Raises
        ------
        DataError
            If neither is possible.
        """
        if set(self.roles) <= set(pose.outputs):
            return {role: role for role in self.roles}
        if len(pose.outputs) != len(self.roles):
            raise DataError(
                f"the decoder {pose.decoder} reads {', '.join(self.roles)}",
                found=f"outputs={pose.outputs}",
                hint="Name these outputs in the pose specification, or as many in the same order",
            )
        return dict(zip(self.roles, pose.outputs, strict=True))

    def expected_outputs(self, pose: PoseSpec) -> dict[str, int | None]:
        """Names of the network's outputs in their order, with the size of axis 1 where the decoder demands one."""
        counts = dict.fromkeys(pose.outputs)
        return counts | dict(zip(self.names(pose).values(), self.channels(pose), strict=True))

    def read(self, outputs: Arrays, pose: PoseSpec) -> tuple[Array, ...]:
        """The arrays of the `roles`, in their order, as float32.

        Raises
        ------
        DataError
            If one is missing or has non-finite values.
        """
        arrays = []
        for name in self.names(pose).values():
            if name not in outputs:
                raise DataError(f"the network did not return the output {name}", found=sorted(outputs))
            arrays.append(check_finite(outputs[name], name))
        return tuple(arrays)

    def whole_image(self, image: Image, pose: PoseSpec, height: int | None = None, scale: float = 1.0) -> NetworkInput:
        """A whole image as the network's input: letterboxed, the image in the middle of an input of fixed size.

        Parameters
        ----------
        image : array, shape (H, W, 3), uint8
            Pixels in BGR order.
        pose : PoseSpec
            Size, normalisation and border colour of the input.
        height : int, optional
            Height of the input in pixels; the network's own by default.
        scale : float, optional
            Factor of both sides, rounded to multiples of the stride.
        """
        size = crop_size(pose, height)
        return crop_image(image, image_region(image.shape, size), pose, scaled_size(size, pose, scale))

    def merge_mirrored(
        self, outputs: Arrays, mirrored: Arrays, pose: PoseSpec, size: tuple[int, int]
    ) -> dict[str, Array]:
        """The mean of outputs and those of the mirrored inputs of that height and width, turned back."""
        raise UsageError(f"outputs of the decoder {pose.decoder} can't be averaged with those of mirrored images",
                         hint="Leave out flip")  # fmt: skip

    def resample(self, outputs: Arrays, matrix: NDArray[np.float64], like: Arrays, pose: PoseSpec) -> dict[str, Array]:
        """Outputs on the grid of others; ``matrix`` maps pixels of their input to pixels of the outputs' input."""
        raise UsageError(f"outputs of the decoder {pose.decoder} can't be averaged over scales",
                         hint="Leave out scales")  # fmt: skip

    def default_sigma(self, pose: PoseSpec) -> float:
        """Standard deviation in input pixels of the peaks that a network is trained on unless another is given."""
        return 7.0

    def targets(
        self,
        people: Sequence[Array],
        size: tuple[int, int],
        pose: PoseSpec,
        *,
        sigma: float | None = None,
        trusted: NDArray[np.bool_] | None = None,
    ) -> Targets:
        """Training targets.

        Parameters
        ----------
        people : sequence of array, shape (K, 3)
            x, y in pixels of the input and visibility, of the network's joints; one person for a top-down decoder.
        size : (int, int)
            Height and width of the input, multiples of the stride.
        pose : PoseSpec
            What the network returns.
        sigma : float, optional
            Standard deviation of peaks in input pixels; `default_sigma` by default.
        trusted : array, shape (H, W), bool, optional
            Where in the input the annotation is complete; everywhere by default. Not used by top-down decoders.

        Raises
        ------
        UsageError
            If the decoder defines no targets.
        """
        raise UsageError(
            f"the decoder {pose.decoder} defines no training targets",
            hint="Train without labels by distillation from a teacher (--teacher)",
        )

    def trust(self, trusted: NDArray[np.bool_], pose: PoseSpec) -> Array:
        """The weight of an example without labels, as of `Targets`."""
        return np.ones((1, 1, 1), dtype=np.float32)

    def describe(self) -> str:
        """The decoder and the options that a score depends on, in words; may be empty."""
        return f"decoder {type(self).__name__}"


@dataclass(frozen=True)
class CropDecoder(Decoder):
    """A decoder for networks that see one person at a time; one of your own implements `keypoints`.

    A person's score is the mean of the joints' scores above the threshold of the pose specification.
    """

    top_down: ClassVar[bool] = True

    @abstractmethod
    def keypoints(self, outputs: Arrays, size: tuple[int, int], pose: PoseSpec) -> NDArray[np.floating]:
        """The joints that N crops show.

        Parameters
        ----------
        outputs : mapping of str to array, shape (N, ...), float32
            The network's outputs by the names of ``pose.outputs``.
        size : (int, int)
            Height and width of the crops.
        pose : PoseSpec
            What the network expects and returns.

        Returns
        -------
        array, shape (N, K, 3)
            x, y in pixels of the crop (the centre of the top-left pixel is (0, 0)) and score; a joint whose score is
            not above 0 counts as not found.
        """

    def decode(self, outputs: Arrays, inputs: Sequence[NetworkInput], pose: PoseSpec) -> list[list[Pose]]:
        """One person for each input; all 0 for a joint that was not found."""
        if not inputs:
            return []
        height, width = inputs[0].array.shape[1:]
        keypoints = np.asarray(self.keypoints(outputs, (height, width), pose))
        expected = (len(inputs), len(pose.joints.joints), 3)
        if keypoints.shape != expected or not np.isfinite(keypoints).all():
            raise DataError(
                f"the decoder {pose.decoder} must give finite x, y and score of each joint, {expected}",
                found=keypoints.shape,
            )
        people = []
        for found, network_input in zip(keypoints, inputs, strict=True):
            person = np.column_stack([network_input.to_image(found[:, :2]), found[:, 2]]).astype(np.float32)
            person[person[:, 2] <= 0] = 0
            people.append([Pose(person, _mean_score(person, pose.joint_threshold))])
        return people


def check_finite(values: NDArray[np.floating], name: str) -> Array:
    """An output as float32; a `DataError` if it has non-finite values."""
    array = np.asarray(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise DataError(
            f"the network's {name} have values that are not finite",
            hint="The network's weights are broken, or its precision is too low",
        )
    return array


def annotated_joints(people: Sequence[Array], joints: int) -> NDArray[np.bool_]:
    """Which joints (K,) any of the people has."""
    known = np.zeros(joints, dtype=np.bool_)
    for keypoints in people:
        known |= keypoints[:, 2] > 0
    return known


def _mean_score(keypoints: Array, threshold: float) -> float:
    """Mean score of the joints (K, 3) above a threshold, as in public top-down code; 0 if there are none."""
    counted = keypoints[:, 2][keypoints[:, 2] > threshold]
    return float(counted.mean()) if len(counted) else 0.0
