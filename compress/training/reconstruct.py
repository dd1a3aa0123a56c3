"""Blocks of a compressed network trained to give what the original's give, one after another, without labels.

After Li et al. (2021, arXiv:2102.05426, section 3, equation 10), who reconstruct quantised blocks: a block reads what
the compressed network before it gives, should give what the original gives there, and errors count as much as the
final maps are sensitive to them. Each block is small and its activations are kept, so that thousands of steps take the
time of a few whole ones.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import DataError, UsageError
from compress.network.duplicate import duplicate
from compress.network.output_error import output_scales, probe
from compress.network.recording import recorded, run_recorded
from compress.surgery.factorized import FACTORIZED

#: Factorized layers in a block, at most: enough that errors of one can be made good by the next.
LAYERS = 4

#: Cached activations of a block, at most.
MOST_BYTES = 2 * 2**30

#: Every so many images one is left out of training, and tells whether a block got better.
HELD = 8

#: The sensitivity of a place or channel is at least this share of the mean.
FLOOR = 0.05

TINY = 1e-30


@dataclass(frozen=True)
class ReconstructOptions:
    """How blocks are trained.

    Attributes
    ----------
    steps : int
        Of each block.
    batch_size : int
        Images a step.
    learning_rate : float
        At the start, relative to each weight tensor's root mean square; it falls to 0 as a cosine.
    seed : int
        Of batches and probes.
    """

    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class BlockResult:
    """What became of a block: its relative squared error on images that were left out, before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Reconstructed:
    """The network with its reconstructed blocks, in the order in which they ran."""

    module: nn.Module
    blocks: tuple[BlockResult, ...]


@dataclass(frozen=True)
class _Row:
    """Of one image: what a block reads, what it should give, and what errors weigh by place and by channel."""

    given: Tensor
    wanted: Tensor
    places: Tensor
    channels: Tensor

    def errors(self, block: nn.Module) -> tuple[Tensor, Tensor]:
        """Weighted squared sums of a block's error and of what it should give."""
        weight = self.places * self.channels
        return (weight * (block(self.given) - self.wanted).square()).sum(), (weight * self.wanted.square()).sum()


def reconstruct(
    module: nn.Module,
    original: nn.Module,
    images: Sequence[Tensor],
    options: ReconstructOptions | None = None,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> Reconstructed:
    """Train the blocks of a compressed network one after another.

    Parameters
    ----------
    module : nn.Module
        The compressed network in evaluation mode; it stays as it was. Batch normalisations keep their statistics.
    original : nn.Module
        The network it was made from, whose modules have the same names.
    images : sequence of Tensor, shape (1, 3, H, W)
        Images as the networks read them; labels are not needed.
    options : ReconstructOptions, optional
        How to train.
    progress : callable, optional
        Called as ``progress(block, blocks done, all blocks)``.

    Raises
    ------
    DataError
        If there are fewer than two images.
    UsageError
        If steps or batch size are no positive numbers.
    """
    options = options or ReconstructOptions()
    if len(images) < 2:
        raise DataError("blocks are reconstructed on at least two images", found=len(images))
    if min(options.steps, options.batch_size) < 1:
        raise UsageError("steps and batch size must be positive", found=(options.steps, options.batch_size))
    student = duplicate(module).eval().requires_grad_(False)
    teacher = duplicate(original).eval().requires_grad_(False)
    names = blocks_of(student, teacher, images[0])
    if not names:
        return Reconstructed(duplicate(module), ())
    weights = _weights(teacher, names, images, options.seed)
    results = []
    for done, name in enumerate(names):
        results.append(_one(student, name, _activations(student, teacher, name, images, weights[name]), options))
        if progress is not None:
            progress(name, done + 1, len(names))
    for mine, theirs in zip(student.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return Reconstructed(student.train(module.training), tuple(results))


def blocks_of(module: nn.Module, original: nn.Module, image: Tensor) -> tuple[str, ...]:
    """The largest modules with factorized layers, few of them, that read a tensor and give one, in running order.

    Modules that run more than once, or give what the original's do not give, are taken apart; a factorized layer that
    can't be compared at all is left out.
    """
    calls: dict[str, list[Any]] = {}
    plain: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def remember(_: nn.Module, given: Any, output: Any) -> None:
            calls.setdefault(name, []).append(None)
            if len(given) == 1 and all(isinstance(x, Tensor) and x.dim() == 4 for x in (given[0], output)):
                plain.add(name)

        return remember

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name]
    try:
        with torch.no_grad():
            module(image)
    finally:
        for handle in handles:
            handle.remove()
    theirs = dict(original.named_modules())
    fit = {name for name in plain if len(calls[name]) == 1 and name in theirs}
    # Modules end in the order in which they ran, and one that holds others ends after them.
    order = {name: place for place, name in enumerate(calls)}
    return tuple(sorted(_choose(module, "", fit), key=lambda name: order[name]))


def _choose(module: nn.Module, prefix: str, fit: set[str]) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        count = sum(isinstance(part, FACTORIZED) for part in child.modules())
        if count and path in fit and (count <= LAYERS or isinstance(child, FACTORIZED)):
            yield path
        elif count and not isinstance(child, FACTORIZED):
            yield from _choose(child, f"{path}.", fit)


def _one(student: nn.Module, name: str, rows: Sequence[_Row], options: ReconstructOptions) -> BlockResult:
    """Train one block in place; it stays as it was if that makes it worse on images that were left out."""
    block = student.get_submodule(name)
    held = rows[HELD - 1 :: HELD] or rows
    trained = [row for place, row in enumerate(rows) if place % HELD != HELD - 1]
    before = _error(block, held)
    saved = copy.deepcopy(block.state_dict())
    parameters = [x for part in block.modules() if not _is_norm(part) for x in part.parameters(recurse=False)]
    try:
        for part in parameters:
            part.requires_grad_(True)
        _train(block, parameters, trained, options)
    finally:
        for part in parameters:
            part.requires_grad_(False)
    after = _error(block, held)
    if not after < before:
        block.load_state_dict(saved)
        after = before
    return BlockResult(name, before, after)


def _train(
    block: nn.Module, parameters: Sequence[nn.Parameter], rows: Sequence[_Row], options: ReconstructOptions
) -> None:
    scales = [max(float(x.detach().square().mean().sqrt()), TINY) for x in parameters]
    optimizer = torch.optim.Adam([{"params": [x]} for x in parameters])
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(options.steps):
        rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        optimizer.zero_grad(set_to_none=True)
        for place in torch.randperm(len(rows), generator=generator)[: options.batch_size].tolist():
            lost, whole = rows[place].errors(block)
            (lost / (options.batch_size * max(float(whole), TINY))).backward()
        optimizer.step()


def _activations(
    student: nn.Module,
    teacher: nn.Module,
    name: str,
    images: Sequence[Tensor],
    weights: Sequence[tuple[Tensor, Tensor]],
) -> list[_Row]:
    """What the block reads, what it should give, and what errors of that weigh, a row for each image."""
    rows: list[_Row] = []
    size = 0
    for image, (places, channels) in zip(images, weights, strict=True):
        with torch.no_grad():
            with recorded(student, [name], inputs=True, until={name: 1}) as mine:
                run_recorded(student, image)
            with recorded(teacher, [name], outputs=True, until={name: 1}) as theirs:
                run_recorded(teacher, image)
        rows.append(_Row(mine[name][0].input, theirs[name][0].output, places, channels))
        size += rows[-1].given.nbytes + rows[-1].wanted.nbytes
        if size > MOST_BYTES and len(rows) >= 2:
            break
    return rows


def _weights(
    teacher: nn.Module, names: Sequence[str], images: Sequence[Tensor], seed: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What errors of blocks weigh, by place (1, 1, h, w) of each image and by channel (1, C, 1, 1) of all."""
    scales = output_scales(teacher, images)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for image in images:
        with recorded(teacher, names, outputs=True) as calls, torch.enable_grad():
            signal = probe(teacher(image.clone().requires_grad_())[-1], scales, generator)
        outputs = [calls[name][0].output for name in names]
        slopes = torch.autograd.grad(signal, outputs, allow_unused=True)
        for name, output, slope in zip(names, outputs, slopes, strict=True):
            # Errors of a block that final maps do not depend on count alike everywhere.
            square = torch.ones_like(output) if slope is None else slope.square()
            found[name].append((square.mean(1, keepdim=True), square.mean((2, 3), keepdim=True)))
    return {name: _evened(rows) for name, rows in found.items()}


def _evened(rows: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Weights relative to their means, none below `FLOOR`; those of channels are of all images."""
    mean = torch.stack([places.mean() for places, _ in rows]).mean().clamp_min(TINY)
    channels = torch.stack([channels for _, channels in rows]).mean(0)
    channels = channels / channels.mean().clamp_min(TINY) + FLOOR
    return [(places / mean + FLOOR, channels) for places, _ in rows]


@torch.no_grad()
def _error(block: nn.Module, rows: Sequence[_Row]) -> float:
    lost, whole = (sum(map(float, found)) for found in zip(*(row.errors(block) for row in rows), strict=True))
    return lost / max(whole, TINY)


def _is_norm(part: nn.Module) -> bool:
    return isinstance(part, nn.modules.batchnorm._BatchNorm)
