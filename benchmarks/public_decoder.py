"""The published decoder of lightweight OpenPose, step by step as it is described, in Python and numpy.

It is widely used, and so the baseline for our decoder's time. All maps are enlarged to the size of the image; peaks are
found by shifted copies of a whole map; each limb reads its own two channels of the fields and scores its pairs at
once; non-maximum suppression, assignment and grouping are loops over lists. It finds the same people as the decoder
`compat`, whose steps are vectorised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from compress.pose.decoders.paf_compat import enlarge
from compress.pose.spec import PoseSpec

#: Joints of each limb, and the channels of its field.
LIMBS = (
    (1, 2, 12), (1, 5, 20), (2, 3, 14), (3, 4, 16), (5, 6, 22), (6, 7, 24), (1, 8, 0), (8, 9, 2), (9, 10, 4),
    (1, 11, 6), (11, 12, 8), (12, 13, 10), (1, 0, 28), (0, 14, 30), (14, 16, 34), (0, 15, 32), (15, 17, 36),
    (2, 16, 18), (5, 17, 26),
)  # fmt: skip

#: The limbs from shoulder to ear close a loop: they extend people but start none.
CLOSING = (17, 18)

JOINTS, SAMPLES = 18, 10


def decode_public(heatmaps: np.ndarray, pafs: np.ndarray, prepared: Any, spec: PoseSpec) -> list[dict[str, Any]]:
    """People as ``{"joints": {joint: (x, y, height)}, "parts": number, "score": sum}``, in pixels of the image."""
    heat, fields = enlarge(heatmaps, prepared, spec.stride), enlarge(pafs, prepared, spec.stride)
    peaks: list[list[tuple[int, int, float, int]]] = []
    count = 0
    for joint in range(JOINTS):
        places = _peaks(heat[:, :, joint])
        peaks.append([(x, y, value, count + index) for index, (x, y, value) in enumerate(places)])
        count += len(places)
    return _group(peaks, fields)


def _peaks(heat: np.ndarray) -> list[tuple[int, int, float]]:
    heat = np.where(heat < 0.1, 0, heat)
    around = np.pad(heat, [(2, 2), (2, 2)])
    centre = around[1:-1, 1:-1]
    higher = (
        (centre > around[1:-1, 2:]) & (centre > around[1:-1, :-2]) & (centre > around[2:, 1:-1])
        & (centre > around[:-2, 1:-1])
    )[1:-1, 1:-1]  # fmt: skip
    places = sorted(zip(*np.nonzero(higher)[::-1], strict=True), key=lambda place: place[0])
    dropped = [False] * len(places)
    kept = []
    for index, (x, y) in enumerate(places):
        if dropped[index]:
            continue
        for other in range(index + 1, len(places)):
            if math.hypot(x - places[other][0], y - places[other][1]) < 6:
                dropped[other] = True
        kept.append((int(x), int(y), float(heat[y, x])))
    return kept


def _limb_scores(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]], field: np.ndarray) -> np.ndarray:
    """For each pair (A, B) the mean over the points above the threshold; 0 if it is no limb."""
    start = np.array([peak[:2] for peak in first], dtype=np.float32)[:, None]
    along = np.array([peak[:2] for peak in second], dtype=np.float32)[None] - start  # (A, B, 2)
    length = np.linalg.norm(along, axis=-1)
    unit = along / np.where(length > 0, length, 1)[..., None]
    step = np.float32(1 / (SAMPLES - 1)) * along
    places = start[..., None, :] + step[..., None, :] * np.arange(SAMPLES, dtype=np.float32)[:, None]
    x, y = np.moveaxis(np.round(places).astype(np.int32), -1, 0)  # (A, B, samples)
    values = unit[..., None, 0] * field[y, x, 0] + unit[..., None, 1] * field[y, x, 1]
    counts = values > np.float32(0.05)
    number = counts.sum(axis=-1)
    mean = (values * counts).sum(axis=-1) / np.maximum(number, 1)
    return np.where(number / SAMPLES > 0.8, mean, 0)


def _group(peaks: list[list[tuple[int, int, float, int]]], fields: np.ndarray) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    for number, (a, b, channel) in enumerate(LIMBS):
        field = fields[:, :, [channel, channel + 1]]
        if not peaks[a] or not peaks[b]:
            continue
        scores = _limb_scores(peaks[a], peaks[b], field)
        scored = [(float(scores[i, j]), peaks[a][i], peaks[b][j]) for i, j in zip(*np.nonzero(scores > 0), strict=True)]
        taken: set[int] = set()
        limbs = []
        for score, one, two in sorted(scored, key=lambda limb: -limb[0]):
            if one[3] not in taken and two[3] not in taken:
                taken |= {one[3], two[3]}
                limbs.append((score, one, two))
        for score, one, two in limbs:
            _join(entries, number, (a, b), score, one, two)
    return [
        entry | {"joints": {joint: peak[:3] for joint, peak in entry["joints"].items()}}
        for entry in entries
        if entry["parts"] >= 3 and entry["score"] / entry["parts"] >= 0.2
    ]


def _join(
    entries: list[dict[str, Any]], number: int, joints: tuple[int, int], score: float, one: Any, two: Any
) -> None:
    first, second = joints

    def owns(entry: dict[str, Any], joint: int, peak: Any) -> bool:
        return joint in entry["joints"] and entry["joints"][joint][3] == peak[3]

    if number in CLOSING:
        for entry in entries:
            if owns(entry, first, one) and second not in entry["joints"]:
                entry["joints"][second] = two
            elif owns(entry, second, two) and first not in entry["joints"]:
                entry["joints"][first] = one
        return
    extended = False
    for entry in entries if number else ():
        if owns(entry, first, one):
            entry["joints"][second] = two
            entry["parts"] += 1
            entry["score"] += two[2] + score
            extended = True
    if not extended:
        entries.append({"joints": {first: one, second: two}, "parts": 2, "score": one[2] + two[2] + score})
