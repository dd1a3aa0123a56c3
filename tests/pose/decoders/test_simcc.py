"""Vectors for each joint: round trips, shapes and scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.errors import DataError, UsageError
from compress.pose.crop import Crop, box_region, region_matrix, transform
from compress.pose.decoders.simcc import SimccDecoder
from compress.pose.skeleton import COCO17
from compress.pose.spec import PoseSpec

SIZE = (64, 48)


def pose_of(grid: str) -> PoseSpec:
    return PoseSpec(
        skeleton="coco17", decoder="simcc", height=SIZE[0], width=SIZE[1], stride=1, grid=grid,
        flip_shift=grid == "corner", joint_threshold=0.2,
    )  # fmt: skip


def random_person(seed: int, missing: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    person = np.full((17, 3), 2, np.float32)
    person[:, :2] = rng.uniform((2, 2), (SIZE[1] - 3, SIZE[0] - 3), (17, 2))
    person[missing] = 0
    return person


def crop(matrix: np.ndarray | None = None) -> Crop:
    return Crop(np.zeros((3, *SIZE), np.float32), np.eye(2, 3) if matrix is None else matrix)


def batched(outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[None] for name, value in outputs.items()}


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), grid=st.sampled_from(["corner", "centre"]), ratio=st.sampled_from([1, 1.5, 2, 3.0])
)
def test_joints_come_back_from_their_targets_within_a_bin(seed: int, grid: str, ratio: float) -> None:
    pose, decoder, person = pose_of(grid), SimccDecoder(split_ratio=ratio), random_person(seed)
    targets = decoder.targets([person], SIZE, pose)
    assert {name: value.shape for name, value in targets.outputs.items()} == {
        "simcc_x": (17, round(SIZE[1] * ratio)),
        "simcc_y": (17, round(SIZE[0] * ratio)),
    }
    assert targets.weight.shape == (17, 1)
    assert targets.weight[4] == 0
    assert np.delete(targets.weight, 4) == pytest.approx(1)
    matrix = region_matrix(box_region((10, 20, 90, 60), SIZE), SIZE, corner_grid=pose.corner_grid)
    ((found,),) = decoder.decode(batched(targets.outputs), [crop(matrix)], pose)
    assert found.keypoints[4].tolist() == [0, 0, 0]
    there = person[:, 2] > 0
    back = transform(found.keypoints[there, :2], matrix)
    assert np.abs(back - person[there, :2]).max() <= 0.5 / ratio + 1e-3
    assert found.score == pytest.approx(found.keypoints[there, 2].mean(), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), grid=st.sampled_from(["corner", "centre"]), ratio=st.sampled_from([1, 2, 3]))
def test_vectors_of_the_mirrored_crop_turn_back(seed: int, grid: str, ratio: int) -> None:
    pose, decoder, person = pose_of(grid), SimccDecoder(split_ratio=ratio), random_person(seed)
    mirrored = person[list(COCO17.flip_order)]
    mirrored[:, 0] = np.where(mirrored[:, 2] > 0, SIZE[1] - 1 - mirrored[:, 0], 0)
    plain, flipped = (batched(decoder.targets([p], SIZE, pose).outputs) for p in (person, mirrored))
    merged = decoder.merge_mirrored(plain, flipped, pose, SIZE)
    for name, value in plain.items():
        # A corner grid repeats the last bins.
        inner = value.shape[2] - 4
        assert merged[name][..., :inner] == pytest.approx(value[..., :inner], abs=2e-3)


def test_the_score_is_the_smaller_maximum_or_their_product() -> None:
    pose = pose_of("corner")
    x, y = np.zeros((1, 17, 96), np.float32), np.zeros((1, 17, 128), np.float32)
    x[0, :, 10], y[0, :, 20] = 0.5, 0.8
    x[0, 3], y[0, 3] = -0.5, -0.8
    outputs = {"simcc_x": x, "simcc_y": y}
    ((least,),), ((product,),) = (
        SimccDecoder(score=rule).decode(outputs, [crop()], pose)  # type: ignore[arg-type]
        for rule in ("min", "product")
    )
    assert least.keypoints[0].tolist() == [5, 10, 0.5]
    assert product.keypoints[0, 2] == pytest.approx(0.4)
    assert not least.keypoints[3].any()
    assert not product.keypoints[3].any()


def test_outputs_and_options_that_do_not_fit_are_refused() -> None:
    pose, decoder = pose_of("corner"), SimccDecoder()
    outputs = batched(decoder.targets([random_person(0)], SIZE, pose).outputs)
    with pytest.raises(DataError, match=r"simcc_x has the wrong shape.*split_ratio of 2"):
        decoder.decode({**outputs, "simcc_x": outputs["simcc_y"]}, [crop()], pose)
    with pytest.raises(DataError, match=r"simcc_y.*not finite"):
        decoder.decode({**outputs, "simcc_y": outputs["simcc_y"] * np.nan}, [crop()], pose)
    with pytest.raises(DataError, match="did not return the output simcc_y"):
        decoder.decode({"simcc_x": outputs["simcc_x"]}, [crop()], pose)
    for broken in ({"split_ratio": 0}, {"split_ratio": "2"}, {"score": "mean"}):
        with pytest.raises(UsageError, match="SimCC"):
            SimccDecoder(**broken)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="scales"):
        decoder.resample(outputs, np.eye(2, 3), outputs, pose)
