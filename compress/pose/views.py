"""Outputs of a network for several views of an image: mirrored, and at several scales, averaged on one grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compress.errors import UsageError
from compress.pose.decoders.base import Decoder, NetworkInput
from compress.pose.prepare import batch_inputs
from compress.pose.spec import PoseSpec

Array = NDArray[np.float32]

#: Runs a network on a batch of inputs: outputs by name.
Run = Callable[[Array], Mapping[str, Array]]

#: Largest factor of an image's size.
_MAX_SCALE = 10


@dataclass(frozen=True)
class View:
    """How a network looks at an image.

    Attributes
    ----------
    height : int or None
        Height in pixels that images, or crops of people, are scaled to; the network's own by default.
    flip : bool
        Average the outputs with those of the mirrored input.
    scales : tuple of float
        Average the outputs over these factors of the height, the largest first.

    Raises
    ------
    UsageError
        If the height is not positive, or the scales are not different numbers above 0 and below 10.
    """

    height: int | None = None
    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if self.height is not None and not self.height >= 1:
            raise UsageError("images can't be scaled to that height", found=self.height, hint="Give 1 or more pixels")
        scales = self.scales
        valid = all(math.isfinite(scale) and 0 < scale < _MAX_SCALE for scale in scales)
        if not scales or not valid or len(set(scales)) < len(scales):
            raise UsageError(
                f"scales must be different numbers above 0 and below {_MAX_SCALE}",
                found=scales,
                hint="Such as 0.5,1,1.5",
            )
        object.__setattr__(self, "scales", tuple(sorted(scales, reverse=True)))

    def describe(self) -> tuple[str, str]:
        """The scales and the flip test in words."""
        listed = ", ".join(f"{scale:g}" for scale in self.scales)
        return ("single scale" if len(self.scales) == 1 else f"scales {listed}"), ("flip" if self.flip else "no flip")


def read_scales(text: str) -> tuple[float, ...]:
    """``"0.5,1,1.5"`` to numbers, the largest first.

    Raises
    ------
    UsageError
        If they are not different numbers above 0 and below 10.
    """
    try:
        return View(scales=tuple(float(word) for word in text.split(","))).scales
    except ValueError:
        raise UsageError(
            f"scales must be different numbers above 0 and below {_MAX_SCALE}", found=text, hint="Such as 0.5,1,1.5"
        ) from None


def average_views(
    run: Run, frame: Callable[[float], Sequence[NetworkInput]], decoder: Decoder, pose: PoseSpec, view: View
) -> tuple[dict[str, Array], Sequence[NetworkInput]]:
    """Outputs of a network, averaged over views.

    Parameters
    ----------
    run : callable
        Runs the network.
    frame : callable
        From a scale to the N inputs of the network: one whole image, or crops of one size.
    decoder : Decoder
        Knows how outputs are mirrored and resampled.
    pose : PoseSpec
        What the network expects and returns.
    view : View
        Scales and flip test; the height is up to ``frame``.

    Returns
    -------
    outputs : dict of str to array, shape (N, ...)
        The mean, on the grid of the largest scale.
    inputs : sequence of N NetworkInputs
        Those of the largest scale.

    Raises
    ------
    UsageError
        If outputs of the decoder can't be averaged.
    """
    total, inputs = _outputs(run, frame(view.scales[0]), decoder, pose, view.flip)
    for scale in view.scales[1:]:
        outputs, others = _outputs(run, frame(scale), decoder, pose, view.flip)
        # The map between two scales is the same for all inputs.
        resampled = decoder.resample(outputs, inputs[0].pixels_to(others[0]), total, pose)
        total = {name: total[name] + value for name, value in resampled.items()}
    if len(view.scales) > 1:
        total = {name: value / np.float32(len(view.scales)) for name, value in total.items()}
    return total, inputs


def _outputs(
    run: Run, inputs: Sequence[NetworkInput], decoder: Decoder, pose: PoseSpec, flip: bool
) -> tuple[dict[str, Array], Sequence[NetworkInput]]:
    arrays = [network_input.array for network_input in inputs]
    outputs = dict(run(batch_inputs(arrays, pose)))
    if flip:
        mirrored = run(batch_inputs([np.ascontiguousarray(array[..., ::-1]) for array in arrays], pose))
        height, width = arrays[0].shape[1:]
        outputs = decoder.merge_mirrored(outputs, mirrored, pose, (height, width))
    return outputs, inputs
