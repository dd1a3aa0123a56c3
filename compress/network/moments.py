"""Moments of what layers read and of what they should give, streamed over images in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.decomposition.fitting import WIDE
from compress.network.recording import columns, patches, recorded, run
from compress.network.statistics import Sensitivity

#: Sums of squares gathered in one pass take at most so many bytes (float32).
MEMORY = 5 * 2**29

#: Rows of a sum of squares that are computed together.
BLOCK = 1024


@dataclass(frozen=True)
class Moments:
    """Weighted first and second moments of a layer, in float64; a covariance of `WIDE` patches is kept in float32.

    Attributes
    ----------
    mean : Tensor, shape (D,)
        Of patches, flattened as a kernel is.
    covariance : Tensor, shape (D, D)
        Of patches.
    target_mean : Tensor, shape (T,)
        Of the outputs aimed at.
    cross : Tensor, shape (T, D)
        Covariance of outputs aimed at with patches.
    samples : int
        Positions looked at.
    """

    mean: Tensor
    covariance: Tensor
    target_mean: Tensor
    cross: Tensor
    samples: int


@dataclass
class _Sums:
    """Weighted sums over positions: x x', y x' and y w, the last row of y being the root weight itself.

    Both x and y are taken from about their means on: beside a large mean float32 would lose the variance. Of x x',
    which is symmetric, each block of rows begins at the diagonal.
    """

    patch: Tensor
    target: Tensor
    square: list[Tensor]
    cross: Tensor
    targets: Tensor
    samples: int = 0

    @classmethod
    def around(cls, patch: Tensor, target: Tensor) -> _Sums:
        """Sums of nothing yet, about a patch (D,) and a target (T,)."""
        size, outputs = len(patch), len(target) + 1
        zeros = patch.new_zeros
        square = [zeros(min(BLOCK, size - start), size - start) for start in range(0, size, BLOCK)]
        return cls(patch[:, None], target[:, None], square, zeros(outputs, size), zeros(outputs))

    def add(self, x: Tensor, y: Tensor, root: Tensor) -> None:
        """Add patches (D, n), which are used up, and targets (T, n) with the roots (n,) of their weights."""
        # One product gives covariance, cross moment and means: of patches, outputs and the weight itself.
        x, y = x.sub_(self.patch).mul_(root), torch.cat([(y - self.target) * root, root[None]])
        for number, rows in enumerate(self.square):
            start = number * BLOCK
            rows.addmm_(x[start : start + BLOCK], x[start:].T)
        self.cross.addmm_(y, x.T)
        self.targets.addmv_(y, y[-1])
        self.samples += x.shape[1]

    def moments(self) -> Moments:
        """What they amount to; the sums are used up."""
        size, total = len(self.patch), float(self.targets[-1])
        mean, target_mean = self.cross[-1].double() / total, self.targets[:-1].double() / total
        # Of long patches there are many at a time, and each is hundreds of megabytes.
        precision = torch.float32 if size > WIDE else torch.float64
        covariance = torch.empty(size, size, dtype=precision, device=self.patch.device)
        for number, rows in enumerate(self.square):
            start, end = number * BLOCK, number * BLOCK + len(rows)
            covariance[start:end, start:] = rows
            covariance[end:, start:end] = rows[:, len(rows) :].T
        self.square.clear()
        covariance.div_(total).addr_(mean.to(covariance), mean.to(covariance), alpha=-1)
        cross = self.cross[:-1].double().div_(total).addr_(target_mean, mean, alpha=-1)
        mean, target_mean = mean + self.patch[:, 0], target_mean + self.target[:, 0]
        return Moments(mean, covariance, target_mean, cross, self.samples)


def in_groups(module: nn.Module, names: Sequence[str], count: int) -> Iterator[list[str]]:
    """Names in their order, at most ``count`` together and never with more covariances than fit into `MEMORY`."""
    group: list[str] = []
    used = 0
    for name in names:
        length = module.get_submodule(name).get_parameter("weight")[0].numel()
        size = sum(4 * min(BLOCK, length - start) * (length - start) for start in range(0, length, BLOCK))
        if group and (len(group) >= count or used + size > MEMORY):
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


def gather_moments(
    original: nn.Module,
    compressed: nn.Module,
    images: Sequence[Tensor],
    sensitivities: Mapping[str, Sensitivity],
    names: Sequence[str],
) -> Iterator[tuple[str, Moments]]:
    """Moments of what layers read in one network, and of what they gave in another.

    With the original network twice these are plain moments. With a network whose first layers are compressed already
    they are the asymmetric ones of Zhang et al. (2015, arXiv:1505.06798), section 3.3: inputs as they will be, outputs
    as they should be.

    Parameters
    ----------
    original, compressed : nn.Module
        Networks in evaluation mode that have all layers ``names``, in the same order of calls.
    images : sequence of Tensor, shape (1, 3, H, W)
        Those of the sensitivities.
    sensitivities : mapping
        Where to look, and perhaps what the original gave there; otherwise it is run again.
    names : sequence of str
        Layers whose moments are gathered at the same time; this bounds the memory.

    Yields
    ------
    (str, Moments)
        Of one layer after the other, as ``names`` has them; each takes its full memory only then.
    """
    sums = _gather(original, compressed, images, sensitivities, names)
    for name in list(sums):
        yield name, sums.pop(name).moments()


@torch.no_grad()
def _gather(
    original: nn.Module,
    compressed: nn.Module,
    images: Sequence[Tensor],
    sensitivities: Mapping[str, Sensitivity],
    names: Sequence[str],
) -> dict[str, _Sums]:
    sums: dict[str, _Sums] = {}
    same = original is compressed
    known = all(place.target is not None for name in names for calls in sensitivities[name].places for place in calls)
    for number, image in enumerate(images):
        places = {name: sensitivities[name].places[number] for name in names}
        until = {name: len(calls) for name, calls in places.items()}
        with recorded(compressed, names, inputs=True, outputs=same and not known, until=until) as read:
            run(compressed, image)
        wanted = read
        if not (same or known):
            with recorded(original, names, outputs=True, until=until) as wanted:
                run(original, image)
        for name in names:
            layer = original.get_submodule(name)
            for place, given, target in zip(places[name], read[name], wanted[name], strict=True):
                x, y = patches(given.input, layer, place.index), place.target
                if y is None:
                    y = columns(target.output, layer).index_select(1, place.index.to(x.device))
                if name not in sums:
                    sums[name] = _Sums.around(x.mean(1), y.mean(1))
                sums[name].add(x, y.to(x), place.weight.to(x).sqrt())
    return sums
