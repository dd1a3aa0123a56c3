"""The common interface of all runtimes: arrays in, named arrays out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from compress.errors import CompressError, DataError
from compress.pose.spec import PoseSpec

Array = NDArray[np.float32]

#: What a network reads: a batch of images, or an array for each of several inputs.
ArrayInputs = Array | tuple[NDArray[Any], ...]

#: Sizes of an input that a file fixes, None for each free one.
Shape = tuple[int | None, ...]

#: The output of files that find peaks themselves, beside the maps: (N, K, top_k, 3) of x, y in cells and height.
PEAKS = "peaks"


class Runner(Protocol):
    """A network on a runtime, ready to run.

    Attributes
    ----------
    name : str
        ``"torch"``, ``"onnxruntime"`` or ``"openvino"``.
    device : str
        Where it runs: ``"cpu"``, ``"cuda"``, ...
    precision : str
        What it computes in: ``"fp32"``, ``"bf16"``, ``"fp16"``, or ``"int8"`` for a quantised file, whose other
        layers run in the precision that was asked for (``"int8+bf16"``).
    threads : int
        CPU threads.
    pose : PoseSpec or None
        What the network expects and returns; None for a network without keypoints.
    """

    name: str
    device: str
    precision: str
    threads: int
    pose: PoseSpec | None

    def run(self, inputs: ArrayInputs) -> dict[str, Array]:
        """Outputs of a network.

        Parameters
        ----------
        inputs : array, shape (N, C, H, W), float32, or tuple of arrays
            A batch of images, prepared as ``pose`` says where there is one (H and W are multiples of its stride, and
            the axes are those of its layout); or all inputs of a network with several.

        Returns
        -------
        dict of str to array
            By the names of ``pose.outputs``, in that order, or all outputs of a network without keypoints; the
            caller's own. Of a file that finds peaks itself `PEAKS` follows.

        Raises
        ------
        DataError
            If the input has another shape or type.
        """
        ...

    def close(self) -> None:
        """Release what the runtime holds; the runner can't be used any more."""
        ...


def check_inputs(inputs: ArrayInputs, pose: PoseSpec | None) -> tuple[NDArray[Any], ...]:
    """All inputs of a network.

    Raises
    ------
    DataError
        If no network of that specification can read them.
    """
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    if not arrays or (pose is None and any(0 in np.shape(array) for array in arrays)):
        raise DataError("an input without values", found=[np.shape(array) for array in arrays])
    if pose is None:
        return arrays
    images = arrays[0]
    shape = np.shape(images)
    last = pose.layout == "nhwc"
    if len(shape) != 4 or shape[3 if last else 1] != pose.channels or 0 in shape or images.dtype != np.float32:
        axes = f"height, width, {pose.channels}" if last else f"{pose.channels}, height, width"
        raise DataError(f"a network's input must be (images, {axes}) in float32", found=(shape, str(images.dtype)))
    height, width = shape[1:3] if last else shape[2:]
    if height % pose.stride or width % pose.stride:
        raise DataError(f"the input's height and width must be multiples of {pose.stride}", found=f"{height}x{width}")
    return arrays


def fits(shape: Shape | None, array: NDArray[Any]) -> bool:
    """Whether an array has the sizes that a file fixes."""
    if shape is None:
        return True
    return len(shape) == array.ndim and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))


def one_by_one(run: Callable[[ArrayInputs], dict[str, Array]], inputs: ArrayInputs) -> dict[str, Array]:
    """The outputs of a batch from a file that takes one image at a time."""
    arrays = inputs if isinstance(inputs, tuple) else (inputs,)
    parts = [run(tuple(array[index : index + 1] for array in arrays)) for index in range(len(arrays[0]))]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def cannot_run(runtime: str, inputs: tuple[NDArray[Any], ...], error: Exception) -> CompressError:
    """The error for a runtime that fails on an input that looks right."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    return CompressError(
        f"{runtime} can't run the model on this input ({reason})",
        found=", ".join(str(array.shape) for array in inputs),
        hint="Export the model again for any size, or give it fewer images at once if memory ran out",
    )
