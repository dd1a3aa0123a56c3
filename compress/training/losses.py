"""The loss of supervised stages: squared error of every output, summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
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


def masked_squares(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Half the squared error of one output, summed over everything but the batch, per image.

    ``sum((prediction - target)^2 * mask) / (2 N)``, the loss of Cao et al. ("Realtime Multi-Person 2D Pose Estimation
    using Part Affinity Fields", 2017, eq. 5) in the scale of the lightweight OpenPose training.

    Parameters
    ----------
    prediction, target : Tensor, shape (N, ...)
        Outputs, such as maps (N, C, h, w); compared in float32.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1), optional
        1 where the target is reliable, 0 where errors are ignored; or a weight for each map.

    Returns
    -------
    Tensor, shape ()
        The loss.
    """
    squares = (prediction.float() - target.float()).square()
    if mask is not None:
        squares = squares * mask
    return squares.sum() / (2 * len(prediction))


def pose_loss(stages: Sequence[Maps], targets: Maps, mask: Tensor | None) -> Loss:
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

    Returns
    -------
    Loss
        One term for each output, summed over the stages.
    """
    parts = {
        name: torch.stack([_at_size(stage[name], target, mask) for stage in stages]).sum()
        for name, target in targets.items()
    }
    return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})


def _at_size(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    size = prediction.shape[-2:]
    if size == target.shape[-2:]:
        return masked_squares(prediction, target, mask)
    resized = functional.interpolate(target.float(), tuple(size), mode="bilinear", antialias=True)
    cells = target.shape[-2] * target.shape[-1] / (size[0] * size[1])
    return cells * masked_squares(prediction, resized, mask)


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
