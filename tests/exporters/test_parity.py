from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from compress.errors import ParityError, UsageError
from compress.exporters.paired_people import compare_people
from compress.exporters.parity import TOLERANCES, Parity, check, check_heights, check_outputs, require
from compress.pose.decoders.base import Pose
from compress.pose.skeleton import OPENPOSE18
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets

Array = NDArray[np.float32]
Maps = dict[str, Array]

POSE = PoseSpec(height=128)

#: A standing person in a box of width and height 1.
BODY = np.array(
    [[.5, .1], [.5, .22], [.35, .22], [.3, .38], [.28, .52], [.65, .22], [.7, .38], [.72, .52], [.4, .52], [.4, .72],
     [.4, .92], [.6, .52], [.6, .72], [.6, .92], [.46, .07], [.54, .07], [.4, .09], [.6, .09]],
)  # fmt: skip


def people_in(size: tuple[int, int], shift_px: float = 0.0, count: int = 2) -> list[Array]:
    """People side by side in an input of that size, all moved to the right by so many of its pixels."""
    people = []
    for index in range(count):
        points = BODY * [size[1] / count, size[0]] + [index * size[1] / count + shift_px, 0]
        people.append(np.concatenate([points, np.full((18, 1), 2.0)], axis=1).astype(np.float32))
    return people


class Ideal:
    """Gives the maps that a perfect network gives for `people_in`, after an optional change."""

    device, precision, threads = "cpu", "fp32", 1

    def __init__(
        self,
        name: str = "torch",
        *,
        pose: PoseSpec = POSE,
        shift_px: float = 0.0,
        count: int = 2,
        change: Callable[[Maps], Mapping[str, Array]] = dict,
    ) -> None:
        self.name, self.pose, self.shift_px, self.count, self.change = name, pose, shift_px, count, change
        self.shapes: list[tuple[int, ...]] = []

    def run(self, images: Array) -> dict[str, Array]:
        self.shapes.append(images.shape)
        size, cells = images.shape[2:], (images.shape[2] // 8, images.shape[3] // 8)
        people = people_in(size, self.shift_px, self.count)
        maps = {"heatmaps": heatmap_targets(people, cells, 8), "pafs": paf_targets(people, cells, 8)}
        return dict(self.change({name: np.repeat(x[None], len(images), axis=0) for name, x in maps.items()}))

    def close(self) -> None:
        pass


@pytest.fixture
def images() -> list[NDArray[np.uint8]]:
    return [np.random.default_rng(0).integers(0, 256, (256, 320, 3), dtype=np.uint8)]


def noise(size: float, seed: int = 0) -> Callable[[Maps], Maps]:
    random = np.random.default_rng(seed)

    def change(maps: Maps) -> Maps:
        return {name: x + random.uniform(-size, size, x.shape).astype(np.float32) for name, x in maps.items()}

    return change


def test_equal_runners_agree_and_people_are_compared(images: list[NDArray[np.uint8]]) -> None:
    parity = check(Ideal(), Ideal("openvino"), images)
    assert parity.ok
    assert parity.problems == ()
    assert (parity.max_error, parity.mean_error, parity.lost, parity.moved_px_max) == (0, 0, 0, 0)
    # 1 image x 2 sizes x 2 in the batch x 2 people with 18 joints
    assert parity.people == (8, 8)
    assert parity.keypoints == 8 * 18
    assert (parity.reference, parity.exported, parity.images) == ("torch", "openvino", 1)
    assert require(parity) is parity


def test_several_sizes_and_batches_of_one_and_two(images: list[NDArray[np.uint8]]) -> None:
    exported = Ideal()
    parity = check(Ideal(), exported, images)
    assert parity.sizes == ((128, 160), (88, 112))
    assert set(exported.shapes) == {(n, 3, *size) for n in (1, 2) for size in parity.sizes}
    assert parity.batches == (1, 2)
    assert check(Ideal(), Ideal(), images, heights=[96]).sizes == ((96, 120),)
    assert check_heights(POSE, 96) == (96, 64)
    assert check(Ideal(), Ideal(), images, heights=[96, 32, 48]).sizes == ((96, 120), (32, 40), (48, 64))


def test_second_of_a_batch_is_the_mirrored_first(images: list[NDArray[np.uint8]]) -> None:
    seen = []

    class Spy(Ideal):
        def run(self, images: Array) -> Maps:
            seen.append(images)
            return super().run(images)

    check(Ideal(), Spy(), images)
    pairs = [x for x in seen if len(x) == 2]
    assert pairs
    for pair in pairs:
        np.testing.assert_array_equal(pair[0], pair[1][:, :, ::-1])


@pytest.mark.parametrize(("precision", "size", "ok"), [
    ("fp32", 5e-6, True), ("fp32", 2e-4, False), ("fp16", 1e-2, True), ("fp16", 4e-2, False),
])  # fmt: skip
def test_errors_of_the_maps_are_measured_and_judged(
    images: list[NDArray[np.uint8]], precision: str, size: float, ok: bool
) -> None:
    parity = check(Ideal(), Ideal(change=noise(size)), images, precision=precision)
    assert parity.max_error == pytest.approx(size, rel=0.02)
    assert parity.mean_error == pytest.approx(size / 2 / parity.map_range, rel=0.02)
    assert parity.map_range == pytest.approx(1, abs=0.02)
    assert parity.ok is ok


def test_error_is_judged_by_the_size_of_the_maps(images: list[NDArray[np.uint8]]) -> None:
    def smaller(change: Callable[[Maps], Mapping[str, Array]]) -> Callable[[Maps], Maps]:
        return lambda maps: {name: np.float32(0.01) * x for name, x in change(maps).items()}

    parity = check(Ideal(change=smaller(dict)), Ideal(change=smaller(noise(1e-3))), images)
    assert parity.max_error < 1e-4
    assert not parity.ok


def test_moved_people_are_found_moved(images: list[NDArray[np.uint8]]) -> None:
    # 4 px, half a cell, at heights of 128 and 64 are 8 and 16 px of the image with its 256 rows.
    parity = check(Ideal(), Ideal(shift_px=4.0), images, heights=[128, 64])
    assert parity.moved_px_mean == pytest.approx(12, abs=0.5)
    assert parity.moved_px_max == pytest.approx(16, abs=4)
    assert parity.lost <= 4  # a joint at the border may leave the image
    assert any(problem.startswith("keypoints move by 1") for problem in parity.problems)


@pytest.mark.parametrize(("counts", "people"), [((2, 1), (8, 4)), ((1, 2), (4, 8)), ((2, 0), (8, 0)), ((0, 0), (0, 0))])
def test_lost_and_invented_people_count(
    images: list[NDArray[np.uint8]], counts: tuple[int, int], people: tuple[int, int]
) -> None:
    reference, exported = (Ideal(count=max(1, n), change=dict if n else nobody) for n in counts)
    parity = check(reference, exported, images)
    assert parity.people == people
    assert parity.ok is (counts[0] == counts[1])
    assert (parity.lost > 0) is (counts[0] != counts[1])


def nobody(maps: Maps) -> Maps:
    return {name: np.zeros_like(x) for name, x in maps.items()}


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_single_non_finite_value_is_refused(images: list[NDArray[np.uint8]], value: float, side: int) -> None:
    def spoil(maps: Maps) -> Maps:
        maps["pafs"][0, 3, 2, 1] = value
        return maps

    runners = [Ideal(), Ideal()]
    runners[side] = Ideal(change=spoil)
    parity = check(runners[0], runners[1], images)
    assert parity.max_error == np.inf
    assert "the outputs have non-finite values" in parity.problems


def test_a_missing_output_or_another_shape_is_refused(images: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ParityError, match="lacks an output"):
        check(Ideal(), Ideal(change=lambda maps: {"heatmaps": maps["heatmaps"]}), images)
    with pytest.raises(ParityError, match="another shape"):
        check(Ideal(), Ideal(change=lambda maps: maps | {"pafs": maps["pafs"][:, :, :-1]}), images)


def test_an_export_that_fails_only_alone_or_only_in_a_batch_is_refused(images: list[NDArray[np.uint8]]) -> None:
    for wrong in (1, 2):
        change = noise(0.1)
        exported = Ideal(change=lambda maps, n=wrong, change=change: change(maps) if len(maps["pafs"]) == n else maps)
        assert not check(Ideal(), exported, images).ok


def test_values_are_in_the_error(images: list[NDArray[np.uint8]]) -> None:
    parity = check(Ideal(), Ideal("openvino", change=noise(0.05)), images, precision="fp16")
    with pytest.raises(ParityError, match=r"openvino \(fp16\).*differ by up to 0\.05, allowed are 0\.02"):
        require(parity)


def test_record_is_plain(images: list[NDArray[np.uint8]]) -> None:
    record = json.loads(json.dumps(check(Ideal(), Ideal(), images).to_dict()))
    assert record["ok"] is True
    assert record["people"] == [8, 8]
    assert record["tolerance"]["maps"] == TOLERANCES["fp32"].maps


def test_refuses_to_compare_on_nothing(images: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(UsageError, match="image"):
        check(Ideal(), Ideal(), [])
    with pytest.raises(UsageError, match="precision"):
        check(Ideal(), Ideal(), images, precision="int3")


def test_outputs_of_networks_without_keypoints_are_judged_one_by_one() -> None:
    def change(outputs: Maps) -> Maps:
        return {"large": outputs["large"] + 1e-3, "small": outputs["small"] + np.float32(error), "index": index}

    inputs = [np.zeros((1, 2, 8, 8), np.float32)]
    wanted = {"large": np.full((1, 3), 100, np.float32), "small": np.full((1, 2, 2), 0.01, np.float32)}
    reference, exported = Fixed({**wanted, "index": np.zeros(1, np.int64)}), Fixed(wanted, change)
    error, index = 1e-8, np.ones(1, np.int64)
    parity = check_outputs(reference, exported, inputs)
    assert parity.ok
    assert parity.outputs == {"large": pytest.approx(1e-5, rel=0.02), "small": pytest.approx(1e-6, rel=0.2)}
    assert (parity.people, parity.sizes, parity.batches) == (None, ((8, 8),), (1,))
    assert json.loads(json.dumps(parity.to_dict()))["people"] is None
    error = 1e-4
    with pytest.raises(ParityError, match=r"output small differs by up to 0\.01 of its range, allowed are 0\.0001"):
        require(check_outputs(reference, exported, inputs))
    assert check_outputs(reference, exported, inputs, precision="fp16").ok
    with pytest.raises(UsageError, match="at least one image"):
        check_outputs(reference, exported, [])


class Fixed:
    """Gives the same outputs whatever it is given, after an optional change."""

    name, device, precision, threads, pose = "torch", "cpu", "fp32", 1, None

    def __init__(self, outputs: Maps, change: Callable[[Maps], Maps] = dict) -> None:
        self.outputs, self.change = outputs, change

    def run(self, inputs: Any) -> Maps:
        return self.change(self.outputs)

    def close(self) -> None:
        pass


def test_a_network_without_keypoints_has_no_people_to_compare(images: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(UsageError, match="without a pose specification"):
        check(Fixed({}), Fixed({}), images)


def poses(points: Sequence[Sequence[tuple[float, float] | None]]) -> list[Pose]:
    people = []
    for person in points:
        keypoints = np.zeros((len(OPENPOSE18.joints), 3), np.float32)
        for index, point in enumerate(person):
            if point is not None:
                keypoints[index] = (*point, 1)
        people.append(Pose(keypoints, 1.0))
    return people


def test_people_are_paired_by_place_and_not_by_order() -> None:
    first = poses([[(0, 0), (10, 0)], [(100, 0), (110, 0)]])
    second = poses([[(101, 0), (110, 2)], [(0, 0), None]])
    moved, lost = compare_people(first, second, far=20)
    assert sorted(moved) == [0, 1, 2]
    assert lost == 1


def test_points_too_far_apart_are_two_lost_ones() -> None:
    moved, lost = compare_people(poses([[(0, 0), (10, 0)]]), poses([[(0, 0), (40, 0)]]), far=20)
    assert (moved, lost) == ([0], 2)


@pytest.mark.parametrize("sides", [(1, 0), (0, 1), (0, 0)])
def test_nobody_on_one_side(sides: tuple[int, int]) -> None:
    person = poses([[(0, 0), (10, 0), None, (5, 5)]])
    assert compare_people(person * sides[0], person * sides[1], far=20) == ([], 3 * sum(sides))


def test_comparison_is_symmetric() -> None:
    random = np.random.default_rng(1)
    first, second = (poses([[(x, y) for x, y in random.uniform(0, 60, (6, 2))] for _ in range(n)]) for n in (4, 3))
    there, back = compare_people(first, second, far=20), compare_people(second, first, far=20)
    assert sorted(there[0]) == pytest.approx(sorted(back[0]))
    assert there[1] == back[1]


def test_parity_knows_nothing_but_its_numbers() -> None:
    parity = Parity("torch", "onnxruntime", "fp32", 1, ((8, 8),), (1, 2), 0.0, 0.0, 0.0, (0, 0), 0, 0, 0.0, 0.0,
                    TOLERANCES["fp32"])  # fmt: skip
    assert parity.ok, "two networks whose maps are all zero agree"
    assert not replace(parity, max_error=1e-9).ok
    assert replace(parity, keypoints=5, lost=1).ok, "a keypoint on a threshold is there or not by the last digit"
    assert not replace(parity, keypoints=300, lost=30).ok
    assert not replace(parity, keypoints=300, moved_px_mean=0.2).ok
    assert not replace(parity, map_range=1.0, max_error=float("nan")).ok


def test_images_may_differ_in_size(images: list[NDArray[np.uint8]]) -> None:
    other = cv2.resize(images[0], (200, 400))
    parity = check(Ideal(), Ideal(), [images[0], other], heights=[64, 48])
    assert parity.images == 2
    assert len(parity.sizes) == 4
