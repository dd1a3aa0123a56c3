from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import CheckpointError, CompressError
from compress.pose.skeleton import COCO17, OPENPOSE18, SKELETONS
from compress.pose.spec import COLORS, DECODERS, PoseSpec

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)


@given(
    st.builds(
        PoseSpec,
        skeleton=st.sampled_from(sorted(SKELETONS)),
        outputs=st.lists(st.text(min_size=1), min_size=1, max_size=3).map(tuple),
        height=st.integers(1, 5000),
        width=st.none() | st.integers(1, 5000),
        decoder=st.sampled_from(DECODERS),
        stride=st.integers(1, 64),
        color=st.sampled_from(COLORS),
        mean=st.tuples(NUMBERS, NUMBERS, NUMBERS),
        scale=st.tuples(NUMBERS, NUMBERS, NUMBERS),
        background=st.booleans(),
    )
)
def test_a_specification_survives_json(spec: PoseSpec) -> None:
    assert PoseSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_missing_keys_take_their_defaults() -> None:
    assert PoseSpec.from_dict({"height": 256}) == PoseSpec(height=256)


def test_the_skeleton_is_found_by_its_name() -> None:
    assert PoseSpec().joints is OPENPOSE18
    assert PoseSpec(skeleton="coco17").joints is COCO17


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("skeleton", "coco99"), ("decoder", "argmax"), ("color", "grey"), ("height", 0), ("height", "tall"),
        ("height", 368.0), ("height", True), ("stride", -8), ("mean", [1, 2]), ("mean", 128.0), ("scale", [1, 2, "3"]),
        ("scale", [1, 2, float("nan")]), ("outputs", []), ("outputs", [""]), ("outputs", [3]),
        ("width", 0), ("width", 192.0), ("width", True),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_not_be_is_refused(key: str, value: object) -> None:
    with pytest.raises(CompressError) as caught:
        PoseSpec.from_dict({key: value})
    assert key in str(caught.value) or "can't be read" in str(caught.value)


def test_unknown_keys_are_listed_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"\['heigth'\].*height"):
        PoseSpec.from_dict({"heigth": 368})


def test_records_from_before_crops_had_a_width_are_read() -> None:
    old = PoseSpec().to_dict()
    del old["width"]
    assert PoseSpec.from_dict(old) == PoseSpec()
    assert PoseSpec(height=368).size == (368, 368)
    assert PoseSpec(height=256, width=192).size == (256, 192)


@pytest.mark.parametrize(
    ("decoder", "background", "stride", "first"),
    [("paf", True, 8, 3.5), ("heatmap", True, 8, 3.5), ("heatmap", False, 4, 0.0), ("heatmap", False, 1, 0.0)],
)
def test_cells_stand_for_corners_in_top_down_networks_alone(
    decoder: str, background: bool, stride: int, first: float
) -> None:
    pose = PoseSpec(decoder=decoder, background=background, stride=stride)
    assert pose.first_cell == first
    assert pose.corner_grid == (stride == 4)
