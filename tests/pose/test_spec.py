from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import CheckpointError, CompressError, DataError
from compress.pose.decoders.names import DECODERS
from compress.pose.skeleton import COCO17, OPENPOSE18, SKELETONS, Skeleton
from compress.pose.spec import COLORS, GRIDS, LAYOUTS, MAX_CHANNELS, PoseSpec
from compress.zoo.registry import entries

NUMBERS = st.floats(-1e3, 1e3, allow_nan=False)
HAND = Skeleton("hand", ("wrist", "thumb", "pinky"), ((0, 1), (0, 2)), (), (0.1, 0.2, 0.3))


@st.composite
def specs(draw: st.DrawFn) -> PoseSpec:
    channels = draw(st.integers(1, MAX_CHANNELS))
    per_channel = st.lists(NUMBERS, min_size=channels, max_size=channels).map(tuple)
    return draw(
        st.builds(
            PoseSpec,
            skeleton=st.sampled_from([*sorted(SKELETONS), HAND]),
            outputs=st.lists(st.text(min_size=1), min_size=1, max_size=3, unique=True).map(tuple),
            height=st.integers(1, 5000),
            width=st.none() | st.integers(1, 5000),
            decoder=st.sampled_from([*DECODERS, "my.module:Decoder"]),
            stride=st.integers(1, 64),
            color=st.sampled_from(COLORS),
            mean=per_channel,
            scale=per_channel,
            background=st.booleans(),
            grid=st.sampled_from(GRIDS),
            flip_shift=st.booleans(),
            fill=st.tuples(NUMBERS, NUMBERS, NUMBERS),
            joint_threshold=st.floats(0, 1),
            layout=st.sampled_from(LAYOUTS),
            decoder_options=st.dictionaries(st.text(), st.none() | NUMBERS | st.text() | st.booleans(), max_size=3),
        )
    )


@given(specs())
def test_a_specification_survives_json(spec: PoseSpec) -> None:
    read = PoseSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert read == spec
    assert hash(read) == hash(spec)


def test_missing_keys_take_their_defaults() -> None:
    assert PoseSpec.from_dict({"height": 256}) == PoseSpec(height=256)


def test_the_skeleton_is_found_by_its_name() -> None:
    assert PoseSpec().joints is OPENPOSE18
    assert PoseSpec(skeleton="coco17").joints is COCO17


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("skeleton", "coco99"), ("decoder", "argmax"), ("color", "grey"),
        ("grid", "middle"), ("layout", "chwn"), ("flip_shift", 1), ("fill", [1, 2]), ("fill", 0),
        ("joint_threshold", float("nan")), ("joint_threshold", "high"), ("decoder_options", [1]),
        ("decoder", "my module:Decoder"), ("decoder", 3), ("mean", [1, 2, 3, 4, 5]), ("mean", []),
        ("outputs", ["a", "a"]), ("background", "yes"), ("height", 0), ("height", "tall"),
        ("height", 368.0), ("height", True), ("stride", -8), ("mean", [1, 2]), ("mean", 128.0), ("scale", [1, 2, "3"]),
        ("scale", [1, 2, float("nan")]), ("outputs", []), ("outputs", [""]), ("outputs", [3]),
        ("width", 0), ("width", 192.0), ("width", True),
    ],
    ids=str,
)  # fmt: skip
def test_invalid_values_are_refused(key: str, value: object) -> None:
    with pytest.raises(CompressError) as caught:
        PoseSpec.from_dict({key: value})
    assert key in str(caught.value) or "can't be read" in str(caught.value)


def test_unknown_keys_are_listed_with_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match=r"\['heigth'\].*height"):
        PoseSpec.from_dict({"heigth": 368})


def test_outputs_are_the_decoders_usual_ones_by_default() -> None:
    assert PoseSpec().outputs == ("heatmaps", "pafs")
    assert PoseSpec(decoder="heatmap").outputs == ("heatmaps",)
    assert PoseSpec(decoder="simcc").outputs == ("simcc_x", "simcc_y")
    assert PoseSpec(decoder="simcc", outputs=("x", "y")).outputs == ("x", "y")
    with pytest.raises(CheckpointError, match="outputs"):
        PoseSpec(decoder="my.module:Decoder")


def test_lists_are_taken_for_tuples() -> None:
    assert PoseSpec(mean=[1.0], scale=[2.0], color="gray") == PoseSpec(mean=(1.0,), scale=(2.0,), color="gray")  # type: ignore[arg-type]


def test_a_custom_skeleton_is_stored_as_a_record() -> None:
    pose = PoseSpec(skeleton=HAND, decoder="heatmap")
    assert pose.joints is HAND
    assert pose.to_dict()["skeleton"]["joints"] == ["wrist", "thumb", "pinky"]
    with pytest.raises(DataError, match="unknown key in a skeleton"):
        PoseSpec.from_dict({"skeleton": {"name": "x", "bones": []}})


def test_sizes_are_height_and_width() -> None:
    assert PoseSpec(height=368).size == (368, 368)
    assert PoseSpec(height=256, width=192).size == (256, 192)


def version1(**changes: object) -> dict[str, object]:
    """A record as version 1 wrote it."""
    return {
        "skeleton": "coco17",
        "decoder": "heatmap",
        "outputs": ["heatmaps"],
        "height": 256,
        "width": 192,
        "stride": 4,
        "color": "rgb",
        "mean": [123.675, 116.28, 103.53],
        "scale": [0.017125, 0.017507, 0.017429],
        "background": False,
        **changes,
    }


PAF = {"skeleton": "openpose18", "decoder": "paf", "outputs": ["heatmaps", "pafs"], "width": None, "stride": 8}
MEAN_BGR = (103.53, 116.28, 123.675)


@pytest.mark.parametrize(
    ("record", "grid", "fill", "threshold", "options"),
    [
        (version1(), "corner", (0.0, 0.0, 0.0), 0.2, {"refine": "quarter"}),
        (version1(stride=1), "centre", (0.0, 0.0, 0.0), 0.2, {"refine": "quarter"}),
        (version1(background=True), "centre", MEAN_BGR, 0.2, {"refine": "cubic"}),
        (version1(background=True, color="bgr"), "centre", MEAN_BGR[::-1], 0.2, {"refine": "cubic"}),
        (version1(**PAF, background=True), "centre", MEAN_BGR, 0.0, {}),
        (version1(**PAF, background=False, color="bgr"), "centre", MEAN_BGR[::-1], 0.0, {}),
    ],
    ids=["top-down", "stride 1", "background rgb", "background bgr", "paf rgb", "paf without background"],
)
def test_version_1_records_get_what_version_1_inferred(
    record: dict[str, object], grid: str, fill: tuple[float, ...], threshold: float, options: dict[str, object]
) -> None:
    pose = PoseSpec.from_dict(record)
    assert (pose.grid, pose.flip_shift) == (grid, grid == "corner")
    assert pose.fill == fill
    assert (pose.joint_threshold, pose.layout, pose.decoder_options) == (threshold, "nchw", options)
    assert {name: value for name, value in pose.to_dict().items() if name in record} == record


def test_a_record_with_any_new_key_is_taken_as_it_is() -> None:
    pose = PoseSpec.from_dict(version1(grid="centre"))
    assert (pose.grid, pose.fill, pose.joint_threshold) == ("centre", PoseSpec().fill, 0.0)


def test_records_without_a_width_are_read() -> None:
    old = {key: value for key, value in version1(**PAF).items() if key != "width"}
    assert PoseSpec.from_dict(old).width is None


def test_the_zoo_says_what_version_1_inferred() -> None:
    for entry in entries():
        record = {name: value for name, value in entry.pose.to_dict().items() if name in version1()}
        assert PoseSpec.from_dict(record) == entry.pose, entry.name


@pytest.mark.parametrize(("grid", "stride", "first"), [("corner", 8, 0.0), ("centre", 8, 3.5), ("centre", 1, 0.0)])
def test_the_first_cell_follows_from_the_grid(grid: str, stride: int, first: float) -> None:
    pose = PoseSpec(grid=grid, stride=stride)
    assert pose.first_cell == first
    assert pose.corner_grid == (grid == "corner")
