from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.cocoeval import Params

from compress.errors import DataError
from compress.pose.skeleton import (
    COCO17,
    LIP16,
    LSP14,
    MIDDLES,
    MPII16,
    OPENPOSE18,
    SKELETONS,
    Skeleton,
    convert_keypoints,
    get_skeleton,
)

BOTH = pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS.keys())


@BOTH
def test_the_mirror_image_swaps_sides_and_twice_is_the_identity(skeleton: Skeleton) -> None:
    order = skeleton.flip_order
    assert [order[k] for k in order] == list(range(len(skeleton.joints)))
    for joint, mirror in zip(skeleton.joints, order, strict=True):
        swapped = joint.replace("left_", "RIGHT").replace("right_", "left_").replace("RIGHT", "right_")
        assert skeleton.joints[mirror] == swapped


@BOTH
def test_joints_are_distinct_and_limbs_connect_them_all(skeleton: Skeleton) -> None:
    assert len(set(skeleton.joints)) == len(skeleton.joints)
    assert {k for limb in skeleton.limbs for k in limb} == set(range(len(skeleton.joints)))
    assert len({frozenset(limb) for limb in skeleton.limbs}) == len(skeleton.limbs)


@BOTH
def test_a_mirrored_limb_is_a_limb(skeleton: Skeleton) -> None:
    limbs = {frozenset(limb) for limb in skeleton.limbs}
    assert {frozenset(skeleton.flip_order[k] for k in limb) for limb in limbs} == limbs


def test_fields_have_two_channels_each_and_cover_all_channels() -> None:
    assert sorted(OPENPOSE18.paf_channels) == list(range(0, 2 * len(OPENPOSE18.limbs), 2))


def test_grouping_reaches_a_joint_before_it_goes_on_from_it() -> None:
    reached = {OPENPOSE18.limbs[0][0]}
    closing = []
    for first, second in OPENPOSE18.limbs:
        assert first in reached
        if second in reached:
            closing.append((OPENPOSE18.joints[first], OPENPOSE18.joints[second]))
        reached.add(second)
    assert closing == [("right_shoulder", "right_ear"), ("left_shoulder", "left_ear")]


def test_sigmas_are_those_of_pycocotools() -> None:
    np.testing.assert_allclose(COCO17.sigmas, Params(iouType="keypoints").kpt_oks_sigmas)


@pytest.mark.real
def test_coco_names_the_same_joints_and_limbs(assets: Path) -> None:
    record = json.loads((assets / "annotations" / "person_keypoints_val2017_subset.json").read_text())
    (category,) = record["categories"]
    assert tuple(category["keypoints"]) == COCO17.joints
    if "skeleton" in category:
        assert {frozenset(k - 1 for k in limb) for limb in category["skeleton"]} == {frozenset(x) for x in COCO17.limbs}


def test_unknown_skeletons_are_refused_with_the_known_ones() -> None:
    assert get_skeleton("coco17") is COCO17
    with pytest.raises(DataError, match="coco17, openpose18"):
        get_skeleton("coco18")


@given(st.integers(0, 2**32 - 1), st.sampled_from([(), (1,), (2, 3)]))
def test_coco_survives_the_way_to_openpose_and_back(seed: int, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(seed)
    keypoints = rng.random((*shape, 17, 3)).astype(np.float32)
    keypoints[..., 2] = rng.integers(0, 3, (*shape, 17))
    there = convert_keypoints(keypoints, COCO17, OPENPOSE18)
    assert there.shape == (*shape, 18, 3)
    assert there.dtype == np.float32
    np.testing.assert_array_equal(convert_keypoints(there, OPENPOSE18, COCO17), keypoints)


@pytest.mark.parametrize(("left", "right", "neck"), [(2, 2, 2), (1, 2, 1), (2, 1, 1), (0, 2, 0), (2, 0, 0), (0, 0, 0)])
def test_the_neck_lies_between_two_annotated_shoulders(left: int, right: int, neck: int) -> None:
    keypoints = np.zeros((17, 3), np.float32)
    keypoints[COCO17.joints.index("left_shoulder")] = (10, 4, left)
    keypoints[COCO17.joints.index("right_shoulder")] = (2, 8, right)
    found = convert_keypoints(keypoints, COCO17, OPENPOSE18)[OPENPOSE18.joints.index("neck")]
    assert found.tolist() == ([6, 6, neck] if neck else [0, 0, 0])


@BOTH
def test_joints_in_the_middle_have_a_left_and_a_right_joint(skeleton: Skeleton) -> None:
    for joint in skeleton.between:
        assert joint in skeleton.joints
        assert {f"{side}_{MIDDLES[joint]}" for side in ("left", "right")} <= set(skeleton.joints)


def test_only_joints_with_the_same_meaning_are_converted() -> None:
    keypoints = np.ones((16, 3), np.float32)
    keypoints[:, 0] = 10 * np.arange(16)
    found = convert_keypoints(keypoints, MPII16, OPENPOSE18)
    shoulders = [MPII16.joints.index(f"{side}_shoulder") for side in ("left", "right")]
    # OpenPose's neck is the middle of the shoulders, MPII's is the upper neck.
    assert found[OPENPOSE18.joints.index("neck"), 0] == 5 * sum(shoulders)
    assert found[OPENPOSE18.joints.index("nose")].tolist() == [0, 0, 0]
    # The datasets of single people share their upper neck and the top of the head.
    for joint in ("neck", "head_top"):
        there = [convert_keypoints(keypoints, MPII16, other)[other.joints.index(joint), 0] for other in (LIP16, LSP14)]
        assert there == [10 * MPII16.joints.index(joint)] * 2
    # COCO has neither; hips and shoulders give MPII's pelvis and thorax.
    coco = np.ones((17, 3), np.float32)
    coco[:, 0] = np.arange(17)
    mpii = convert_keypoints(coco, COCO17, MPII16)
    missing = [joint for joint, value in zip(MPII16.joints, mpii, strict=True) if value[2] == 0]
    assert missing == ["neck", "head_top"]
    assert mpii[MPII16.joints.index("pelvis"), 0] == 11.5
    assert mpii[MPII16.joints.index("thorax"), 0] == 5.5
