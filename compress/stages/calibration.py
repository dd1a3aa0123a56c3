"""Steps of data-aware factorization that commands share: images in, statistics, curves and factors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.data.sample import Dataset, iterate
from compress.errors import DataError, UsageError
from compress.evaluate import network_inputs
from compress.model.layers import LayerInfo
from compress.model.statistics import Calibration, measure_sensitivity
from compress.pose.spec import PoseSpec
from compress.ranks.budgeted import Curves, eligible, measure_curves
from compress.ranks.fixed import Selection
from compress.stages.base import Progress


def calibration_images(dataset: Dataset, pose: PoseSpec, height: int, count: int) -> list[Tensor]:
    """The first images of a data set as a network reads them: whole, or a crop of each person.

    Parameters
    ----------
    dataset : Dataset
        Images, with or without annotations.
    pose : PoseSpec
        What the network expects.
    height : int
        Height in pixels that images or crops are scaled to.
    count : int
        At most so many.

    Returns
    -------
    list of Tensor, shape (1, 3, H, W)
        In the order of the data set.

    Raises
    ------
    DataError
        If there are none.
    """
    if count < 2:
        raise UsageError("--calibrate must be at least 2", found=count, way_out="A few dozen images are best")
    inputs: list[Tensor] = []
    for sample in iterate(dataset):
        inputs += [torch.from_numpy(array)[None] for array in network_inputs(sample, pose, height)]
        if len(inputs) >= count:
            break
    if not inputs:
        raise DataError("there are no images to calibrate with", found=dataset.name)
    return inputs[:count]


def calibrate(module: nn.Module, images: Sequence[Tensor], names: Sequence[str], progress: Progress) -> Calibration:
    """Where layers are to be looked at, and what the final maps feel of them."""
    with progress.bar("sensitivity", len(images)) as advance:
        return Calibration(images, measure_sensitivity(module, images, names, progress=lambda *_: advance(1)))


def curves_of(
    module: nn.Module,
    layers: Sequence[LayerInfo],
    selection: Selection,
    images: Sequence[Tensor],
    progress: Progress,
    **options: Any,
) -> tuple[Calibration, Curves]:
    """Statistics and error curves of all layers that a selection allows.

    Parameters
    ----------
    module : nn.Module
        The network.
    layers : sequence of LayerInfo
        All its layers.
    selection : Selection
        Which of them may be replaced.
    images : sequence of Tensor
        Calibration images.
    progress : Progress
        Told of every step.
    **options
        Of `compress.ranks.budgeted.measure_curves`.
    """
    names, kept = eligible(layers, selection)
    calibration = calibrate(module, images, names, progress)
    with progress.bar("error curves", len(names)) as advance:
        curves = measure_curves(module, layers, kept, calibration, progress=lambda *_: advance(1), **options)
    return calibration, curves
