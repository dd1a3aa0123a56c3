"""Maps averaged over a mirrored image and over scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from compress.data.sample import Person
from compress.data.synthetic import DrawnPeople
from compress.errors import UsageError
from compress.evaluation.people import find_people
from compress.pose.crop import crop_image, image_region, scaled_size, transform
from compress.pose.decoders.averaging import merge_mirrored_pafs, resample
from compress.pose.decoders.heatmap import HeatmapDecoder
from compress.pose.decoders.paf import PafDecoder
from compress.pose.prepare import Prepared, prepare
from compress.pose.skeleton import COCO17, OPENPOSE18, convert_keypoints
from compress.pose.spec import PoseSpec
from compress.pose.targets import heatmap_targets, paf_targets
from compress.pose.views import Run, View, average_views, read_scales

Maps = dict[str, NDArray[np.float32]]

PEOPLE = PoseSpec(height=256)
ONE = PoseSpec(
    skeleton="coco17",
    decoder="heatmap",
    height=128,
    width=96,
    stride=4,
    background=False,
    grid="corner",
    flip_shift=True,
)


def mirror(keypoints: NDArray[np.float32], width: int, order: tuple[int, ...]) -> NDArray[np.float32]:
    """Keypoints of the mirrored image: the right of what was the left."""
    found = keypoints[list(order)].copy()
    found[:, 0] = np.where(found[:, 2] > 0, width - 1 - found[:, 0], 0)
    return found


class Oracle:
    """Knows where people are in the image it was made for, at whatever size and whether mirrored or not."""

    name, device, precision, threads = "torch", "cpu", "fp32", 1

    def __init__(self, image: NDArray[np.uint8], people: list[NDArray[np.float32]], pose: PoseSpec = PEOPLE) -> None:
        self.image, self.people, self.pose = image, people, pose
        self.sizes: list[tuple[int, int, bool]] = []

    def run(self, images: NDArray[np.float32]) -> Maps:
        height, width = images.shape[2:]
        prepared = prepare(self.image, self.pose, height)
        plain = np.array_equal(images[0], prepared.array)
        if not plain:
            assert np.array_equal(images[0, ..., ::-1], prepared.array)
        self.sizes.append((height, width, plain))
        people = []
        for person in self.people:
            moved = person.copy()
            moved[:, :2] = (moved[:, :2] + 0.5) * prepared.scale - 0.5 + prepared.pad
            moved[moved[:, 2] == 0] = 0
            people.append(moved if plain else mirror(moved, width, OPENPOSE18.flip_order))
        size = (height // 8, width // 8)
        return {"heatmaps": heatmap_targets(people, size, 8)[None], "pafs": paf_targets(people, size, 8)[None]}

    def close(self) -> None:
        pass


def whole_image_maps(
    run: Run, image: NDArray[np.uint8], view: View | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], Prepared]:
    decoder, view = PafDecoder(), view or View()
    outputs, (prepared,) = average_views(
        run, lambda scale: [decoder.whole_image(image, PEOPLE, view.height, scale)], decoder, PEOPLE, view
    )
    assert isinstance(prepared, Prepared)
    return outputs["heatmaps"][0], outputs["pafs"][0], prepared


@pytest.fixture
def scene() -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    sample = DrawnPeople(11, 1, (240, 317))[0]
    people = [convert_keypoints(p.keypoints, COCO17, OPENPOSE18) for p in sample.people if isinstance(p, Person)]
    return sample.image, people


def test_one_scale_and_no_flip_change_nothing(scene: Any) -> None:
    oracle = Oracle(*scene)
    prepared = prepare(scene[0], PEOPLE, 256)
    plain = oracle.run(prepared.array[None])
    heatmaps, pafs, base = whole_image_maps(oracle.run, scene[0])
    assert np.array_equal(heatmaps, plain["heatmaps"][0])
    assert np.array_equal(pafs, plain["pafs"][0])
    assert np.array_equal(base.array, prepared.array)
    half, _, smaller = whole_image_maps(oracle.run, scene[0], View(scales=(0.5,)))
    assert np.array_equal(half, oracle.run(prepare(scene[0], PEOPLE, 128).array[None])["heatmaps"][0])
    assert smaller.scaled_size[0] == 128


def test_the_maps_of_the_mirrored_image_turn_back_into_those_of_the_image(scene: Any) -> None:
    oracle = Oracle(*scene)
    plain = oracle.run(prepare(scene[0], PEOPLE, 256).array[None])
    heatmaps, pafs, _ = whole_image_maps(oracle.run, scene[0], View(flip=True))
    assert [plain_side for *_, plain_side in oracle.sizes] == [True, True, False]
    assert np.abs(plain["pafs"]).max() > 0.9
    # Limbs of several people on one cell: the last writer wins, whichever way the image is turned.
    assert heatmaps == pytest.approx(plain["heatmaps"][0], abs=1e-5)
    assert pafs == pytest.approx(plain["pafs"][0], abs=1e-5)


def test_left_and_right_and_the_sign_of_x_change_places() -> None:
    fields = np.zeros((1, 38, 2, 3), dtype=np.float32)
    right = OPENPOSE18.paf_channels[OPENPOSE18.limbs.index((2, 3))]
    left = OPENPOSE18.paf_channels[OPENPOSE18.limbs.index((5, 6))]
    nose = OPENPOSE18.paf_channels[OPENPOSE18.limbs.index((1, 0))]
    fields[0, right, 0, 0], fields[0, right + 1, 0, 0] = 0.6, 0.8
    fields[0, nose, 1, 2], fields[0, nose + 1, 1, 2] = 1.0, -0.5
    back = 2 * merge_mirrored_pafs(np.zeros_like(fields), fields, OPENPOSE18)
    assert back[0, left : left + 2, 0, 2] == pytest.approx([-0.6, 0.8])
    assert back[0, nose : nose + 2, 1, 0] == pytest.approx([-1.0, -0.5])
    assert np.count_nonzero(back) == 4


def test_a_limb_listed_in_the_opposite_order_changes_its_sign() -> None:
    crossed = replace(OPENPOSE18, limbs=((2, 5),), paf_channels=(0,))  # from shoulder to shoulder
    fields = np.zeros((1, 2, 1, 2), dtype=np.float32)
    fields[0, :, 0, 0] = 1.0, 0.25
    back = 2 * merge_mirrored_pafs(np.zeros_like(fields), fields, crossed)
    assert back[0, :, 0, 1] == pytest.approx([1.0, -0.25])


@pytest.mark.parametrize("scales", [(1.5, 1.0, 0.5), (1.25, 0.75)])
def test_scales_agree_on_where_joints_are(scene: Any, scales: tuple[float, ...]) -> None:
    image, people = scene
    oracle = Oracle(image, people)
    found = find_people(oracle, image, view=View(scales=scales, flip=True))
    assert len({size[:2] for size in oracle.sizes}) == len(scales)
    alone = find_people(Oracle(image, people), image, view=View(round(256 * max(scales))))
    assert len(found) == len(alone) > 0
    for pose, other in zip(sorted(found, key=_place), sorted(alone, key=_place), strict=True):
        both = (pose.keypoints[:, 2] > 0) & (other.keypoints[:, 2] > 0)
        assert both.sum() >= 3
        assert np.abs(pose.keypoints[both, :2] - other.keypoints[both, :2]).max() < 2.5


def _place(pose: Any) -> float:
    return float(pose.keypoints[pose.keypoints[:, 2] > 0, 0].mean())


def test_the_grid_of_the_mean_is_that_of_the_largest_scale(scene: Any) -> None:
    oracle = Oracle(*scene)
    heatmaps, pafs, base = whole_image_maps(oracle.run, scene[0], View(scales=(1.5, 1.0)))
    assert base.array.shape[1:] == (384, base.array.shape[2])
    assert heatmaps.shape[1:] == pafs.shape[1:] == (48, base.array.shape[2] // 8)
    assert PafDecoder().people(heatmaps, pafs, base, PEOPLE)


def test_a_ramp_stays_the_same_ramp_at_another_size() -> None:
    y, x = np.mgrid[:20, :30].astype(np.float32)
    ramp = 0.5 * x - 0.25 * y
    matrix = np.array([[0.5, 0, 3.0], [0, 0.5, 2.0]])
    moved = resample(np.stack([ramp, -ramp])[None], matrix, (16, 24))
    cy, cx = np.mgrid[:16, :24]
    expected = 0.5 * (0.5 * cx + 3) - 0.25 * (0.5 * cy + 2)
    assert moved.shape == (1, 2, 16, 24)
    assert moved[0, 0] == pytest.approx(expected, abs=0.02)
    assert moved[0, 1] == pytest.approx(-expected, abs=0.02)


@pytest.mark.parametrize(
    "pose", [ONE, replace(ONE, background=True, stride=8, grid="centre")], ids=["corners", "centres"]
)
def test_a_person_is_found_at_the_same_place_at_every_scale(pose: PoseSpec) -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 160, 3), dtype=np.uint8)
    place = np.array([[70.3, 90.2], [100.0, 60.0]])
    sizes = []

    def run(images: NDArray[np.float32]) -> Maps:
        height, width = images.shape[2:]
        sizes.append((height, width))
        matrix = crop_image(image, image_region(image.shape, (height, width)), pose, (height, width)).matrix
        keypoints = np.zeros((17, 3), dtype=np.float32)
        keypoints[:2] = np.column_stack([transform(place, matrix), [2, 2]])
        maps = heatmap_targets(
            [keypoints], (height // pose.stride, width // pose.stride), pose.stride, sigma=0.08 * height,
            skeleton=COCO17, background=pose.background, first_cell=pose.first_cell,
        )  # fmt: skip
        return {"heatmaps": maps[None]}

    region = image_region(image.shape, pose.size)
    decoder = HeatmapDecoder(refine="cubic")
    for scales in ((1.0,), (1.5, 1.0, 0.75)):
        outputs, crops = average_views(
            run,
            lambda scale: [crop_image(image, region, pose, scaled_size(pose.size, pose, scale))],
            decoder,
            pose,
            View(scales=scales),
        )
        ((person,),) = decoder.decode(outputs, crops, pose)
        found = person.keypoints
        assert found[:2, :2] == pytest.approx(place, abs=0.2 * pose.stride)
        assert found[0, 2] == pytest.approx(1, abs=0.05)
    assert sizes[1:] == [(192, 144), (128, 96), (96, 72)]


@pytest.mark.parametrize("text", ["", "a", "1,1", "0", "-1,2", "1,,2", "12"])
def test_text_without_valid_scales_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"different numbers above 0.*0\.5,1,1\.5"):
        read_scales(text)
    assert read_scales("0.5, 1,1.5") == (1.5, 1.0, 0.5)
