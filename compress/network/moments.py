"""Moments of the inputs and target outputs of layers, streamed over images in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.decomposition.fitting import WIDE
from compress.network.inputs import Inputs
from compress.network.recording import columns, patches, recorded, run_recorded
from compress.network.statistics import Sensitivity

#: Sums of squares gathered in one pass take at most this many bytes (float32).
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
        Of the target outputs.
    cross : Tensor, shape (T, D)
        Covariance of target outputs with patches.
    samples : int
        Positions sampled.
    """

    mean: Tensor
    covariance: Tensor
    target_mean: Tensor
    cross: Tensor
    samples: int


@dataclass
class _Sums:
    """Weighted sums over positions: x x', y x' and y w, the last row of y being the root weight itself.

    Both x and y are shifted by about their means: with a large mean float32 would lose the variance. Of x x', which is
    symmetric, each block of rows begins at the diagonal.
    """

    patch: Tensor
    target: Tensor
    square: list[Tensor]
    cross: Tensor
    targets: Tensor
    samples: int = 0

    @classmethod
    def around(cls, patch: Tensor, target: Tensor) -> _Sums:
        """Empty sums, shifted by a patch (D,) and a target (T,)."""
        size, outputs = len(patch), len(target) + 1
        zeros = patch.new_zeros
        square = [zeros(min(BLOCK, size - start), size - start) for start in range(0, size, BLOCK)]
        return cls(patch[:, None], target[:, None], square, zeros(outputs, size), zeros(outputs))

    def add(self, x: Tensor, y: Tensor, root: Tensor) -> None:
        """Add patches (D, n), which are overwritten, and targets (T, n) with the roots (n,) of their weights."""
        # One product gives covariance, cross moment and means: of patches, outputs and the weight itself.
        x, y = x.sub_(self.patch).mul_(root), torch.cat([(y - self.target) * root, root[None]])
        for number, rows in enumerate(self.square):
            start = number * BLOCK
            rows.addmm_(x[start : start + BLOCK], x[start:].T)
        self.cross.addmm_(y, x.T)
        self.targets.addmv_(y, y[-1])
        self.samples += x.shape[1]

    def moments(self) -> Moments:
        """The moments; the sums are consumed."""
        size, total = len(self.patch), float(self.targets[-1])
        mean, target_mean = self.cross[-1].double() / total, self.targets[:-1].double() / total
        # Covariances of long patches take hundreds of megabytes each, and several are in memory at once.
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
    """Names in their order, at most ``count`` in a group and never more covariances than fit into `MEMORY`."""
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
    images: Sequence[Inputs],
    sensitivities: Mapping[str, Sensitivity],
    names: Sequence[str],
) -> Iterator[tuple[str, Moments]]:
    """Moments of what layers read in one network and of what they return in another.

    With the original network twice these are plain moments. With a network whose first layers are compressed already
    they are the asymmetric ones of Zhang et al. (2015, arXiv:1505.06798), section 3.3: inputs of the compressed
    network, outputs of the original.

    Parameters
    ----------
    original, compressed : nn.Module
        Networks in evaluation mode that have all layers ``names``, in the same order of calls.
    images : sequence of Inputs
        Those of the sensitivities.
    sensitivities : mapping
        Positions to sample, and the original's outputs there if they were kept; otherwise the original runs again.
    names : sequence of str
        Layers whose moments are gathered together; this bounds the memory.

    Yields
    ------
    (str, Moments)
        One layer after the other, in the order of ``names``; each takes its full memory only then.
    """
    sums = _gather(original, compressed, images, sensitivities, names)
    for name in list(sums):
        yield name, sums.pop(name).moments()


@torch.no_grad()
def _gather(
    original: nn.Module,
    compressed: nn.Module,
    images: Sequence[Inputs],
    sensitivities: Mapping[str, Sensitivity],
    names: Sequence[str],
) -> dict[str, _Sums]:
    sums: dict[str, _Sums] = {}
    same = original is compressed
    known = all(
        sampled.target is not None for name in names for calls in sensitivities[name].positions for sampled in calls
    )
    for number, image in enumerate(images):
        positions = {name: sensitivities[name].positions[number] for name in names}
        until = {name: len(calls) for name, calls in positions.items()}
        with recorded(compressed, names, inputs=True, outputs=same and not known, until=until) as read:
            run_recorded(compressed, image)
        wanted = read
        if not (same or known):
            with recorded(original, names, outputs=True, until=until) as wanted:
                run_recorded(original, image)
        for name in names:
            layer = original.get_submodule(name)
            for sampled, given, target in zip(positions[name], read[name], wanted[name], strict=True):
                x, y = patches(given.input, layer, sampled.index), sampled.target
                if y is None:
                    y = columns(target.output, layer).index_select(1, sampled.index.to(x.device))
                if name not in sums:
                    sums[name] = _Sums.around(x.mean(1), y.mean(1))
                sums[name].add(x, y.to(x), sampled.weight.to(x).sqrt())
    return sums
