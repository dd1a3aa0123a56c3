"""Final outputs: how strong they are, which of their cells a decoder reads, and the error between two networks.

Outputs of shape (N, C, h, w) are maps: errors count most where some map is strong, in the foreground. Other floating
outputs count uniformly; integer and boolean ones are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import DataError
from compress.network.inputs import Inputs
from compress.network.outputs import BY_STRUCTURE, Outputs, Tensors, run

#: A map cell belongs to the foreground from this share of the map's peak on: roughly what a decoder reads.
FOREGROUND = 0.1

#: Weight of a background error relative to a foreground one: a strong enough one can still become a person.
BACKGROUND = 0.2

#: Peak and energy of the outputs are taken from at most this many images.
SCALE_IMAGES = 32


@dataclass(frozen=True)
class OutputScale:
    """Peak of a final output, and its squared sum over the foreground, averaged over images.

    Without foreground the sum runs over all cells with background weight, so that maps which are strong nearly
    everywhere, as those of an untrained network, still have an energy. Outputs that are no maps have no background.
    """

    peak: float
    energy: float


def floating(tensors: Mapping[str, Tensor]) -> Tensors:
    """The floating outputs: those that have an error."""
    return {name: value for name, value in tensors.items() if value.is_floating_point()}


@torch.no_grad()
def output_scales(
    module: nn.Module, images: Sequence[Inputs], outputs: Outputs = BY_STRUCTURE
) -> dict[str, OutputScale]:
    """Peak and energy of each floating final output, over at most `SCALE_IMAGES` images.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode.
    images : sequence of Inputs
        What the network reads; tensors of shape (1, C, H, W) for a network of one image.
    outputs : Outputs
        How its return value is read.

    Raises
    ------
    DataError
        If no output has any energy, or one is not finite.
    """
    results = [floating(run(module, image, outputs)) for image in images[:: math.ceil(len(images) / SCALE_IMAGES)]]
    peaks = {name: max(float(result[name].abs().max()) for result in results) for name in results[0]}
    energies, background = dict.fromkeys(peaks, 0.0), dict.fromkeys(peaks, 0.0)
    for result in results:
        for name, value in result.items():
            energies[name] += float((value.square() * _foreground(name, result, peaks)).sum()) / len(results)
            background[name] += BACKGROUND**2 * float(value.square().sum()) / len(results)
    energies = {name: energy or background[name] for name, energy in energies.items()}
    if not all(math.isfinite(x) for x in energies.values()) or not any(energies.values()):
        raise DataError(
            "the network's outputs are zero or not finite on the calibration images",
            found=peaks or "no floating output",
            hint="Use images like those that the network was trained on",
        )
    return {name: OutputScale(peaks[name], energies[name]) for name in peaks}


def output_weights(name: str, tensors: Mapping[str, Tensor], scales: Mapping[str, OutputScale]) -> Tensor:
    """Weight of an error in each cell of an output, broadcastable to it: (N, 1, h, w) for maps, else a scalar.

    1 in the foreground and `BACKGROUND` elsewhere, over the root of the output's energy: the squared sum of a weighted
    error is relative to what the decoder reads. An output that is always zero has weight 0.

    Parameters
    ----------
    name : str
        The output.
    tensors : mapping of str to Tensor
        All floating final outputs.
    scales : mapping
        From `output_scales`.
    """
    near = _foreground(name, tensors, {kind: scale.peak for kind, scale in scales.items()})
    energy = scales[name].energy
    return (near + BACKGROUND * (1 - near)) / math.sqrt(energy) if energy > 0 else torch.zeros_like(near)


def _foreground(name: str, tensors: Mapping[str, Tensor], peaks: Mapping[str, float]) -> Tensor:
    """1 where any map is strong and in the neighbouring cells, (N, 1, h, w) at the size of ``name``; 1 if no map."""
    if tensors[name].dim() != 4:
        return tensors[name].new_ones(())
    size = tensors[name].shape[-2:]
    near = tensors[name].new_zeros(len(tensors[name]), 1, *size)
    for kind, value in tensors.items():
        if value.dim() != 4 or len(value) != len(near):
            continue
        strong = (value.abs() > FOREGROUND * peaks[kind]).float()
        # A map that is strong nearly everywhere is a background map: people are where it is weak.
        strong = strong * (strong.mean(dim=(2, 3), keepdim=True) < 0.5)
        near = torch.maximum(near, functional.adaptive_max_pool2d(strong.amax(1, keepdim=True), size))
    return functional.max_pool2d(near, 3, 1, 1)


def probe(tensors: Mapping[str, Tensor], scales: Mapping[str, OutputScale], generator: torch.Generator) -> Tensor:
    """A weighted sum of all floating final outputs with random signs; its gradients probe the whole error."""
    values = floating(tensors)
    total, fixed = torch.zeros(()), {name: value.detach() for name, value in values.items()}
    for name, value in values.items():
        signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
        total = total.to(value) + (signs * output_weights(name, fixed, scales) * value).sum()
    return total


@torch.no_grad()
def output_errors(
    original: nn.Module, compressed: nn.Module, images: Sequence[Inputs], outputs: Outputs = BY_STRUCTURE
) -> dict[str, float]:
    """Relative squared error of each floating final output over all images: ``sum |y~ - y|^2 / sum |y|^2``.

    Parameters
    ----------
    original, compressed : nn.Module
        Networks in evaluation mode with outputs of the same names and shapes.
    images : sequence of Inputs
        What both read.
    outputs : Outputs
        How the return value of both is read.
    """
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for image in images:
        expected, given = run(original, image, outputs), run(compressed, image, outputs)
        for name, value in floating(expected).items():
            lost[name] = lost.get(name, 0.0) + float((given[name] - value).square().sum())
            whole[name] = whole.get(name, 0.0) + float(value.square().sum())
    return {name: lost[name] / whole[name] if whole[name] else 0.0 for name in whole}
