"""Block-wise reconstruction: blocks of a compressed network are trained to match the original's output, without labels.

After BRECQ (Li et al., 2021, arXiv:2102.05426, section 3, equation 10), which reconstructs quantised blocks one after
another: a block's input comes from the compressed network before it, its target from the original, and errors are
weighted by the sensitivity of the final outputs. Blocks are small and their activations are cached, so that thousands
of steps take the time of a few steps of the whole network.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import DataError, UsageError
from compress.forms.registry import is_factorized
from compress.network.duplicate import duplicate
from compress.network.inputs import Inputs, call, tracked
from compress.network.output_error import output_scales, probe
from compress.network.outputs import BY_STRUCTURE, Outputs
from compress.network.recording import recorded, run_recorded
from compress.training.norms import NORMS

#: Maximum number of factorized layers in a block: enough for one to compensate for the errors of another.
MAX_LAYERS = 4

#: Maximum size of the cached activations of a block.
MAX_BYTES = 2 * 2**30

#: One image in this many is held out of training, to judge whether a block improved.
HELD_OUT_EVERY = 8

#: Smallest sensitivity of a position or channel, as a share of the mean.
MIN_SENSITIVITY = 0.05

TINY = 1e-30


@dataclass(frozen=True)
class ReconstructOptions:
    """How blocks are trained.

    Attributes
    ----------
    steps : int
        Optimizer steps for each block.
    batch_size : int
        Images per step.
    learning_rate : float
        Initial rate, relative to the root mean square of each weight tensor; it decays to 0 as a cosine.
    seed : int
        Seed of batches and probes.

    Raises
    ------
    UsageError
        If steps or batch size are not positive.
    """

    steps: int = 200
    batch_size: int = 4
    learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size) < 1:
            raise UsageError("steps and batch size must be positive", found=(self.steps, self.batch_size))


@dataclass(frozen=True)
class BlockResult:
    """A block's relative squared error on held-out images, before and after."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Reconstructed:
    """The network, and its reconstructed blocks in running order."""

    module: nn.Module
    blocks: tuple[BlockResult, ...]


@dataclass(frozen=True)
class _Example:
    """One image: a block's input, its target output, and error weights by position and by channel."""

    given: Tensor
    target: Tensor
    positions: Tensor
    channels: Tensor

    def errors(self, block: nn.Module) -> tuple[Tensor, Tensor]:
        """Weighted squared sums of the block's error and of the target."""
        weight = self.positions * self.channels
        return (weight * (block(self.given) - self.target).square()).sum(), (weight * self.target.square()).sum()


def reconstruct(
    module: nn.Module,
    original: nn.Module,
    images: Sequence[Inputs],
    options: ReconstructOptions | None = None,
    *,
    outputs: Outputs = BY_STRUCTURE,
    progress: Callable[[str, int, int], None] | None = None,
) -> Reconstructed:
    """Train the blocks of a compressed network one after another.

    Parameters
    ----------
    module : nn.Module
        The compressed network in evaluation mode; it is not changed. Batch normalisations keep their statistics.
    original : nn.Module
        The network it was made from, whose modules have the same names.
    images : sequence of Inputs
        Network inputs of a batch of one, such as images (1, C, H, W); labels are not needed.
    options : ReconstructOptions, optional
        How to train.
    outputs : Outputs
        How the original's return value is read.
    progress : callable, optional
        Called as ``progress(block, blocks done, all blocks)``.

    Raises
    ------
    DataError
        If there are fewer than two images.
    """
    options = options or ReconstructOptions()
    if len(images) < 2:
        raise DataError("reconstruction needs at least two images", found=len(images))
    student = duplicate(module).eval().requires_grad_(False)
    teacher = duplicate(original).eval().requires_grad_(False)
    names = blocks_of(student, teacher, images[0])
    if not names:
        return Reconstructed(duplicate(module), ())
    weights = _weights(teacher, outputs, names, images, options.seed)
    results = []
    for done, name in enumerate(names):
        examples = _examples(student, teacher, name, images, weights[name])
        results.append(_reconstruct_block(student, name, examples, options))
        if progress is not None:
            progress(name, done + 1, len(names))
    for mine, theirs in zip(student.parameters(), module.parameters(), strict=True):
        mine.requires_grad_(theirs.requires_grad)
    return Reconstructed(student.train(module.training), tuple(results))


def blocks_of(module: nn.Module, original: nn.Module, inputs: Inputs) -> tuple[str, ...]:
    """The blocks to reconstruct, in running order.

    A block is a module as large as possible with at most `MAX_LAYERS` factorized layers, which maps one tensor
    (N, C, h, w) to another, runs once, and exists in the original under the same name. Other modules are split into
    their children; a factorized layer that does not qualify by itself is left out.
    """
    runs: Counter[str] = Counter()
    plain: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(_: nn.Module, given: Any, output: Any) -> None:
            runs[name] += 1
            if len(given) == 1 and all(isinstance(x, Tensor) and x.dim() == 4 for x in (given[0], output)):
                plain.add(name)

        return record

    handles = [part.register_forward_hook(hook(name)) for name, part in module.named_modules() if name]
    try:
        with torch.no_grad():
            call(module, inputs)
    finally:
        for handle in handles:
            handle.remove()
    theirs = dict(original.named_modules())
    eligible = {name for name in plain if runs[name] == 1 and name in theirs}
    # Modules return in running order, a container after its children.
    order = {name: position for position, name in enumerate(runs)}
    return tuple(sorted(_largest_blocks(module, "", eligible), key=lambda name: order[name]))


def _largest_blocks(module: nn.Module, prefix: str, eligible: set[str]) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        count = sum(is_factorized(part) for part in child.modules())
        if count and path in eligible and (count <= MAX_LAYERS or is_factorized(child)):
            yield path
        elif count and not is_factorized(child):
            yield from _largest_blocks(child, f"{path}.", eligible)


def _reconstruct_block(
    student: nn.Module, name: str, examples: Sequence[_Example], options: ReconstructOptions
) -> BlockResult:
    """Train one block in place; undone if its error on the held-out images grows."""
    block = student.get_submodule(name)
    held_out = examples[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY] or examples
    trained = [example for number, example in enumerate(examples) if number % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
    before = _error(block, held_out)
    saved = copy.deepcopy(block.state_dict())
    parameters = [x for part in block.modules() if not isinstance(part, NORMS) for x in part.parameters(recurse=False)]
    try:
        for part in parameters:
            part.requires_grad_(True)
        _train(block, parameters, trained, options)
    finally:
        for part in parameters:
            part.requires_grad_(False)
    after = _error(block, held_out)
    if not after < before:
        block.load_state_dict(saved)
        after = before
    return BlockResult(name, before, after)


def _train(
    block: nn.Module, parameters: Sequence[nn.Parameter], examples: Sequence[_Example], options: ReconstructOptions
) -> None:
    scales = [max(float(x.detach().square().mean().sqrt()), TINY) for x in parameters]
    optimizer = torch.optim.Adam([{"params": [x]} for x in parameters])
    generator = torch.Generator().manual_seed(options.seed)
    for step in range(options.steps):
        rate = options.learning_rate * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        for group, scale in zip(optimizer.param_groups, scales, strict=True):
            group["lr"] = rate * scale
        optimizer.zero_grad(set_to_none=True)
        for index in torch.randperm(len(examples), generator=generator)[: options.batch_size].tolist():
            error, energy = examples[index].errors(block)
            (error / (options.batch_size * max(float(energy), TINY))).backward()
        optimizer.step()


def _examples(
    student: nn.Module,
    teacher: nn.Module,
    name: str,
    images: Sequence[Inputs],
    weights: Sequence[tuple[Tensor, Tensor]],
) -> list[_Example]:
    """A block's input, target and error weights for each image, up to `MAX_BYTES`."""
    examples: list[_Example] = []
    size = 0
    for image, (positions, channels) in zip(images, weights, strict=True):
        with torch.no_grad():
            with recorded(student, [name], inputs=True, until={name: 1}) as ours:
                run_recorded(student, image)
            with recorded(teacher, [name], outputs=True, until={name: 1}) as theirs:
                run_recorded(teacher, image)
        examples.append(_Example(ours[name][0].input, theirs[name][0].output, positions, channels))
        size += examples[-1].given.nbytes + examples[-1].target.nbytes
        if size > MAX_BYTES and len(examples) >= 2:
            break
    return examples


def _weights(
    teacher: nn.Module, outputs: Outputs, names: Sequence[str], images: Sequence[Inputs], seed: int
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Error weights of each block, by position (1, 1, h, w) for each image and by channel (1, C, 1, 1) for all."""
    scales = output_scales(teacher, images, outputs)
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    for image in images:
        with recorded(teacher, names, outputs=True) as calls, torch.enable_grad():
            signal = probe(outputs.final(call(teacher, tracked(image))), scales, generator)
        activations = [calls[name][0].output for name in names]
        gradients = torch.autograd.grad(signal, activations, allow_unused=True)
        for name, activation, gradient in zip(names, activations, gradients, strict=True):
            # Errors of a block that no final output depends on are weighted uniformly.
            square = torch.ones_like(activation) if gradient is None else gradient.square()
            weights[name].append((square.mean(1, keepdim=True), square.mean((2, 3), keepdim=True)))
    return {name: _relative(pairs) for name, pairs in weights.items()}


def _relative(weights: Sequence[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    """Weights relative to their means, plus `MIN_SENSITIVITY`; those of channels are averaged over the images."""
    mean = torch.stack([positions.mean() for positions, _ in weights]).mean().clamp_min(TINY)
    channels = torch.stack([channels for _, channels in weights]).mean(0)
    channels = channels / channels.mean().clamp_min(TINY) + MIN_SENSITIVITY
    return [(positions / mean + MIN_SENSITIVITY, channels) for positions, _ in weights]


@torch.no_grad()
def _error(block: nn.Module, examples: Sequence[_Example]) -> float:
    error, energy = (sum(map(float, sums)) for sums in zip(*(x.errors(block) for x in examples), strict=True))
    return error / max(energy, TINY)
