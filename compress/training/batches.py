"""Batches for training; their sequence does not depend on the number of worker processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from compress.errors import CompressError
from compress.network.inputs import Inputs
from compress.pose.spec import PoseSpec

#: Where a training example comes from: (epoch, index in the data set).
Key = tuple[int, int]


@dataclass(frozen=True)
class Example:
    """One training example: image (H, W, C) uint8, targets (C, h, w) by name, mask (1, h, w) or (C, 1, 1)."""

    image: np.ndarray
    targets: dict[str, np.ndarray]
    mask: np.ndarray


@dataclass(frozen=True)
class Batch:
    """Examples stacked along the batch axis.

    Attributes
    ----------
    inputs : Inputs
        Pixels (N, C, H, W), uint8, in the network's channel order, not yet normalised and channels last in memory; or
        ready network inputs.
    targets : dict of str to Tensor, shape (N, C, h, w)
        Targets by name of the output; empty without labels.
    mask : Tensor, shape (N, 1, h, w) or (N, C, 1, 1)
        Share of each cell where the annotation is reliable; for networks that see one person, the weight of each map:
        0 for joints that are not annotated or outside the image, equal for all others.
    """

    inputs: Inputs
    targets: dict[str, Tensor]
    mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """The batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory; the loader calls it."""
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = tuple(map(change, self.inputs)) if isinstance(self.inputs, tuple) else change(self.inputs)
        return Batch(inputs, {name: change(target) for name, target in self.targets.items()}, change(self.mask))


def normalise(images: Tensor, pose: PoseSpec) -> Tensor:
    """Pixels (N, C, H, W) uint8 to the network's input, ``(pixel - mean) * scale``; keeps the memory format."""
    mean, scale = (torch.tensor(v, device=images.device).view(1, -1, 1, 1) for v in (pose.mean, pose.scale))
    return images.float().sub_(mean).mul_(scale)


@dataclass(frozen=True)
class Span:
    """Which batches of the sequence are loaded, and how.

    Attributes
    ----------
    batch_size : int
        Examples per batch, of all processes together.
    start, steps : int
        Number of the first batch, and number after the last one.
    pieces : int
        Pieces that a process computes its share of a batch in.
    share : (int, int)
        Number of this process, and of how many.
    workers : int
        Processes that load ahead; 0 loads in this one. The batches are the same.
    pin : bool
        Whether to put batches into page-locked memory.
    """

    batch_size: int
    start: int
    steps: int
    pieces: int = 1
    share: tuple[int, int] = (0, 1)
    workers: int = 0
    pin: bool = False


class BatchSource(Protocol):
    """Where training batches come from."""

    seed: int

    def batches(self, span: Span) -> Iterator[Batch]:
        """The batches of a span, each in its pieces."""

    def network_inputs(self, batch: Batch) -> Inputs:
        """What the network reads of a batch, on the batch's device."""


class SizedExamples(Dataset[Example | CompressError], ABC):
    """Examples by `Key`, or the error that made one impossible."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples of an epoch."""


class Steps(Sampler[list[Key]]):
    """Keys of the batches of a span: epochs in random order, one after the other without a gap.

    Each of several processes gets its share of each batch, in pieces; both numbers divide the batch size. The content
    of a batch does not depend on them.
    """

    def __init__(self, length: int, span: Span, seed: int) -> None:
        self.length, self.span, self.seed = length, span, seed

    def __len__(self) -> int:
        return (self.span.steps - self.span.start) * self.span.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        span = self.span
        number, count = span.share
        size = span.batch_size // (count * span.pieces)
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(span.start, span.steps):
            keys = []
            for position in range(step * span.batch_size, (step + 1) * span.batch_size):
                if position // self.length != epoch:
                    epoch = position // self.length
                    order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
                keys.append((epoch, int(order[position % self.length])))
            first = number * span.pieces
            yield from (keys[piece * size : (piece + 1) * size] for piece in range(first, first + span.pieces))


def collate(examples: Sequence[Example | CompressError]) -> Batch | CompressError:
    """A batch of examples, or the first error among them."""
    good: list[Example] = []
    for example in examples:
        if isinstance(example, CompressError):
            return example
        good.append(example)
    # (N, H, W, C) viewed as (N, C, H, W) is channels-last memory, without a copy.
    images = torch.from_numpy(np.stack([example.image for example in good])).permute(0, 3, 1, 2)
    targets = {name: torch.from_numpy(np.stack([e.targets[name] for e in good])) for name in good[0].targets}
    return Batch(images, targets, torch.from_numpy(np.stack([example.mask for example in good])))


def load_batches(examples: SizedExamples, seed: int, span: Span) -> Iterator[Batch]:
    """The batches of a span of the sequence that a seed determines.

    Parameters
    ----------
    examples : SizedExamples
        Where examples come from.
    seed : int
        Seed of their order.
    span : Span
        Which batches, and how they are loaded.

    Raises
    ------
    CompressError
        Whatever the data set raised.
    """
    loader: DataLoader[Example | CompressError] = DataLoader(
        examples,
        batch_sampler=Steps(len(examples), span, seed),
        num_workers=span.workers,
        collate_fn=collate,
        pin_memory=span.pin,
        worker_init_fn=_start_worker,
        # A generator of its own: the loader draws from it, and loading must not advance torch's global one.
        generator=torch.Generator(),
    )
    for batch in loader:
        if isinstance(batch, CompressError):
            raise batch
        yield batch


def _start_worker(number: int) -> None:
    """One thread a worker: the processes are the parallelism."""
    cv2.setNumThreads(0)
