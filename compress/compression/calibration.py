"""Calibration images, and the statistics and error curves of layers that are measured on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.source import images as open_images
from compress.errors import DataError
from compress.evaluation.inputs import calibration_inputs
from compress.model import Model
from compress.network.inputs import Inputs
from compress.network.layers import LayerIndex
from compress.network.outputs import Outputs
from compress.network.statistics import Calibration, measure_sensitivity
from compress.planning.budgeted import Curves, eligible, measure_curves
from compress.planning.selection import Selection
from compress.progress import Progress

#: Fewer calibration images than this are worth a warning.
FEW_IMAGES = 8

#: Images on which outputs are compared, beyond those that factors are fitted to.
COMPARED_IMAGES = 24

#: From this many calibration images on the last eighth is held out for the comparison if there are no further images.
HOLD_OUT_FROM = 16

#: A joint whose map nowhere reaches this height is not detected; decoders use about the same threshold.
VISIBLE = 0.1


@dataclass(frozen=True)
class CalibrationImages:
    """Images as a network reads them.

    Attributes
    ----------
    fitted : tuple of Inputs
        Those that factors are fitted to.
    compared : tuple of Inputs
        Those on which the outputs of both networks are compared.
    held_out : bool
        Whether factors are fitted to none of ``compared``.
    name : str
        What messages call them.
    """

    fitted: tuple[Inputs, ...]
    compared: tuple[Inputs, ...]
    held_out: bool
    name: str


def read_images(source: Any, model: Model, count: int, progress: Progress | None = None) -> CalibrationImages:
    """Calibration images for a model, and further ones to compare outputs on.

    The first ``count`` images are for the fit and up to `COMPARED_IMAGES` after them for the comparison. If there are
    not even two more, the last eighth of all is held out from the fit, and with fewer than `HOLD_OUT_FROM` images the
    comparison runs on those that factors are fitted to.

    Parameters
    ----------
    source : object
        As of `compress.images`.
    model : Model
        Whose inputs they become, scaled to the height at which its costs are counted.
    count : int
        Maximum number of images to fit factors to.
    progress : Progress, optional
        Told of images that can't be read and are left out.

    Raises
    ------
    DataError
        If there are none.
    """
    opened: Dataset | Tensors = open_images(source)
    wanted = count + COMPARED_IMAGES
    if isinstance(opened, Tensors):
        inputs = opened.for_network(model.inputs, wanted)
    else:
        inputs = calibration_inputs(opened, model, wanted, model.size[0], progress)
    if not inputs:
        raise DataError("there are no images to calibrate with", found=opened.name)
    fitted, compared = inputs[:count], inputs[count:]
    if len(compared) >= 2:
        return CalibrationImages(tuple(fitted), tuple(compared), True, opened.name)
    held = len(inputs) // 8 if len(inputs) >= HOLD_OUT_FROM else 0
    if held:
        return CalibrationImages(tuple(inputs[:-held]), tuple(inputs[-held:]), True, opened.name)
    return CalibrationImages(tuple(fitted), tuple(fitted[:COMPARED_IMAGES]), False, opened.name)


def doubts(model: Model, images: Sequence[Inputs]) -> list[str]:
    """Warnings about these images as something to fit factors to; empty if all is well."""
    warnings = []
    if len(images) < FEW_IMAGES:
        warnings.append(f"only {len(images)} images to fit factors to: covariances need a few dozen")
    if model.pose is None:
        return warnings
    joints, peak = len(model.pose.joints.joints), 0.0
    with torch.no_grad():
        for image in images:
            heatmaps = model.run(image).get("heatmaps")
            if heatmaps is None:  # decoders of other outputs have no height in common
                return warnings
            peak = max(peak, float(heatmaps[:, :joints].max()))
            if peak >= VISIBLE:
                return warnings
    warnings.append(
        f"the network detects nobody on these images (highest joint {peak:.3f}): factors are fitted to the background"
    )
    return warnings


def calibrate(
    module: nn.Module, outputs: Outputs, images: Sequence[Inputs], names: Sequence[str], progress: Progress
) -> Calibration:
    """Measure the sensitivity of the final outputs to layers, and where to sample these."""
    with progress.bar("sensitivity", len(images)) as advance:
        sensitivities = measure_sensitivity(module, images, names, outputs=outputs, progress=lambda *_: advance(1))
    return Calibration(images, sensitivities, outputs)


def calibrated_curves(
    model: Model,
    selection: Selection,
    images: Sequence[Inputs],
    progress: Progress,
    align: int = 1,
    methods: Collection[str] | None = None,
) -> tuple[Calibration, Curves]:
    """Statistics and error curves of all layers that a selection allows.

    Parameters
    ----------
    model : Model
        The model.
    selection : Selection
        Which of its layers may be replaced.
    images : sequence of Inputs
        Calibration images.
    progress : Progress
        Receives every step.
    align : int
        Ranks are multiples of it.
    methods : collection of str, optional
        Names of the forms to consider; without it all.
    """
    layers: LayerIndex = model.layers
    names, kept = eligible(layers, selection)
    calibration = calibrate(model.module, model.outputs, images, names, progress)
    with progress.bar("error curves", len(names)) as advance:
        curves = measure_curves(
            model.module, layers, kept, calibration, align=align, methods=methods, progress=lambda *_: advance(1)
        )
    return calibration, curves
