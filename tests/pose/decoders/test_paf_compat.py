"""The compatible decoder against a transcription of the published algorithm, step by step and pixel by pixel."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from crowds import SPEC, blank, fields, line_up, scatter

from compress.network.source import NetworkSpec
from compress.pose.decoders.base import Pose
from compress.pose.decoders.paf import PafDecoder
from compress.pose.decoders.paf_compat import find_public_peaks
from compress.pose.prepare import Prepared, prepare
from compress.zoo.registry import build

COMPAT = PafDecoder(mode="compat")

PAIRS = [
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17), (2, 16), (5, 17),
]  # fmt: skip
CHANNELS = [12, 20, 14, 16, 22, 24, 0, 2, 4, 6, 8, 10, 28, 30, 34, 32, 36, 18, 26]


def full_size(maps: np.ndarray, prepared: Prepared) -> np.ndarray:
    large = cv2.resize(maps.transpose(1, 2, 0).copy(), (0, 0), fx=8, fy=8, interpolation=cv2.INTER_CUBIC)
    height, width = prepared.size
    scaled_height, scaled_width = (int(np.rint(side * prepared.scale)) for side in (height, width))
    top = (large.shape[0] - scaled_height) // 2
    left = (large.shape[1] - scaled_width) // 2
    inner = large[top : top + scaled_height, left : left + scaled_width]
    return cv2.resize(inner, (width, height), interpolation=cv2.INTER_CUBIC)


def joints_of(heat: np.ndarray) -> list[tuple[int, int, float]]:
    heat = np.where(heat < 0.1, np.float32(0), heat)
    height, width = heat.shape
    peaks = []
    for y, x in np.argwhere(heat > 0):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        values = [heat[v, u] if 0 <= v < height and 0 <= u < width else 0 for v, u in around]
        if all(heat[y, x] > value for value in values):
            peaks.append((int(x), int(y), float(heat[y, x])))
    peaks.sort(key=lambda peak: peak[0])
    kept: list[tuple[int, int, float]] = []
    for peak in peaks:
        if all(math.hypot(peak[0] - other[0], peak[1] - other[1]) >= 6 for other in kept):
            kept.append(peak)
    return kept


def limb_score(a: tuple, b: tuple, field: np.ndarray) -> float:
    """The mean over the points that count, or 0 for what is no limb."""
    dx, dy = np.float32(b[0] - a[0]), np.float32(b[1] - a[1])
    length = np.sqrt(dx * dx + dy * dy)
    if length == 0:
        return 0.0
    steps = np.arange(10, dtype=np.float32)
    xs = np.round(np.float32(1 / 9) * dx * steps + np.float32(a[0])).astype(int)
    ys = np.round(np.float32(1 / 9) * dy * steps + np.float32(a[1])).astype(int)
    values = dx / length * field[ys, xs, 0] + dy / length * field[ys, xs, 1]
    counted = [float(value) for value in values if value > np.float32(0.05)]
    return sum(counted) / len(counted) if len(counted) >= 9 else 0.0


def reference(heatmaps: np.ndarray, pafs: np.ndarray, prepared: Prepared) -> list[tuple[dict[int, tuple], float]]:
    """People as {joint: (x, y, height)} with their scores."""
    heat, field = full_size(heatmaps, prepared), full_size(pafs, prepared)
    joints = [joints_of(heat[..., k]) for k in range(18)]
    people: list[dict] = []
    for index, ((k, m), channel) in enumerate(zip(PAIRS, CHANNELS, strict=True)):
        limb_field = field[..., channel : channel + 2]
        scored = []
        for i, a in enumerate(joints[k]):
            for j, b in enumerate(joints[m]):
                score = limb_score(a, b, limb_field)
                if score > 0:
                    scored.append((score, i, j))
        scored.sort(key=lambda s: -s[0])
        taken = []
        for score, i, j in scored:
            if all(i != u and j != v for _, u, v in taken):
                taken.append((score, i, j))
        for score, i, j in taken:
            if index in (17, 18):
                for person in people:
                    if person["joints"].get(k) == i and m not in person["joints"]:
                        person["joints"][m] = j
                    elif person["joints"].get(m) == j and k not in person["joints"]:
                        person["joints"][k] = i
                continue
            owners = [person for person in people if index != 0 and person["joints"].get(k) == i]
            for person in owners:
                person["joints"][m] = j
                person["parts"] += 1
                person["sum"] += joints[m][j][2] + score
            if not owners:
                people.append({"joints": {k: i, m: j}, "parts": 2, "sum": joints[k][i][2] + joints[m][j][2] + score})
    return [
        ({k: joints[k][i] for k, i in person["joints"].items()}, person["sum"] * (person["parts"] - 1))
        for person in people
        if person["parts"] >= 3 and person["sum"] / person["parts"] >= 0.2
    ]


def assert_same_people(poses: list[Pose], expected: list[tuple[dict[int, tuple], float]]) -> None:
    assert len(poses) == len(expected)
    for pose, (joints, score) in zip(poses, expected, strict=True):
        assert set(np.flatnonzero(pose.keypoints[:, 2])) == set(joints)
        for k, (x, y, height) in joints.items():
            assert tuple(pose.keypoints[k]) == (x + 0.5, y + 0.5, np.float32(height))
        assert pose.score == pytest.approx(score, rel=1e-5)


@pytest.mark.parametrize(
    ("count", "noise"), [(0, 0.04), (1, 0.0), (2, 0.04), (5, 0.02), (12, 0.0), (12, 0.03), (30, 0.02)]
)
@pytest.mark.parametrize("seed", range(2))
def test_people_are_those_of_the_published_algorithm(count: int, noise: float, seed: int) -> None:
    rng = np.random.default_rng((count, seed))
    cells = (32, int(rng.integers(32, 60)))
    size = (int(rng.integers(150, 400)), 0)
    size = (size[0], int(size[0] * (cells[1] * 8 - rng.integers(0, 40)) / (cells[0] * 8)))
    people = line_up(rng, count, cells) if seed else scatter(rng, count, cells)
    heatmaps, pafs = fields(people, cells, rng, noise)
    prepared = blank(size, cells)
    expected = reference(heatmaps, pafs, prepared)
    assert_same_people(COMPAT.people(heatmaps, pafs, prepared, SPEC), expected)
    assert count < 2 or len(expected) > 1


def test_an_image_padded_above_and_below_is_cut_like_the_published_one() -> None:
    rng = np.random.default_rng(7)
    prepared = prepare(np.zeros((75, 100, 3), np.uint8), SPEC, 124)  # 124 rows in 128, 165 columns in 168
    cells = (prepared.array.shape[1] // 8, prepared.array.shape[2] // 8)
    assert prepared.pad[0] > 0
    assert prepared.pad[1] > 0
    heatmaps, pafs = fields(line_up(rng, 2, cells), cells)
    expected = reference(heatmaps, pafs, prepared)
    assert len(expected) == 2
    assert_same_people(COMPAT.people(heatmaps, pafs, prepared, SPEC), expected)


def test_near_peaks_are_thinned_out_from_left_to_right_whatever_their_heights() -> None:
    maps = np.zeros((30, 30, 2), np.float32)
    for x, height in ((4, 0.2), (9, 0.9), (15, 0.3)):
        maps[7, x, 1] = height
    peaks = find_public_peaks(maps, threshold=0.1, radius=6)
    assert peaks.starts.tolist() == [0, 0, 2]
    assert peaks.points.tolist() == [[4, 7], [15, 7]]
    np.testing.assert_array_equal(peaks.scores, np.float32([0.2, 0.3]))


def test_peaks_may_lie_on_the_border_but_not_on_a_plateau() -> None:
    maps = np.zeros((12, 12, 1), np.float32)
    maps[0, 11] = 0.5
    maps[11, 0] = 0.1
    maps[5, 5:7] = 0.8
    peaks = find_public_peaks(maps, threshold=0.1, radius=6)
    assert peaks.points.tolist() == [[0, 11], [11, 0]]


@pytest.mark.real
@pytest.mark.slow
def test_people_of_real_images_are_those_of_the_published_algorithm(assets: Path) -> None:
    folder = assets / "weights" / "human-pose-estimation-0001"
    record = torch.load(folder / "human-pose-estimation-0001.pth", weights_only=True)
    network = build(NetworkSpec("human-pose-estimation-0001")).eval()
    network.load_state_dict(record["state_dict"])
    found = 0
    for path in sorted((assets / "images" / "coco" / "val2017").glob("*.jpg"))[:3]:
        prepared = prepare(cv2.imread(str(path)), SPEC)
        with torch.inference_mode():
            maps = network(torch.from_numpy(prepared.array)[None])[-1]
        heatmaps, pafs = maps["heatmaps"][0].numpy(), maps["pafs"][0].numpy()
        poses = COMPAT.people(heatmaps, pafs, prepared, SPEC)
        assert_same_people(poses, reference(heatmaps, pafs, prepared))
        found += len(poses)
    assert found > 3
