"""Joints as peaks of heatmaps, found inside an exported graph.

This is `compress.pose.decoders.peaks.find_peaks` in torch operations.

Upsampling, the comparison with neighbours, the parabola through each peak and the choice of the highest peaks of each
map run with the network, on whatever device it runs. Everything works for any batch, height and width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from compress.errors import UsageError
from compress.pose.decoders.peaks import Peaks, cubic_weights, find_peaks

#: As in `compress.pose.decoders.peaks.find_peaks`: a point this much lower than a neighbour still counts as a peak.
_ROUNDING = 1e-6

#: Of a chain of peaks, each too near to the one before, every second one stays: each link takes one round. A cell holds
#: one peak and the radius is about one cell, so chains are short.
_ROUNDS = 4

#: Number of extra peaks that are refined: the parabola changes the order of heights that are nearly equal.
_SPARE = 16

#: Peaks in the graph and outside are the same if they differ by less than this in cells and in height.
_SAME_CELLS, _SAME_HEIGHT = 0.02, 1e-3

#: Stands for "no peak" among heights.
_NONE = -1e4


@dataclass(frozen=True)
class PeakOptions:
    """How peaks are found inside an exported graph; the meanings are those of `compress.pose.decoders.paf.PafOptions`.

    Attributes
    ----------
    top_k : int
        Peaks of each map in the output, the highest first.
    upsample : int
        Interpolated points per cell and axis.
    threshold : float
        Smallest height of a peak.
    distance : float
        Least distance between two peaks of one map, in pixels of the network's input.

    Raises
    ------
    UsageError
        If a value has no meaning.
    """

    top_k: int = 32
    upsample: int = 4
    threshold: float = 0.1
    distance: float = 6.0

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= 1000:
            raise UsageError("--top-k must be from 1 to 1000", found=self.top_k)
        if self.upsample not in (1, 2, 4):
            raise UsageError("--upsample must be 1, 2 or 4", found=self.upsample)
        if not self.threshold > 0 or not self.distance >= 0:
            raise UsageError("peaks need a threshold above 0 and a distance", found=(self.threshold, self.distance))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, fit for JSON."""
        return asdict(self)


class PeakFinder(nn.Module):
    """Finds peaks of heatmaps (N, C, h, w): (N, K, top_k, 3) of x, y in cells and height, the highest first.

    The centre of a map's first cell is (0, 0). Rows without a peak are 0.

    Parameters
    ----------
    joints : int
        Number of maps that are searched, K; those after them (the background) are left out.
    stride : int
        Pixels of the network's input per cell.
    options : PeakOptions
        What counts as a peak.
    """

    def __init__(self, joints: int, stride: int, options: PeakOptions) -> None:
        super().__init__()
        self.joints, self.options = joints, options
        self.radius = options.distance / stride
        self.taps: Tensor
        weights = torch.from_numpy(cubic_weights(options.upsample)[1:-1])  # (u, 5)
        self.register_buffer("taps", torch.einsum("ai,bj->abij", weights, weights).reshape(-1, 1, 5, 5))

    def forward(self, heatmaps: Tensor) -> Tensor:
        """Find the peaks."""
        up, top = self.options.upsample, self.options.top_k + _SPARE
        maps = heatmaps[:, : self.joints]
        count, joints, height, width = maps.shape
        # One cell more on each side, then one point: neighbours of points at the edge, as if maps went on as they end.
        # Not a resize operation: runtimes differ in what they make of a cubic one, and some take long for it.
        fine = functional.pad(maps.reshape(count * joints, 1, height, width), (3, 3, 3, 3), mode="replicate")
        fine = functional.pixel_shuffle(functional.conv2d(fine, self.taps), up)
        fine = fine.reshape(count, joints, (height + 2) * up, (width + 2) * up)
        wide = fine[:, :, up - 1 : (height + 1) * up + 1, up - 1 : (width + 1) * up + 1]
        inner = wide[:, :, 1:-1, 1:-1]
        near = functional.max_pool2d(wide, 3, stride=1)
        cell = maps.repeat_interleave(up, dim=2).repeat_interleave(up, dim=3) if up > 1 else maps
        there = (inner >= near - _ROUNDING) & (inner >= self.options.threshold) & (cell >= self.options.threshold / 2)
        heights = torch.where(there, inner, torch.full_like(inner, _NONE))
        # Of the points of a cell the highest: (N, K, u * u, h * w).
        blocks = functional.pixel_unshuffle(heights, up).reshape(count, joints, up * up, height * width)
        best, place = blocks.max(dim=2)
        best = torch.cat([best, torch.full_like(best[:, :, :1], _NONE).expand(-1, -1, top)], dim=2)
        place = torch.cat([place, torch.zeros_like(place[:, :, :1]).expand(-1, -1, top)], dim=2)
        found, index = torch.topk(best, top, dim=2)  # (N, K, top_k and some more)
        index = index.clamp(max=height * width - 1)
        point = torch.gather(place, 2, index)
        row, down = _quotient(index, width), _quotient(point, up)
        x, y = (index - row * width) * up + point - down * up, row * up + down
        return self._refine(wide.flatten(2), x, y, width * up + 2, found)

    def _refine(self, wide: Tensor, x: Tensor, y: Tensor, across: int, found: Tensor) -> Tensor:
        """Parabolas through the points (x, y) of the upsampled maps, and the peaks that stay, in their order."""
        up = self.options.upsample
        place = (y + 1) * across + x + 1
        centre = torch.gather(wide, 2, place)
        step_x, rise_x = _parabola(torch.gather(wide, 2, place - 1), centre, torch.gather(wide, 2, place + 1))
        step_y, rise_y = _parabola(torch.gather(wide, 2, place - across), centre, torch.gather(wide, 2, place + across))
        there = found > _NONE / 2
        score = torch.where(there, centre + rise_x + rise_y, torch.full_like(centre, _NONE))
        across_cells = (x.to(score.dtype) + 0.5 + step_x) / up - 0.5
        down_cells = (y.to(score.dtype) + 0.5 + step_y) / up - 0.5
        score, order = torch.topk(score, self.options.top_k, dim=2)
        points = torch.stack([torch.gather(across_cells, 2, order), torch.gather(down_cells, 2, order)], dim=-1)
        score = score * self._kept(points, score > _NONE / 2)
        score, order = torch.topk(score, self.options.top_k, dim=2)
        there = (score > 0).unsqueeze(-1)
        points = torch.gather(points, 2, order.unsqueeze(-1).expand(-1, -1, -1, 2))
        return torch.where(there, torch.cat([points, score.unsqueeze(-1)], dim=-1), torch.zeros_like(score)[..., None])

    def _kept(self, points: Tensor, there: Tensor) -> Tensor:
        """1 for peaks that are not near a higher one that stays, else 0; points are in the order of their heights."""
        distance = (points.unsqueeze(3) - points.unsqueeze(2)).square().sum(dim=-1)  # (N, K, top_k, top_k)
        earlier = torch.ones(self.options.top_k, self.options.top_k, device=points.device).tril(-1)
        rivals = (distance < self.radius**2).to(points.dtype) * earlier
        kept = there.to(points.dtype)
        first = kept
        for _ in range(_ROUNDS):
            beaten = torch.matmul(rivals, kept.unsqueeze(-1)).squeeze(-1) > 0.5
            kept = first * (~beaten).to(points.dtype)
        return kept


def _quotient(whole: Tensor, divisor: int) -> Tensor:
    """``whole // divisor`` of numbers up to some millions, in operations that agree in all runtimes.

    ONNX takes no remainder by a size that is free, and OpenVINO's division of integers is sometimes one too small
    where there is no remainder.
    """
    return torch.floor((whole.to(torch.float32) + 0.5) / divisor).to(torch.int64)


def to_peaks(output: NDArray[np.float32]) -> Peaks:
    """The output for one image, (K, top_k, 3), as `compress.pose.decoders.peaks.find_peaks` would give it."""
    there = output[..., 2] > 0
    starts = np.concatenate([[0], np.cumsum(there.sum(axis=1))])
    return Peaks(output[there][:, :2], output[there][:, 2], starts)


def missed_peaks(output: NDArray[np.float32], heatmaps: NDArray[np.float32], stride: int, options: PeakOptions) -> int:
    """Number of peaks in only one of the two: one image's maps (K, h, w), and the output (K, top_k, 3)."""
    given = to_peaks(output)
    wanted = find_peaks(
        heatmaps,
        upsample=options.upsample,
        threshold=options.threshold,
        radius=options.distance / stride,
        limit=options.top_k,
    )
    missed = 0
    for joint in range(len(heatmaps)):
        ours, theirs = (slice(*peaks.starts[joint : joint + 2]) for peaks in (given, wanted))
        apart = np.abs(given.points[ours][:, None] - wanted.points[theirs][None]).max(axis=-1, initial=0)  # (P, Q)
        higher = np.abs(given.scores[ours][:, None] - wanted.scores[theirs][None])
        same = (apart < _SAME_CELLS) & (higher < _SAME_HEIGHT)
        missed += int((~same.any(axis=0)).sum() + (~same.any(axis=1)).sum())
    return missed


def _parabola(before: Tensor, centre: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Where a parabola through three points has its top, in steps from the second, and how far above it."""
    curvature = before - 2 * centre + after
    step = torch.where(curvature < 0, (before - after) / curvature.clamp(max=-1e-12) / 2, torch.zeros_like(centre))
    step = step.clamp(-0.5, 0.5)
    return step, step * (after - before + step * curvature) / 2
