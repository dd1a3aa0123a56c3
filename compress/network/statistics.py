"""Sensitivity of the final outputs to each layer, measured on a few unlabelled images.

Sums are streamed over the images in bounded memory; whole activations are never kept. The *sensitivity* of a layer is
the mean of g g' over output positions, g being the gradient of the weighted squared error of the final outputs with
respect to the layer's output: the output factor of a Gauss-Newton approximation as in Martens and Grosse, "Optimizing
neural networks with Kronecker-factored approximate curvature" (2015, arXiv:1503.05671), estimated with random signs on
the network's own outputs. The positions at which `compress.network.moments` samples a layer are drawn in proportion to
the squared gradient there, so that a wall behind a person does not outweigh the person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from compress.errors import DataError, NetworkError
from compress.network.inputs import Inputs, call, tracked
from compress.network.output_error import OutputScale, output_scales, probe
from compress.network.outputs import BY_STRUCTURE, Outputs
from compress.network.recording import Call, columns, recorded

#: Approximate multiply-adds that the covariance of one layer may take over all images.
COVARIANCE_MACS = 1.5e11

#: Outputs at sampled positions are kept if together they take at most this many bytes.
TARGET_BYTES = 2**30

#: Least weight of a position, as a share of the mean weight.
WEIGHT_FLOOR = 0.02

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class SampledPositions:
    """Output positions of one call of a layer on one image, drawn by the sensitivity there.

    Attributes
    ----------
    index : Tensor, shape (n,), int32
        Positions in row order.
    weight : Tensor, shape (n,)
        Weight of each; the expectation of a weighted sum is the sum over all positions.
    target : Tensor, shape (T, n), or None
        Output of the layer there, if it was kept: then the original network need not run again.
    """

    index: Tensor
    weight: Tensor
    target: Tensor | None = None


@dataclass(frozen=True)
class Sensitivity:
    """Sensitivity of the final outputs to a layer's output.

    Attributes
    ----------
    outputs : Tensor, shape (T, T), float64
        Sum over positions of g g', mean over images and probes. With it ``tr(outputs dW G dW')`` estimates the
        relative squared error of the final outputs (foreground first) after a change dW of the kernel.
    positions : tuple of tuple of SampledPositions
        For each image and each call.
    """

    outputs: Tensor
    positions: tuple[tuple[SampledPositions, ...], ...]


@dataclass(frozen=True)
class Calibration:
    """Calibration images and the sensitivities measured on them.

    Attributes
    ----------
    images : sequence of Inputs
        What the network reads, of batch size 1.
    sensitivities : mapping of str to Sensitivity
        By layer, in the order in which layers run.
    outputs : Outputs
        How the network's return value is read.
    """

    images: Sequence[Inputs]
    sensitivities: Mapping[str, Sensitivity]
    outputs: Outputs = BY_STRUCTURE


@dataclass(frozen=True)
class Change:
    """A change of a layer's weight (T, D) and bias (T,)."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True)
class Sampling:
    """How sensitivities are estimated.

    Attributes
    ----------
    probes : int
        Random sign vectors for each image.
    positions : int
        Positions drawn for each call of a layer and image; fewer where patches are so long that their covariance would
        take minutes, but in total never fewer than a patch has values.
    seed : int
        Of probes and positions; equal seeds give equal results.
    """

    probes: int = 2
    positions: int = 512
    seed: int = 0


@dataclass
class _Sums:
    """Sums of g g' and sampled positions by layer, filled one image after the other."""

    squares: dict[str, Tensor] = field(default_factory=dict)
    positions: dict[str, list[tuple[SampledPositions, ...]]] = field(default_factory=dict)
    target_bytes: int = 0


def measure_sensitivity(
    module: nn.Module,
    images: Sequence[Inputs],
    names: Sequence[str],
    *,
    outputs: Outputs = BY_STRUCTURE,
    sampling: Sampling | None = None,
    progress: OnProgress | None = None,
) -> dict[str, Sensitivity]:
    """The sensitivity of layers, and the positions at which their moments are to be sampled.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode; its parameters get no gradients.
    images : sequence of Inputs
        Calibration images as the network reads them; their sizes may differ.
    names : sequence of str
        Ungrouped convolutions and linear layers.
    outputs : Outputs
        How the network's return value is read.
    sampling : Sampling, optional
        Number of probes and positions, and the seed.
    progress : callable, optional
        Called as ``progress(images done, all images)``.

    Returns
    -------
    dict
        In the order in which the layers first run; layers that are never called are left out.

    Raises
    ------
    DataError
        If there are fewer than two different images, or the final outputs are zero on all of them.
    NetworkError
        If no gradient reaches the layers.
    """
    _refuse_alike(images)
    if not names:
        return {}
    sampling = sampling or Sampling()
    scales = output_scales(module, images, outputs)
    generator = torch.Generator().manual_seed(sampling.seed)
    sums = _Sums()
    for number, image in enumerate(images):
        with recorded(module, names, outputs=True) as calls, torch.enable_grad():
            final = outputs.final(call(module, tracked(image)))
        recorded_outputs = [(name, made.output) for name, listed in calls.items() for made in listed]
        weights = _add_probes(sums, module, recorded_outputs, _Probe(final, scales, generator), sampling.probes)
        _sample(sums, module, recorded_outputs, weights, generator, sampling.positions, len(images))
        if progress is not None:
            progress(number + 1, len(images))
    total = len(images) * sampling.probes
    positions = sums.positions
    if sums.target_bytes > TARGET_BYTES:  # targets of only a part of the images save nothing
        positions = {name: [_without_targets(calls) for calls in listed] for name, listed in positions.items()}
    return {name: Sensitivity(value.double() / total, tuple(positions[name])) for name, value in sums.squares.items()}


@dataclass(frozen=True)
class _Probe:
    """Random weighted sums of one image's final outputs."""

    final: Mapping[str, Tensor]
    scales: Mapping[str, OutputScale]
    generator: torch.Generator

    def draw(self) -> Tensor:
        signal = probe(self.final, self.scales, self.generator)
        if not signal.requires_grad:
            raise NetworkError(
                "no gradient reaches the layers, so their sensitivity can't be measured",
                hint="The forward pass must not detach its outputs; or fit factors to weights alone",
            )
        return signal


def _add_probes(
    sums: _Sums, module: nn.Module, layer_outputs: Sequence[tuple[str, Tensor]], signal: _Probe, probes: int
) -> list[Tensor]:
    """Add g g' of each probe to the sums; the squared gradient at each position of each output."""
    weights = [torch.zeros(1)] * len(layer_outputs)
    for turn in range(probes):
        gradients = torch.autograd.grad(
            signal.draw(), [x for _, x in layer_outputs], retain_graph=turn < probes - 1, allow_unused=True
        )
        for place, ((name, output), found) in enumerate(zip(layer_outputs, gradients, strict=True)):
            gradient = columns(torch.zeros_like(output) if found is None else found, module.get_submodule(name))
            if name not in sums.squares:
                sums.squares[name] = gradient.new_zeros(len(gradient), len(gradient))
            sums.squares[name].addmm_(gradient, gradient.T)
            weights[place] = weights[place] + gradient.square().sum(0)
    return weights


def _sample(
    sums: _Sums,
    module: nn.Module,
    layer_outputs: Sequence[tuple[str, Tensor]],
    weights: Sequence[Tensor],
    generator: torch.Generator,
    positions: int,
    images: int,
) -> None:
    """Draw positions of one image for each layer, and keep the outputs there while they fit into memory."""
    drawn: dict[str, list[SampledPositions]] = {}
    for (name, output), weight in zip(layer_outputs, weights, strict=True):
        layer = module.get_submodule(name)
        sampled = _draw(weight.double().cpu(), _affordable(layer, positions, images), generator)
        given = columns(output.detach(), layer)
        sums.target_bytes += given[:, :1].nbytes * len(sampled.index)
        if sums.target_bytes <= TARGET_BYTES:
            sampled = replace(sampled, target=given.index_select(1, sampled.index.to(given.device)))
        drawn.setdefault(name, []).append(sampled)
    for name, calls in drawn.items():
        sums.positions.setdefault(name, []).append(tuple(calls))


def _without_targets(calls: Sequence[SampledPositions]) -> tuple[SampledPositions, ...]:
    return tuple(replace(sampled, target=None) for sampled in calls)


def directional_errors(
    module: nn.Module,
    images: Sequence[Inputs],
    changes: Mapping[str, Sequence[Change]],
    *,
    outputs: Outputs = BY_STRUCTURE,
    probes: int = 2,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Relative squared error of the final outputs, to first order, for changes of single layers.

    One backward pass covers all changes of all layers: the derivative of a probed output sum in the direction of a
    change is an inner product of gradient and change. Unlike a prediction from `Sensitivity` and moments this accounts
    for how errors at different positions and in different channels add up.

    Parameters
    ----------
    module : nn.Module
        The network in evaluation mode.
    images : sequence of Inputs
        Calibration images.
    changes : mapping
        For each layer the changes to judge.
    outputs : Outputs
        How the network's return value is read.
    probes : int
        Random sign vectors for each image.
    seed : int
        Of the probes.
    """
    names = [name for name in changes if changes[name]]
    if not names:
        return {name: [] for name in changes}
    scales = output_scales(module, images, outputs)
    generator = torch.Generator().manual_seed(seed)
    sums = {name: [0.0] * len(listed) for name, listed in changes.items()}
    weights = {name: module.get_submodule(name).get_parameter("weight") for name in names}
    frozen = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        for weight in weights.values():
            weight.requires_grad_()
        for image in images:
            with recorded(module, names, outputs=True) as calls, torch.enable_grad():
                final = outputs.final(call(module, image))
            signal = _Probe(final, scales, generator)
            for turn in range(probes):
                gradients = _layer_gradients(signal.draw(), module, weights, calls, retain=turn < probes - 1)
                for name, (gradient, shift) in gradients.items():
                    for place, change in enumerate(changes[name]):
                        value = torch.vdot(gradient.flatten(), change.weight.to(gradient).flatten())
                        value = value + torch.vdot(shift, change.bias.to(gradient))
                        sums[name][place] += float(value) ** 2
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(frozen[name])
    return {name: [value / (len(images) * probes) for value in values] for name, values in sums.items()}


def _layer_gradients(
    signal: Tensor,
    module: nn.Module,
    weights: Mapping[str, nn.Parameter],
    calls: Mapping[str, Sequence[Call]],
    retain: bool,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Gradients of a signal with respect to the weight of each layer and, (T,), to a shift of its output."""
    outputs = [made.output for name in weights for made in calls.get(name, ())]
    owners = [name for name in weights for _ in calls.get(name, ())]
    found = torch.autograd.grad(signal, [*weights.values(), *outputs], retain_graph=retain, allow_unused=True)
    shifts: dict[str, Tensor] = {}
    for name, gradient in zip(owners, found[len(weights) :], strict=True):
        if gradient is not None:
            shift = columns(gradient, module.get_submodule(name)).sum(1)
            shifts[name] = shifts[name] + shift if name in shifts else shift
    return {
        name: (gradient, shifts[name])
        for name, gradient in zip(weights, found[: len(weights)], strict=True)
        if gradient is not None
    }


def _affordable(layer: nn.Module, positions: int, images: int) -> int:
    """Number of positions sampled in an image: see `Sampling`."""
    length = layer.get_parameter("weight")[0].numel()
    return min(positions, math.ceil(max(length, COVARIANCE_MACS / length**2) / images))


def _draw(weight: Tensor, count: int, generator: torch.Generator) -> SampledPositions:
    """About ``count`` positions by systematic sampling, each in proportion to its weight but at most once."""
    mean = weight.mean()
    if mean <= 0:
        weight, mean = torch.ones_like(weight), torch.ones(())
    weight = weight / mean + WEIGHT_FLOOR
    chance = (weight * (count / weight.sum())).clamp_max(1)
    for _ in range(5):  # what the certain positions leave over goes to the others
        certain = chance >= 1
        left = count - int(certain.sum())
        if left <= 0 or bool(certain.all()):
            break
        chance = torch.where(certain, 1.0, (weight * (left / weight[~certain].sum())).clamp_max(1))
    ends = chance.cumsum(0) + torch.rand(1, generator=generator, dtype=torch.float64)
    starts = torch.cat([ends[:1] - chance[:1], ends[:-1]])
    index = torch.nonzero(ends.floor() > starts.floor()).flatten()
    return SampledPositions(index.int(), (weight / chance)[index].float())


def _refuse_alike(images: Sequence[Inputs]) -> None:
    different = {tuple(map(_fingerprint, image if isinstance(image, tuple) else (image,))) for image in images}
    if len(different) < 2:
        raise DataError(
            "calibration needs at least two different images",
            found=f"{len(images)} images, {len(different)} of them different",
            hint="Use a few dozen images with people",
        )


def _fingerprint(value: Tensor) -> tuple[tuple[int, ...], float]:
    return tuple(value.shape), float(value.double().sum())
