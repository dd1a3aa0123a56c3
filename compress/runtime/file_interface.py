"""What the network in an exported file expects and returns, and which of the file's outputs is which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.checkpoint.own_code import Network, declared_pose, find_factory, is_own
from compress.errors import CompressError, FileError
from compress.network.inputs import InputSpec
from compress.pose.decoders.registry import get_decoder
from compress.pose.spec import PoseSpec
from compress.runtime.runner import PEAKS, Shape
from compress.zoo.registry import pose_spec

#: Where our metadata lies: keys of ONNX files begin with it, OpenVINO's ``rt_info`` has it as a section.
SECTION = "compress"


@dataclass(frozen=True)
class Port:
    """An output of a file: its names, and the size of its second axis where that is fixed."""

    names: frozenset[str]
    channels: int | None = None


@dataclass(frozen=True)
class FileInterface:
    """What a runner returns of a file.

    Attributes
    ----------
    pose : PoseSpec or None
        What the network expects and returns; None where nothing says so.
    names : tuple of str
        Names of the outputs that are returned.
    indices : tuple of int
        For each name the index of the file's output.
    """

    pose: PoseSpec | None
    names: tuple[str, ...]
    indices: tuple[int, ...]


def read_interface(
    path: Path,
    ports: Sequence[Port],
    metadata: Mapping[str, str],
    network: Network | None,
    known: PoseSpec | None = None,
) -> FileInterface:
    """Find the outputs of an exported file.

    Parameters
    ----------
    path : Path
        The file, for errors.
    ports : sequence of Port
        Its outputs.
    metadata : mapping of str to str
        Our metadata in the file, keys without `SECTION`: ``pose`` and ``outputs`` are read.
    network : str, callable or nn.Module, optional
        The network in a file from elsewhere, of which the pose specification is taken.
    known : PoseSpec, optional
        Of a public release that brings none of its own.

    Raises
    ------
    FileError
        If the metadata can't be read, or an output of the pose specification is not there.
    NetworkError
        If the network is unknown.
    """
    pose: PoseSpec | None
    if "pose" in metadata:
        pose = read_pose(metadata["pose"], path)
    elif known is not None or network is None or "outputs" in metadata:
        pose = known
    else:
        pose = declared_pose(find_factory(network)) if is_own(network) else pose_spec(str(network))
    if pose is None:
        names = _read_names(metadata, len(ports), path) or tuple(
            min(port.names, default=f"output_{index}") for index, port in enumerate(ports)
        )
        return FileInterface(None, names, tuple(range(len(ports))))
    names, indices = pose.outputs, match_outputs(ports, pose, path)
    peaks = [index for index, port in enumerate(ports) if PEAKS in port.names and PEAKS not in names]
    return FileInterface(pose, (*names, *[PEAKS] * len(peaks)), (*indices, *peaks))


def fixed_sides(runner: object) -> bool:
    """Whether a runner's file takes images of one height and width only."""
    shape: Shape | None = getattr(runner, "shape", None)
    return shape is not None and len(shape) == 4 and all(side is not None for side in shape[1:])


def specs_of(shapes: Sequence[Shape | None], dtypes: Sequence[str]) -> tuple[InputSpec, ...]:
    """Input specifications of a file, batch 1 where it is free; empty if a file leaves other sizes free."""
    known = [shape for shape in shapes if shape and all(shape[1:])]
    if len(known) < len(shapes):
        return ()
    filled = [(shape[0] or 1, *(side or 1 for side in shape[1:])) for shape in known]
    return tuple(InputSpec(shape, dtype) for shape, dtype in zip(filled, dtypes, strict=True))


def read_pose(text: str, path: Path) -> PoseSpec:
    """The pose specification in an exported file's metadata.

    Raises
    ------
    FileError
        If it can't be read.
    """
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise ValueError("it is no JSON object")
        return PoseSpec.from_dict(record)
    except (CompressError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise FileError(
            f"the pose specification in the file's metadata can't be read ({error})",
            found=str(path),
            hint="Export the file again",
        ) from error


def match_outputs(ports: Sequence[Port], pose: PoseSpec, path: Path) -> tuple[int, ...]:
    """For each of ``pose.outputs`` the index of the file's output.

    It is the output of that name; else the last one with its number of channels, because a network with several
    stages returns its final maps last.

    Raises
    ------
    FileError
        If there is no such output.
    """
    found = []
    for name, channels in get_decoder(pose).expected_outputs(pose).items():
        named = [index for index, port in enumerate(ports) if name in port.names]
        sized = [index for index, port in enumerate(ports) if channels is not None and port.channels == channels]
        if not named and not sized:
            count = "" if channels is None else f", nor one with {channels} channels"
            raise FileError(
                f"the model has no output {name}{count}",
                found=", ".join(f"{'/'.join(sorted(port.names))} ({port.channels})" for port in ports),
                hint=f"Is {path.name} a network for the decoder {pose.decoder} with the skeleton {pose.joints.name}?",
            )
        found.append((named or sized)[-1])
    return tuple(found)


def _read_names(metadata: Mapping[str, str], count: int, path: Path) -> tuple[str, ...]:
    """Names of the outputs of a network without keypoints; empty where the file does not bring any."""
    if "outputs" not in metadata:
        return ()
    try:
        names = json.loads(metadata["outputs"])
    except (RecursionError, ValueError):
        names = None
    if not isinstance(names, list) or len(names) != count or not all(isinstance(name, str) for name in names):
        raise FileError("the file's names of its outputs can't be read", found=str(path), hint="Export the file again")
    return tuple(names)
