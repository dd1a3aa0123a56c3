"""Steps of data-aware factorization that commands share: images in, statistics, curves and factors out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from compress.data.sample import Dataset, iterate
from compress.errors import DataError, UsageError
from compress.evaluation.score import SEEN, network_inputs
from compress.network.layers import LayerInfo
from compress.network.statistics import Calibration, measure_sensitivity
from compress.planning.budgeted import Curves, eligible, measure_curves
from compress.planning.selection import Selection
from compress.pose.skeleton import get_skeleton
from compress.pose.spec import PoseSpec
from compress.progress import Progress

#: Fewer images than this are worth a word.
FEW = 8


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
        raise UsageError("--calibrate must be at least 2", found=count, hint="A few dozen images are best")
    inputs: list[Tensor] = []
    for sample in iterate(dataset):
        inputs += [torch.from_numpy(array)[None] for array in network_inputs(sample, pose, height)]
        if len(inputs) >= count:
            break
    if not inputs:
        raise DataError("there are no images to calibrate with", found=dataset.name)
    return inputs[:count]


def doubts(module: nn.Module, pose: PoseSpec, images: Sequence[Tensor]) -> list[str]:
    """What speaks against these images as something to fit factors to; nothing if all is well."""
    found = []
    if len(images) < FEW:
        found.append(f"only {len(images)} images to fit factors to: covariances want a few dozen")
    joints, peak = len(get_skeleton(pose.skeleton).joints), 0.0
    with torch.no_grad():
        for image in images:
            peak = max(peak, float(module(image)[-1]["heatmaps"][:, :joints].max()))
            if peak >= SEEN:
                return found
    found.append(
        f"the network sees nobody on these images (highest joint {peak:.3f}): factors are fitted to the background"
    )
    return found


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
        Of `compress.planning.budgeted.measure_curves`.
    """
    names, kept = eligible(layers, selection)
    calibration = calibrate(module, images, names, progress)
    with progress.bar("error curves", len(names)) as advance:
        curves = measure_curves(module, layers, kept, calibration, progress=lambda *_: advance(1), **options)
    return calibration, curves
