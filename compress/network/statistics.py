"""What layers see and what the final maps feel of them, from a few images without labels.

Sums are streamed over the images in bounded memory; whole activations are never kept. The *sensitivity* of a layer is
the mean of g g' over output positions, g being the gradient of the final maps' weighted squared change by the layer's
output: the output factor of a Gauss-Newton approximation as in Martens and Grosse, "Optimizing neural networks with
Kronecker-factored approximate curvature" (2015, arXiv:1503.05671), estimated with random signs on the network's own
maps. The positions at which `compress.network.moments` looks at a layer are drawn where they matter: one counts by the
squared gradient there, so that a wall behind a person does not outweigh the person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from compress.errors import DataError
from compress.network.output_error import map_scales, probe
from compress.network.recording import columns, recorded

#: Multiply-adds of one covariance over all images, about.
WORK = 1.5e11

#: Outputs at drawn positions are kept if all of them take at most so many bytes.
KEPT = 2**30

#: Share of the mean weight that every position has at least.
FLOOR = 0.02

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Places:
    """Output positions of one call of a layer on one image, drawn by what the final maps feel of them.

    Attributes
    ----------
    index : Tensor, shape (n,), int32
        Positions in row order.
    weight : Tensor, shape (n,)
        What each stands for; the expectation of a weighted sum is that over all positions.
    target : Tensor, shape (T, n), or None
        What the layer gave there, if that was kept: it saves running the original network again.
    """

    index: Tensor
    weight: Tensor
    target: Tensor | None = None


@dataclass(frozen=True)
class Sensitivity:
    """What the final maps feel of a layer's output.

    Attributes
    ----------
    outputs : Tensor, shape (T, T), float64
        Sum over positions of g g', mean over images and probes. With it ``tr(outputs dW G dW')`` estimates the
        relative squared error of the final maps (foreground first) after a change dW of the kernel.
    places : tuple of tuple of Places
        For each image and each call.
    """

    outputs: Tensor
    places: tuple[tuple[Places, ...], ...]


@dataclass(frozen=True)
class Calibration:
    """Images and what they tell of a network.

    Attributes
    ----------
    images : sequence of Tensor, shape (1, 3, H, W)
        As the network reads them.
    sensitivities : mapping of str to Sensitivity
        By layer, in the order in which layers run.
    """

    images: Sequence[Tensor]
    sensitivities: Mapping[str, Sensitivity]


@dataclass(frozen=True)
class Change:
    """A change of a layer's weight (T, D) and bias (T,)."""

    weight: Tensor
    bias: Tensor


def measure_sensitivity(
    module: nn.Module,
    images: Sequence[Tensor],
    names: Sequence[str],
    *,
    probes: int = 2,
    positions: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Sensitivity]:
    """The sensitivity of layers, and the positions at which their moments are to be taken.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode, its last stage giving named maps; its parameters get no gradients.
    images : sequence of Tensor, shape (1, 3, H, W)
        Calibration images as the network reads them; their sizes may differ.
    names : sequence of str
        Ungrouped convolutions and linear layers.
    probes : int
        Random sign vectors an image.
    positions : int
        Positions drawn for each call of a layer and image; fewer where patches are so long that their covariance would
        take minutes, but never fewer than a patch has values, in all.
    seed : int
        Of probes and positions; equal seeds give equal results.

    Returns
    -------
    dict
        In the order in which the layers first run; layers that are never called are left out.

    Raises
    ------
    DataError
        If there are fewer than two different images, or the final maps are empty on all of them.
    """
    _refuse_alike(images)
    if not names:
        return {}
    scales = map_scales(module, images)
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, Tensor] = {}
    places: dict[str, list[tuple[Places, ...]]] = {}
    kept = 0
    for number, image in enumerate(images):
        with recorded(module, names, outputs=True) as calls, torch.enable_grad():
            maps = module(image.clone().requires_grad_())[-1]
        outputs = [(name, call.output) for name, made in calls.items() for call in made]
        weights = [torch.zeros(1)] * len(outputs)
        for turn in range(probes):
            signal = probe(maps, scales, generator)
            gradients = torch.autograd.grad(
                signal, [x for _, x in outputs], retain_graph=turn < probes - 1, allow_unused=True
            )
            for place, ((name, output), found) in enumerate(zip(outputs, gradients, strict=True)):
                gradient = columns(torch.zeros_like(output) if found is None else found, module.get_submodule(name))
                if name not in sums:
                    sums[name] = gradient.new_zeros(len(gradient), len(gradient))
                sums[name].addmm_(gradient, gradient.T)
                weights[place] = weights[place] + gradient.square().sum(0)
        drawn: dict[str, list[Places]] = {}
        for (name, output), weight in zip(outputs, weights, strict=True):
            layer = module.get_submodule(name)
            looked = _draw(weight.double().cpu(), _affordable(layer, positions, len(images)), generator)
            given = columns(output.detach(), layer)
            kept += given[:, :1].nbytes * len(looked.index)
            if kept <= KEPT:
                looked = replace(looked, target=given.index_select(1, looked.index.to(given.device)))
            drawn.setdefault(name, []).append(looked)
        for name, calls_places in drawn.items():
            places.setdefault(name, []).append(tuple(calls_places))
        if progress is not None:
            progress(number + 1, len(images))
    total = len(images) * probes
    if kept > KEPT:  # of a part of the images they save nothing
        places = {name: [_forgotten(calls) for calls in listed] for name, listed in places.items()}
    return {name: Sensitivity(value.double() / total, tuple(places[name])) for name, value in sums.items()}


def _forgotten(calls: Sequence[Places]) -> tuple[Places, ...]:
    return tuple(replace(place, target=None) for place in calls)


def directional_errors(
    module: nn.Module,
    images: Sequence[Tensor],
    changes: Mapping[str, Sequence[Change]],
    *,
    probes: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, list[float]]:
    """Relative squared error of the final maps, to first order, for changes of single layers.

    One backward pass tells of all changes of all layers: the derivative of a probed map sum in the direction of a
    change is an inner product of gradient and change. Unlike a prediction from `Sensitivity` and `Moments` this knows
    how errors at different positions and of different channels add up.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode.
    images : sequence of Tensor, shape (1, 3, H, W)
        Calibration images.
    changes : mapping
        For each layer the changes to judge.
    probes : int
        Random sign vectors an image.
    seed : int
        Of the probes.
    """
    names = [name for name in changes if changes[name]]
    if not names:
        return {name: [] for name in changes}
    scales = map_scales(module, images)
    generator = torch.Generator().manual_seed(seed)
    sums = {name: [0.0] * len(listed) for name, listed in changes.items()}
    weights = [module.get_submodule(name).get_parameter("weight") for name in names]
    frozen = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_()
        for number, image in enumerate(images):
            with recorded(module, names, outputs=True) as calls, torch.enable_grad():
                maps = module(image)[-1]
            outputs = [call.output for name in names for call in calls[name]]
            owners = [name for name in names for _ in calls[name]]
            for turn in range(probes):
                found = torch.autograd.grad(
                    probe(maps, scales, generator), weights + outputs, retain_graph=turn < probes - 1,
                    allow_unused=True,
                )  # fmt: skip
                shifts: dict[str, Tensor] = {}
                for name, gradient in zip(owners, found[len(weights) :], strict=True):
                    if gradient is not None:
                        shift = columns(gradient, module.get_submodule(name)).sum(1)
                        shifts[name] = shifts[name] + shift if name in shifts else shift
                for name, gradient in zip(names, found[: len(weights)], strict=True):
                    if gradient is None:
                        continue
                    for place, change in enumerate(changes[name]):
                        value = torch.vdot(gradient.flatten(), change.weight.to(gradient).flatten())
                        value = value + torch.vdot(shifts[name], change.bias.to(gradient))
                        sums[name][place] += float(value) ** 2
            if progress is not None:
                progress(number + 1, len(images))
    finally:
        for weight, grad in zip(weights, frozen, strict=True):
            weight.requires_grad_(grad)
    return {name: [value / (len(images) * probes) for value in values] for name, values in sums.items()}


def _affordable(layer: nn.Module, positions: int, images: int) -> int:
    """How many positions of an image are looked at: see `measure_sensitivity`."""
    length = layer.get_parameter("weight")[0].numel()
    return min(positions, math.ceil(max(length, WORK / length**2) / images))


def _draw(weight: Tensor, count: int, generator: torch.Generator) -> Places:
    """About ``count`` positions by systematic sampling, each in proportion to its weight but at most once."""
    mean = weight.mean()
    if mean <= 0:
        weight, mean = torch.ones_like(weight), torch.ones(())
    weight = weight / mean + FLOOR
    chance = (weight * (count / weight.sum())).clamp_max(1)
    for _ in range(5):  # what certain positions leave over goes to the others
        sure = chance >= 1
        left = count - int(sure.sum())
        if left <= 0 or bool(sure.all()):
            break
        chance = torch.where(sure, 1.0, (weight * (left / weight[~sure].sum())).clamp_max(1))
    ends = chance.cumsum(0) + torch.rand(1, generator=generator, dtype=torch.float64)
    starts = torch.cat([ends[:1] - chance[:1], ends[:-1]])
    index = torch.nonzero(ends.floor() > starts.floor()).flatten()
    return Places(index.int(), (weight / chance)[index].float())


def _refuse_alike(images: Sequence[Tensor]) -> None:
    different = {(tuple(image.shape), float(image.double().sum())) for image in images}
    if len(different) < 2:
        raise DataError(
            "calibration needs at least two different images",
            found=f"{len(images)} images, {len(different)} of them different",
            hint="Use a few dozen images with people",
        )
