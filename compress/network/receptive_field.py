"""The empirical receptive field: which pixels of the input an output depends on, and how strongly.

Two measures. By gradient: the derivative of one cell of an output map with respect to the input (Luo et al. 2016,
arXiv:1701.04128). By occlusion: the change of an output map when a small window of random values hides a part of the
image (Zhou et al. 2015, arXiv:1412.6856; Osokin 2019, "Global Context for Convolutional Pose Machines", section 3.3 and
figures 6 to 8, with windows of 11 x 11 pixels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from compress.errors import NetworkError
from compress.network.inputs import call
from compress.network.outputs import BY_STRUCTURE, Outputs

#: Side of the window that hides a part of the image, and the step by which it moves, in pixels.
WINDOW = 11

#: A pixel belongs to the effective field if its strength is above this share of the largest (Luo et al. 2016).
EFFECTIVE = 1 - 0.9545

#: Windows in one batch.
_BATCH = 8


@dataclass(frozen=True)
class FieldSize:
    """The extent of a receptive field.

    Attributes
    ----------
    method : str
        ``"gradient"`` or ``"occlusion"``.
    output : str
        The output.
    channel : int or None
        The map of the output; None for all of them together.
    inputs : int
        Number of inputs that were averaged over.
    cell : (int, int) or None
        Row and column of the output cell; None by occlusion, which looks at the whole map.
    support : (int, int)
        Height and width in pixels of the smallest rectangle that holds all pixels with an influence.
    effective : float
        Side in pixels of a square with the area of the effective field.
    share : float
        Share of the image's pixels in the effective field.
    """

    method: str
    output: str
    channel: int | None
    inputs: int
    cell: tuple[int, int] | None
    support: tuple[int, int]
    effective: float
    share: float


@dataclass(frozen=True)
class ReceptiveField:
    """A receptive field: its extent, and the strength of each pixel, (H, W), with a maximum of 1."""

    size: FieldSize
    strength: NDArray[np.float64]

    @property
    def shade(self) -> NDArray[np.float64]:
        """Strengths to draw: proportional by occlusion; the root of gradients, most of which are small."""
        return np.sqrt(self.strength) if self.size.method == "gradient" else self.strength


def random_inputs(shape: tuple[int, ...], count: int, seed: int = 0) -> list[Tensor]:
    """Inputs of standard normal values, each of that shape with a batch axis of 1."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((1, *shape[1:]), generator=generator) for _ in range(count)]


def gradient_field(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    outputs: Outputs = BY_STRUCTURE,
    output: str | None = None,
    channel: int | None = None,
    cell: tuple[int, int] | None = None,
) -> ReceptiveField:
    """The field of one cell of an output map, as the mean absolute gradient over the input's channels and the inputs.

    Parameters
    ----------
    module : Module
        The network in evaluation mode; its weights are only read.
    inputs : sequence of Tensor
        Images (1, C, H, W), all of one size.
    outputs : Outputs
        How the return value is read.
    output : str, optional
        Name of the output; the first map by default.
    channel : int, optional
        One map of the output; the sum of all by default.
    cell : (int, int), optional
        Row and column of the cell; the centre by default.

    Raises
    ------
    NetworkError
        If there is no such map or cell, or it does not depend on the input.
    """
    total = torch.zeros(())
    for image in inputs:
        x = image.detach().clone().requires_grad_(True)
        with torch.enable_grad():
            name, maps = _map(module, x, outputs, output, channel)
            row, column = cell or (maps.shape[-2] // 2, maps.shape[-1] // 2)
            if not (0 <= row < maps.shape[-2] and 0 <= column < maps.shape[-1]):
                raise NetworkError(f"the output {name} has no such cell", found=(row, column))
            value = maps[..., row, column].sum()
            (slope,) = torch.autograd.grad(value, x, allow_unused=True) if value.requires_grad else (None,)
        if slope is not None:
            total = total + slope.abs().mean((0, 1)).double().cpu()
    return _field(total, "gradient", name, channel, len(inputs), (row, column))


def occlusion_field(
    module: nn.Module,
    inputs: Sequence[Tensor],
    *,
    outputs: Outputs = BY_STRUCTURE,
    output: str | None = None,
    channel: int | None = None,
    window: int = WINDOW,
    seed: int = 0,
) -> ReceptiveField:
    """The field of whole output maps: their mean absolute change when a window of random values hides a place.

    The windows lie side by side; each pixel has the change of the window that hides it. The values are drawn uniformly
    between the smallest and the largest of the image.

    Parameters
    ----------
    module, inputs, outputs, output, channel
        As for `gradient_field`.
    window : int
        Side of the window in pixels.
    seed : int
        Of the random values.

    Raises
    ------
    NetworkError
        If there is no such map, or it does not depend on the input.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(inputs[0].shape[-2:], dtype=torch.float64)
    for image in inputs:
        with torch.no_grad():
            name, plain = _map(module, image, outputs, output, channel)
            height, width = image.shape[-2:]
            places = [(top, left) for top in range(0, height, window) for left in range(0, width, window)]
            for start in range(0, len(places), _BATCH):
                chosen = places[start : start + _BATCH]
                hidden = image.repeat(len(chosen), 1, 1, 1)
                for row, (top, left) in enumerate(chosen):
                    patch = hidden[row, :, top : top + window, left : left + window]
                    values = torch.rand(patch.shape, generator=generator).to(image)
                    patch.copy_(image.min() + values * (image.max() - image.min()))
                _, maps = _map(module, hidden, outputs, output, channel)
                changes = (maps - plain).abs().flatten(1).mean(1).double().cpu()
                for change, (top, left) in zip(changes, chosen, strict=True):
                    total[top : top + window, left : left + window] += change
    return _field(total, "occlusion", name, channel, len(inputs), None)


def _map(module: nn.Module, x: Tensor, outputs: Outputs, output: str | None, channel: int | None) -> tuple[str, Tensor]:
    """The output map that is asked for, (N, C, h, w)."""
    final = outputs.final(call(module, x))
    maps = {name: value for name, value in final.items() if value.ndim == 4 and value.is_floating_point()}
    name = next(iter(maps), None) if output is None else output
    if name is None or name not in maps:
        raise NetworkError(
            "the network has no such output map",
            found=name or ", ".join(final),
            hint=f"Maps: {', '.join(maps) or 'none'}",
        )
    if channel is None:
        return name, maps[name]
    if not 0 <= channel < maps[name].shape[1]:
        raise NetworkError(f"the output {name} has {maps[name].shape[1]} maps", found=channel)
    return name, maps[name][:, channel : channel + 1]


def _field(
    total: Tensor, method: str, output: str, channel: int | None, inputs: int, cell: tuple[int, int] | None
) -> ReceptiveField:
    largest = float(total.max())
    if not largest > 0 or not math.isfinite(largest):
        raise NetworkError(f"the output {output} does not depend on the input", found=f"largest influence {largest:g}")
    strength = (total / largest).numpy()
    rows, columns = (np.flatnonzero((strength > 0).any(axis)) for axis in (1, 0))
    effective = int((strength > EFFECTIVE).sum())
    size = FieldSize(
        method=method,
        output=output,
        channel=channel,
        inputs=inputs,
        cell=cell,
        support=(int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)),
        effective=math.sqrt(effective),
        share=effective / strength.size,
    )
    return ReceptiveField(size, strength)
