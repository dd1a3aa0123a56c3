"""What layers see and what the final maps feel of them, from a few images without labels.

Two things are streamed over the images in bounded memory; activations are never kept. The *sensitivity* of a layer is
the mean of g g' over output positions, g being the gradient of the final maps' weighted squared change by the layer's
output: the output factor of a Gauss-Newton approximation as in Martens and Grosse, "Optimizing neural networks with
Kronecker-factored approximate curvature" (2015, arXiv:1503.05671), estimated with random signs on the network's own
maps. The *moments* are mean and covariance of the patches that a layer reads. Both are taken where they matter: a
position counts by the squared gradient there, so that a wall behind a person does not outweigh the person.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.decomposition.fitting import WIDE
from compress.errors import DataError
from compress.model.maps import map_scales, probe
from compress.model.recording import columns, patches, recorded, run

#: Covariances gathered in one pass take at most so many bytes (float32).
MEMORY = 5 * 2**29

#: Multiply-adds of one covariance over all images, about; and rows of it that are computed together.
WORK = 1.5e11
BLOCK = 1024

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
    """

    index: Tensor
    weight: Tensor


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


@dataclass(frozen=True)
class Change:
    """A change of a layer's weight (T, D) and bias (T,)."""

    weight: Tensor
    bias: Tensor


@dataclass
class _Sums:
    """Weighted sums over positions: x x', y x' and y w, the last row of y being the root weight itself.

    Both x and y are taken from about their means on: beside a large mean float32 would lose the variance.
    """

    patch: Tensor
    target: Tensor
    square: Tensor
    cross: Tensor
    targets: Tensor
    samples: int = 0

    @classmethod
    def around(cls, patch: Tensor, target: Tensor) -> _Sums:
        """Sums of nothing yet, about a patch (D,) and a target (T,)."""
        size, outputs = len(patch), len(target) + 1
        zeros = patch.new_zeros
        return cls(patch[:, None], target[:, None], zeros(size, size), zeros(outputs, size), zeros(outputs))

    def add(self, x: Tensor, y: Tensor, root: Tensor) -> None:
        """Add patches (D, n) and targets (T, n) with the roots (n,) of their weights."""
        # One product gives covariance, cross moment and means: of patches, outputs and the weight itself.
        x, y = (x - self.patch) * root, torch.cat([(y - self.target) * root, root[None]])
        for start in range(0, len(x), BLOCK):  # the other half is its mirror image
            self.square[start : start + BLOCK, start:].addmm_(x[start : start + BLOCK], x[start:].T)
        self.cross.addmm_(y, x.T)
        self.targets.addmv_(y, y[-1])
        self.samples += x.shape[1]

    def mirrored(self) -> Tensor:
        """x x', whole."""
        for start in range(0, len(self.square), BLOCK):
            end = start + BLOCK
            self.square[end:, start:end] = self.square[start:end, end:].T
        return self.square


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
    for number, image in enumerate(images):
        with recorded(module, names, outputs=True) as calls, torch.enable_grad():
            maps = module(image.clone().requires_grad_())[-1]
        outputs = [(name, call.output) for name, made in calls.items() for call in made]
        weights = [torch.zeros(1)] * len(outputs)
        for turn in range(probes):
            signal = probe(maps, scales, generator)
            kept = turn < probes - 1
            gradients = torch.autograd.grad(signal, [x for _, x in outputs], retain_graph=kept, allow_unused=True)
            for place, ((name, output), found) in enumerate(zip(outputs, gradients, strict=True)):
                gradient = columns(torch.zeros_like(output) if found is None else found, module.get_submodule(name))
                if name not in sums:
                    sums[name] = gradient.new_zeros(len(gradient), len(gradient))
                sums[name].addmm_(gradient, gradient.T)
                weights[place] = weights[place] + gradient.square().sum(0)
        drawn: dict[str, list[Places]] = {}
        for (name, _), weight in zip(outputs, weights, strict=True):
            count = _affordable(module.get_submodule(name), positions, len(images))
            drawn.setdefault(name, []).append(_draw(weight.double().cpu(), count, generator))
        for name, calls_places in drawn.items():
            places.setdefault(name, []).append(tuple(calls_places))
        if progress is not None:
            progress(number + 1, len(images))
    total = len(images) * probes
    return {name: Sensitivity(value.double() / total, tuple(places[name])) for name, value in sums.items()}


def in_groups(module: nn.Module, names: Sequence[str], count: int) -> Iterator[list[str]]:
    """Names in their order, at most ``count`` together and never with more covariances than fit into `MEMORY`."""
    group: list[str] = []
    used = 0
    for name in names:
        size = 4 * module.get_submodule(name).get_parameter("weight")[0].numel() ** 2
        if group and (len(group) >= count or used + size > MEMORY):
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    if group:
        yield group


@torch.no_grad()
def gather_moments(
    original: nn.Module,
    compressed: nn.Module,
    images: Sequence[Tensor],
    sensitivities: Mapping[str, Sensitivity],
    names: Sequence[str],
) -> dict[str, Moments]:
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
        Where to look.
    names : sequence of str
        Layers whose moments are gathered at the same time; this bounds the memory.
    """
    sums: dict[str, _Sums] = {}
    for number, image in enumerate(images):
        same, until = original is compressed, {name: len(sensitivities[name].places[number]) for name in names}
        with recorded(original, names, inputs=same, outputs=True, until=until) as wanted:
            run(original, image)
        read = wanted
        if not same:
            with recorded(compressed, names, inputs=True, until=until) as read:
                run(compressed, image)
        for name in names:
            layer = original.get_submodule(name)
            for call, (given, target) in enumerate(zip(read[name], wanted[name], strict=True)):
                places = sensitivities[name].places[number][call]
                x = patches(given.input, layer, places.index)
                y = columns(target.output, layer).index_select(1, places.index.to(x.device))
                if name not in sums:
                    sums[name] = _Sums.around(x.mean(1), y.mean(1))
                sums[name].add(x, y, places.weight.to(x).sqrt())
    result = {}
    for name in list(sums):
        found = sums.pop(name)
        total = float(found.targets[-1])
        mean, target_mean = found.cross[-1].double() / total, found.targets[:-1].double() / total
        covariance = found.mirrored()
        if len(mean) <= WIDE:  # of the others there are many at a time, and each is gigabytes
            covariance = covariance.double()
        covariance.div_(total).addr_(mean.to(covariance), mean.to(covariance), alpha=-1)
        cross = found.cross[:-1].double().div_(total).addr_(target_mean, mean, alpha=-1)
        mean, target_mean = mean + found.patch[:, 0], target_mean + found.target[:, 0]
        result[name] = Moments(mean, covariance, target_mean, cross, found.samples)
    return result


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
                        value = (gradient.flatten(1) * change.weight).sum() + (shifts[name] * change.bias).sum()
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
            way_out="Use a few dozen images with people",
        )
