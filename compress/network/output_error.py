"""Final maps: how strong they are, what of them a decoder reads, and how far two networks' maps are apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import DataError, NetworkError

#: Share of a map's peak from which on a cell is foreground: what a decoder reads.
FOREGROUND = 0.1

#: Weight of an error in the background of a map beside one in its foreground: it can still make up a person.
BACKGROUND = 0.2

#: At most so many images tell of peak and energy of the final maps.
SCALED = 32


@dataclass(frozen=True)
class MapScale:
    """Peak of one kind of final map, and the mean over images of its squared sum over the foreground.

    Where it has nothing in the foreground the sum is over everything, weighted as background: so even maps that are
    strong nearly everywhere, as those of an untrained network, have an energy.
    """

    peak: float
    energy: float


@torch.no_grad()
def map_scales(module: nn.Module, images: Sequence[Tensor]) -> dict[str, MapScale]:
    """Peak and energy of each kind of final map, over at most `SCALED` images.

    Raises
    ------
    DataError
        If no map has any energy.
    NetworkError
        If the network does not return stages of named maps.
    """
    found = []
    for image in images[:: math.ceil(len(images) / SCALED)]:
        stages = module(image)
        if not isinstance(stages, (list, tuple)) or not stages or not isinstance(stages[-1], Mapping):
            raise NetworkError("the network must return a list with one dict of named maps for each stage")
        found.append(dict(stages[-1]))
    peaks = {name: max(float(maps[name].abs().max()) for maps in found) for name in found[0]}
    energies, behind = dict.fromkeys(peaks, 0.0), dict.fromkeys(peaks, 0.0)
    for maps in found:
        for name, value in maps.items():
            energies[name] += float((value.square() * _foreground(name, maps, peaks)).sum()) / len(found)
            behind[name] += BACKGROUND**2 * float(value.square().sum()) / len(found)
    energies = {name: energy or behind[name] for name, energy in energies.items()}
    if not all(math.isfinite(x) for x in energies.values()) or not any(energies.values()):
        raise DataError(
            "the network's maps are empty or not finite on the calibration images",
            found=peaks,
            hint="Use images with people, as the network knows them",
        )
    return {name: MapScale(peaks[name], energies[name]) for name in peaks}


def map_weights(name: str, maps: Mapping[str, Tensor], scales: Mapping[str, MapScale]) -> Tensor:
    """What an error of one kind of final map weighs, (N, 1, h, w).

    1 in the foreground and `BACKGROUND` elsewhere, over the root of the map's energy; so the squared sum of a weighted
    error is relative to what the decoder reads. A kind that is always zero weighs nothing.

    Parameters
    ----------
    name : str
        The kind of map.
    maps : mapping of str to Tensor, shape (N, C, h, w)
        Final maps of all kinds.
    scales : mapping
        From `map_scales`.
    """
    near = _foreground(name, maps, {kind: scale.peak for kind, scale in scales.items()})
    energy = scales[name].energy
    return (near + BACKGROUND * (1 - near)) / math.sqrt(energy) if energy > 0 else torch.zeros_like(near)


def _foreground(name: str, maps: Mapping[str, Tensor], peaks: Mapping[str, float]) -> Tensor:
    """1 where any map is strong and in the cells around, (N, 1, h, w) at the size of the kind ``name``."""
    size = maps[name].shape[-2:]
    near = maps[name].new_zeros(len(maps[name]), 1, *size)
    for kind, value in maps.items():
        strong = (value.abs() > FOREGROUND * peaks[kind]).float()
        # A map that is strong nearly everywhere is a background: its people are where it is weak.
        strong = strong * (strong.mean(dim=(2, 3), keepdim=True) < 0.5)
        near = torch.maximum(near, functional.adaptive_max_pool2d(strong.amax(1, keepdim=True), size))
    return functional.max_pool2d(near, 3, 1, 1)


def probe(maps: Mapping[str, Tensor], scales: Mapping[str, MapScale], generator: torch.Generator) -> Tensor:
    """A sum of all final maps, each cell with a random sign and its weight: its gradients are probes of all errors."""
    total, still = torch.zeros(()), {name: value.detach() for name, value in maps.items()}
    for name, value in maps.items():
        signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
        total = total.to(value) + (signs * map_weights(name, still, scales) * value).sum()
    return total


@torch.no_grad()
def map_errors(original: nn.Module, compressed: nn.Module, images: Sequence[Tensor]) -> dict[str, float]:
    """Relative squared error of each kind of final map over all images: ``sum |y~ - y|^2 / sum |y|^2``.

    Parameters
    ----------
    original, compressed : nn.Module
        Networks in evaluation mode with maps of the same names and sizes.
    images : sequence of Tensor, shape (1, 3, H, W)
        Images as the networks read them.
    """
    lost: dict[str, float] = {}
    whole: dict[str, float] = {}
    for image in images:
        for (name, wanted), given in zip(original(image)[-1].items(), compressed(image)[-1].values(), strict=True):
            lost[name] = lost.get(name, 0.0) + float((given - wanted).square().sum())
            whole[name] = whole.get(name, 0.0) + float(wanted.square().sum())
    return {name: lost[name] / whole[name] if whole[name] else 0.0 for name in whole}
