"""The loss of supervised stages: squared error of every output, summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Maps = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss and its terms.

    Attributes
    ----------
    total : Tensor, shape ()
        The quantity to minimise.
    parts : dict of str to Tensor, shape ()
        Detached terms by name; their sum is ``total``.
    """

    total: Tensor
    parts: dict[str, Tensor]


def masked_squares(prediction: Tensor, target: Tensor, mask: Tensor | None, kernel: float | None = None) -> Tensor:
    """Half the squared error of one output, summed over everything but the batch, per image.

    ``sum((prediction - target)^2 * mask) / (2 N)``, the loss of Cao et al. ("Realtime Multi-Person 2D Pose Estimation
    using Part Affinity Fields", 2017, eq. 5) in the scale of the lightweight OpenPose training.

    With a ``kernel`` of width s, the squared distance under a Gaussian kernel, ``k(a, a) + k(b, b) - 2 k(a, b)`` with
    ``k(a, b) = exp(-(a - b)^2 / (2 s^2))``, times ``s^2``: ``2 s^2 (1 - k(a, b))``. It approaches the squared error of
    values much closer than s, and the constant ``2 s^2`` far from them. This is the literal reading of the "Gaussian
    kernel distance" of the attention CPM (equation 14), whose text adds that distances are "similar to" those of Cao et
    al., the squared errors of Gaussian peaks.

    Parameters
    ----------
    prediction, target : Tensor, shape (N, ...)
        Outputs, such as maps (N, C, h, w); compared in float32.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1), optional
        1 where the target is reliable, 0 where errors are ignored; or a weight for each map.
    kernel : float, optional
        Width of the Gaussian kernel.

    Returns
    -------
    Tensor, shape ()
        The loss.
    """
    squares = (prediction.float() - target.float()).square()
    if kernel is not None:
        squares = -2 * kernel**2 * torch.expm1(squares / (-2 * kernel**2))
    if mask is not None:
        squares = squares * mask
    return squares.sum() / (2 * len(prediction))


def partial_weights(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """The weights of the partial loss of RePose (Isack et al., 2020, equation 3).

    People with few annotated joints count as much as others.

    Parameters
    ----------
    weights : array, shape (C, ...)
        Weight of each output map of one person, 0 for joints without an annotation.

    Returns
    -------
    array, shape (C, ...)
        ``C / n`` times the weights where n maps have one: the 1 / n of the paper up to a constant, which makes the mean
        over all maps 1. All 0 if none has.
    """
    count = int((weights > 0).sum())
    return weights * np.float32(weights.size / max(count, 1))


def pose_loss(stages: Sequence[Maps], targets: Maps, mask: Tensor | None, kernel: float | None = None) -> Loss:
    """`masked_squares` summed over stages and maps.

    A stage whose maps differ in size from the target is compared with the target resized to them (bilinear, with
    antialiasing); its squares are scaled by the ratio of the numbers of cells, so that the stage has the weight of one
    of the target's size (the mean over cells in RePose). The mask must then be one weight for each map.

    Parameters
    ----------
    stages : sequence of mappings
        Outputs of each stage.
    targets : mapping
        The target of each output, the same for all stages.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1), optional
        As in `masked_squares`.
    kernel : float, optional
        As in `masked_squares`.

    Returns
    -------
    Loss
        One term for each output, summed over the stages.
    """
    parts = {
        name: torch.stack([_at_size(stage[name], target, mask, kernel) for stage in stages]).sum()
        for name, target in targets.items()
    }
    return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})


def _at_size(prediction: Tensor, target: Tensor, mask: Tensor | None, kernel: float | None) -> Tensor:
    size = prediction.shape[-2:]
    if size == target.shape[-2:]:
        return masked_squares(prediction, target, mask, kernel)
    resized = functional.interpolate(target.float(), tuple(size), mode="bilinear", antialias=True)
    cells = target.shape[-2] * target.shape[-1] / (size[0] * size[1])
    return cells * masked_squares(prediction, resized, mask, kernel)


def add_losses(losses: Mapping[str, tuple[float, Loss]]) -> Loss:
    """A weighted sum of losses.

    Parameters
    ----------
    losses : mapping of str to (float, Loss)
        Weight and loss by name; the name becomes a prefix of the terms' names.

    Returns
    -------
    Loss
        The terms include their weights, so that they still sum to the total.
    """
    total = torch.stack([weight * loss.total for weight, loss in losses.values()]).sum()
    parts = {
        f"{prefix}.{name}": weight * part
        for prefix, (weight, loss) in losses.items()
        for name, part in loss.parts.items()
    }
    return Loss(total, parts)
