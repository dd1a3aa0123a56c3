"""What a network of any origin reads and gives: found by running it once, and compared with its pose specification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from compress.errors import NetworkError
from compress.network.inputs import InputSpec, image_input
from compress.network.outputs import Outputs, describe, probe_outputs, read_once
from compress.pose.decoders.registry import get_decoder
from compress.pose.spec import PoseSpec


@dataclass(frozen=True)
class Interface:
    """Inputs, outputs and pose specification of a network."""

    inputs: tuple[InputSpec, ...]
    outputs: Outputs
    pose: PoseSpec | None


def find_interface(
    module: nn.Module, inputs: Sequence[InputSpec] | None, pose: PoseSpec | None, *, guess: bool = False
) -> Interface:
    """Run a network once on zeros and find how its outputs are read.

    Parameters
    ----------
    module : nn.Module
        In evaluation mode.
    inputs : sequence of InputSpec, optional
        What it reads; by default one image as the pose specification, or that of `PoseSpec`'s defaults, says.
    pose : PoseSpec, optional
        What it expects and gives.
    guess : bool
        Where no pose specification is given, take that of the defaults if the outputs fit it.

    Raises
    ------
    NetworkError
        If its forward fails, it returns no tensors, or they do not fit the pose specification.
    """
    usual = pose or PoseSpec()
    try:
        inputs = _single(module, inputs or image_input(usual.size, usual.channels))
    except NetworkError as error:
        if pose is None and inputs is None:
            raise NetworkError(
                error.cause,
                found=error.found,
                hint="Set the attribute example of the factory to the shape that the network reads, for example "
                "make.example = (1, 3, 256, 192)",
            ) from error
        raise
    if pose is None and guess:
        try:
            return _fitted(module, inputs, usual)
        except NetworkError:
            pose = None
    if pose is None:
        return Interface(tuple(inputs), probe_outputs(module, inputs), None)
    return _fitted(module, inputs, pose)


def _single(module: nn.Module, inputs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The inputs with a batch of one, where they share a batch axis and the network takes it; runs the network."""
    batches = {spec.shape[0] for spec in inputs}
    if len(batches) == 1 and batches != {1}:
        single = tuple(replace(spec, shape=(1, *spec.shape[1:])) for spec in inputs)
        try:
            read_once(module, single)
            return single
        except NetworkError:
            pass
    read_once(module, inputs)
    return tuple(inputs)


def _fitted(module: nn.Module, inputs: Sequence[InputSpec], pose: PoseSpec) -> Interface:
    outputs = probe_outputs(module, inputs, get_decoder(pose).expected_outputs(pose))
    image = inputs[0].shape
    rows = 1 if pose.layout == "nhwc" else 2
    if len(image) != 4 or image[3 if pose.layout == "nhwc" else 1] != pose.channels:
        raise NetworkError(
            f"the pose specification prepares images of {pose.channels} channel(s), and the network reads others",
            found=image,
            hint="Give mean and scale one number for each channel, or leave the pose specification out",
        )
    found = outputs.final(read_once(module, inputs))
    for name, value in found.items():
        if value.dim() != 4:
            continue
        wanted = [{side // pose.stride, -(-side // pose.stride)} for side in image[rows : rows + 2]]
        if any(side not in sides for side, sides in zip(value.shape[2:], wanted, strict=True)):
            raise NetworkError(
                f"the pose specification has a stride of {pose.stride}, and the output {name} of an input of "
                f"{image[rows]}x{image[rows + 1]} pixels has another size",
                found=describe(found),
                hint="Give the number of input pixels for each cell of the maps as stride",
            )
    return Interface(tuple(inputs), outputs, pose)
