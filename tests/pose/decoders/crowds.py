"""People at known places, and the fields a perfect network would give for them."""

from __future__ import annotations

import numpy as np

from compress.pose.prepare import Prepared
from compress.pose.skeleton import OPENPOSE18
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets

SPEC = PoseSpec()
STRIDE = SPEC.stride

#: A standing person, hips at the origin, about one unit from hip to ankle; y points down.
STANDING = np.array([
    (0, -0.86), (0, -0.62), (-0.17, -0.6), (-0.24, -0.3), (-0.22, -0.02), (0.17, -0.6), (0.26, -0.32), (0.3, -0.05),
    (-0.11, 0), (-0.12, 0.42), (-0.12, 0.82), (0.11, 0), (0.13, 0.4), (0.16, 0.82), (-0.06, -0.93), (0.06, -0.93),
    (-0.13, -0.88), (0.13, -0.88),
])  # fmt: skip


def blank(size: tuple[int, int], cells: tuple[int, int]) -> Prepared:
    """What `prepare` would say of an image of that size (h, w) that fills the height of so many cells."""
    scale = cells[0] * STRIDE / size[0]
    left = (cells[1] * STRIDE - round(size[1] * scale)) // 2
    return Prepared(np.zeros((3, cells[0] * STRIDE, cells[1] * STRIDE), np.float32), scale, (left, 0), size)


def line_up(rng: np.random.Generator, count: int, cells: tuple[int, int], jitter: float = 0.03) -> list[np.ndarray]:
    """People (18, 3) beside and above each other in pixels of the input, none touching the next."""
    rows = max(1, round((count / 3) ** 0.5))
    columns = max(1, -(-count // rows))
    height, width = cells[0] * STRIDE / rows, cells[1] * STRIDE / columns
    unit = min(height / 2.1, width / 0.95)
    people = []
    for index in range(count):
        centre = ((index % columns + 0.5) * width, (index // columns + 0.52) * height)
        size = unit * rng.uniform(0.8, 1)
        points = centre + size * (STANDING + rng.normal(0, jitter, (18, 2)).clip(-0.05, 0.05))
        people.append(np.column_stack([points, np.full(18, 2)]).astype(np.float32))
    return people


def scatter(rng: np.random.Generator, count: int, cells: tuple[int, int]) -> list[np.ndarray]:
    """People of any size at any place, over each other, some joints missing."""
    people = []
    for _ in range(count):
        centre = rng.random(2) * (cells[1] * STRIDE, cells[0] * STRIDE)
        points = centre + cells[0] * STRIDE * rng.uniform(0.2, 0.5) * (STANDING + rng.normal(0, 0.05, (18, 2)))
        people.append(np.column_stack([points, 2 * (rng.random(18) < 0.85)]).astype(np.float32))
    return people


def fields(
    people: list[np.ndarray], cells: tuple[int, int], rng: np.random.Generator | None = None, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Heatmaps and part-affinity fields of the people, with noise."""
    heatmaps, pafs = heatmap_targets(people, cells, STRIDE), paf_targets(people, cells, STRIDE)
    if rng is not None:
        heatmaps = heatmaps + rng.normal(0, noise, heatmaps.shape).astype(np.float32)
        pafs = pafs + rng.normal(0, noise, pafs.shape).astype(np.float32)
    return heatmaps, pafs


def mirror_fields(heatmaps: np.ndarray, pafs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The fields of the mirrored image."""
    order = list(OPENPOSE18.flip_order)
    mirrored = np.zeros_like(pafs)
    for (a, b), channel in zip(OPENPOSE18.limbs, OPENPOSE18.paf_channels, strict=True):
        partner = OPENPOSE18.paf_channels[OPENPOSE18.limbs.index((order[a], order[b]))]
        mirrored[channel] = -pafs[partner, :, ::-1]
        mirrored[channel + 1] = pafs[partner + 1, :, ::-1]
    return heatmaps[[*order, 18], :, ::-1], mirrored
