"""One face for all runtimes: arrays in, named arrays out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compress.errors import CheckpointError, CompressError, DataError, FileError
from compress.pose.spec import PoseSpec
from compress.zoo.registry import pose_spec

Array = NDArray[np.float32]

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
        layers run in what was asked for (``"int8+bf16"``).
    threads : int
        CPU threads.
    pose : PoseSpec
        What the network expects and gives.
    """

    name: str
    device: str
    precision: str
    threads: int
    pose: PoseSpec

    def run(self, images: Array) -> dict[str, Array]:
        """Maps of images.

        Parameters
        ----------
        images : array, shape (N, 3, H, W), float32
            Prepared as ``pose`` says; H and W are multiples of its stride.

        Returns
        -------
        dict of str to array, shape (N, C, H / stride, W / stride), float32
            One array for each name of ``pose.outputs``, in that order; the caller's own. Of a file that finds peaks
            itself `PEAKS` follows, which decoders here have no need of.

        Raises
        ------
        DataError
            If the input has another shape or type.
        """
        ...

    def close(self) -> None:
        """Give up what the runtime holds; the runner can't be used any more."""
        ...


def check_input(images: Array, pose: PoseSpec) -> None:
    """Refuse an input that no network of that specification can take."""
    shape = np.shape(images)
    if len(shape) != 4 or shape[1] != 3 or 0 in shape or images.dtype != np.float32:
        raise DataError(
            "a network's input must be (images, 3, height, width) in float32", found=(shape, str(images.dtype))
        )
    if shape[2] % pose.stride or shape[3] % pose.stride:
        raise DataError(
            f"the input's height and width must be multiples of {pose.stride}", found=f"{shape[2]}x{shape[3]}"
        )


def cannot_run(runtime: str, images: Array, error: Exception) -> CompressError:
    """What to raise where a runtime fails on an input that looks right."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
    return CompressError(
        f"{runtime} can't run the model on this input ({reason})",
        found=images.shape,
        hint="Export the model anew for any size, or give it less at once if memory ran out",
    )


def read_pose(text: str, path: Path) -> PoseSpec:
    """The pose specification in an exported file's metadata."""
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        return PoseSpec.from_dict(record)
    except (CheckpointError, RecursionError, ValueError) as error:
        raise FileError(
            f"the pose specification in the file's metadata can't be read ({error})",
            found=str(path),
            hint="Export the file again",
        ) from error


def foreign_pose(path: Path, network: str | None) -> PoseSpec:
    """The pose specification of a file that does not bring one."""
    if network is not None:
        return pose_spec(network)
    raise CompressError(
        "the file does not say what its network expects and gives",
        found=str(path),
        hint="Export it by compress export, which writes that into the file, or name the network it holds by "
        "--network NAME (see compress networks)",
    )


def match_outputs(outputs: Sequence[tuple[set[str], int | None]], pose: PoseSpec, path: Path) -> list[int]:
    """Which output of a file is which map.

    Parameters
    ----------
    outputs : sequence of (set of str, int or None)
        Names and number of channels (None if not fixed) of the file's outputs.
    pose : PoseSpec
        Names the maps.
    path : Path
        The file, for errors.

    Returns
    -------
    list of int
        For each of ``pose.outputs`` the index of the output of that name; else of the last output with its number of
        channels, because a network with several stages gives its final maps last.

    Raises
    ------
    FileError
        If there is no such output.
    """
    joints = pose.joints
    channels = {"heatmaps": len(joints.joints) + pose.background, "pafs": 2 * len(joints.limbs)}
    found = []
    for name in pose.outputs:
        named = [index for index, (names, _) in enumerate(outputs) if name in names]
        sized = [index for index, (_, count) in enumerate(outputs) if count is not None and count == channels.get(name)]
        if not named and not sized:
            raise FileError(
                f"the model has no output {name}, nor one with {channels.get(name)} channels",
                found=", ".join(f"{'/'.join(sorted(names))} ({count})" for names, count in outputs),
                hint=f"Is {path.name} a network of the kind {pose.decoder} with the skeleton {pose.skeleton}?",
            )
        found.append((named or sized)[-1])
    return found
