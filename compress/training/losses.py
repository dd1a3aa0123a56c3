"""The loss of supervised stages: squared error of every map, summed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Maps = Mapping[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss and what it is made of.

    Attributes
    ----------
    total : Tensor, shape ()
        What is minimised.
    parts : dict of str to Tensor, shape ()
        Detached summands by name; their sum is ``total``.
    """

    total: Tensor
    parts: dict[str, Tensor]


def masked_squares(prediction: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Half the squared error of one kind of map, summed over channels and cells, per image.

    ``sum((prediction - target)^2 * mask) / (2 N)``, the loss of Cao et al. ("Realtime Multi-Person 2D Pose Estimation
    using Part Affinity Fields", 2017, eq. 5) in the scale of the lightweight OpenPose training.

    Parameters
    ----------
    prediction, target : Tensor, shape (N, C, h, w)
        Maps; compared in float32.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1), optional
        1 where the target can be trusted, 0 where an error must cost nothing; or a weight for each map.

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

    A stage whose maps have another size than the target is compared with the target resized to it, bilinear and
    smoothed where it gets smaller; its squares are scaled by the numbers of cells, so that they count as much as those
    of a stage of the target's size (the mean over cells of RePose). The mask has to be one of weights then.

    Parameters
    ----------
    stages : sequence of mappings
        Maps of each stage, as a network's ``forward`` returns them.
    targets : mapping
        One target for each kind of map, the same for all stages.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1), optional
        As in `masked_squares`.

    Returns
    -------
    Loss
        One part for each kind of map, summed over the stages.
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
        Weight and loss by name; the name becomes a prefix of the parts' names.

    Returns
    -------
    Loss
        Parts carry their weights, so that they still sum to the total.
    """
    total = torch.stack([weight * loss.total for weight, loss in losses.values()]).sum()
    parts = {
        f"{prefix}.{name}": weight * part
        for prefix, (weight, loss) in losses.items()
        for name, part in loss.parts.items()
    }
    return Loss(total, parts)
