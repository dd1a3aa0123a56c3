"""OKS by hand, and average precision against pycocotools."""

from __future__ import annotations

import contextlib
import copy
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from compress.errors import DataError
from compress.pose.decoders.base import Pose
from compress.pose.metrics.oks import METRICS, keypoint_ap, oks, people_records
from compress.pose.skeleton import COCO17, OPENPOSE18, convert_keypoints

Record = dict[str, Any]


def reference_eval(truth: Record, results: list[Record], image_ids: list[int] | None = None) -> COCOeval:
    """pycocotools, run in full."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def scene(
    seed: int, images: int, people: int, detections: int, spread: float, ties: bool
) -> tuple[Record, list[Record]]:
    """Annotated and found people with every case that matters: crowds, no keypoints, all sizes, empty images."""
    rng = np.random.default_rng(seed)
    annotations: list[Record] = []
    results: list[Record] = []
    for image_id in range(1, images + 1):
        bodies = []
        for _ in range(rng.integers(0, people + 1)):
            size = float(np.exp(rng.uniform(np.log(12), np.log(220))))
            low = rng.uniform(0, 400, 2)
            points = low + size * rng.random((17, 2))
            visible = rng.integers(0, 3, 17) * (rng.random() > 0.15)
            crowd = rng.random() < 0.1
            keypoints = np.column_stack([points, visible]) * (visible[:, None] > 0) * (not crowd)
            bodies.append((points, size))
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image_id, "category_id": 1, "iscrowd": int(crowd),
                    "keypoints": keypoints.ravel().tolist(), "num_keypoints": int((keypoints[:, 2] > 0).sum()),
                    "bbox": [*low.tolist(), size, size], "area": size * size * float(rng.uniform(0.3, 1)),
                }
            )  # fmt: skip
        for _ in range(rng.integers(0, detections + 1)):
            points, size = bodies[rng.integers(len(bodies))] if bodies and rng.random() < 0.8 else (
                rng.uniform(0, 400, (17, 2)), 50.0)  # fmt: skip
            moved = points + rng.normal(0, spread * size, (17, 2))
            score = float(rng.integers(1, 4)) if ties else float(rng.random())
            results.append(
                {
                    "image_id": image_id, "category_id": 1, "score": score,
                    "keypoints": np.column_stack([moved, np.ones(17)]).ravel().tolist(),
                }
            )  # fmt: skip
    truth = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 600, "width": 600} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO17.joints), "skeleton": []}],
    }
    return truth, results


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 6),
    people=st.integers(1, 6),
    detections=st.sampled_from([2, 8, 45]),
    spread=st.sampled_from([0.0, 0.03, 0.1, 0.4]),
    ties=st.booleans(),
)
def test_all_ten_numbers_equal_those_of_pycocotools(
    seed: int, images: int, people: int, detections: int, spread: float, ties: bool
) -> None:
    truth, results = scene(seed, images, people, detections, spread, ties)
    ours = keypoint_ap(truth, results)
    assert tuple(ours) == METRICS
    if results:  # pycocotools can't read an empty list
        assert np.allclose(list(ours.values()), reference_eval(truth, results).stats, rtol=0, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_some_images_alone_equal_pycocotools_on_those(seed: int, data: st.DataObject) -> None:
    truth, results = scene(seed, 6, 4, 6, 0.05, ties=False)
    chosen = data.draw(st.sets(st.integers(1, 6), min_size=1))
    ours = keypoint_ap(truth, results, chosen)
    if results:
        assert np.allclose(list(ours.values()), reference_eval(truth, results, list(chosen)).stats, rtol=0, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), spread=st.sampled_from([0.0, 0.05, 0.3]))
def test_oks_equals_that_of_pycocotools(seed: int, spread: float) -> None:
    truth, results = scene(seed, 1, 5, 12, spread, ties=False)
    if not results or not truth["annotations"]:
        return
    theirs = np.array(reference_eval(truth, results).ious[1, 1])
    results.sort(key=lambda result: -result["score"])
    ours = oks(
        np.array([r["keypoints"] for r in results]).reshape(-1, 17, 3),
        np.array([a["keypoints"] for a in truth["annotations"]]).reshape(-1, 17, 3),
        [a["area"] for a in truth["annotations"]],
        [a["bbox"] for a in truth["annotations"]],
    )
    assert ours.shape == (len(results), len(truth["annotations"]))
    assert np.allclose(ours, theirs, rtol=0, atol=1e-12)


def body(visible: float = 2) -> NDArray[np.float64]:
    return np.column_stack([np.arange(17.0) * 10, np.arange(17.0) * 5, np.full(17, visible)])


BOX = (0.0, 0.0, 160.0, 80.0)


def test_oks_of_a_moved_joint_is_the_gaussian_of_its_sigma() -> None:
    moved = body()
    assert oks([moved], [body()], [900.0], [BOX])[0, 0] == 1
    for joint in (0, 11, 16):
        moved = body()
        moved[joint, :2] += (3, 4)
        expected = (16 + math.exp(-25 / (2 * (2 * COCO17.sigmas[joint]) ** 2 * 900))) / 17
        assert math.isclose(oks([moved], [body()], [900.0], [BOX])[0, 0], expected, rel_tol=1e-12)


def test_only_labelled_joints_count() -> None:
    truth, found = body(), body()
    found[5:, :2] += 1000
    truth[5:, 2] = 0
    assert oks([found], [truth], [900.0], [BOX])[0, 0] == 1
    truth[5, 2] = 1
    assert math.isclose(oks([found], [truth], [900.0], [BOX])[0, 0], 5 / 6, rel_tol=1e-12)


def test_without_labelled_joints_the_doubled_box_counts() -> None:
    truth = np.zeros((17, 3))
    inside, outside = np.zeros((17, 2)), np.zeros((17, 2))
    inside[:] = (-160, 160)  # the corners of the box, enlarged by its own size on each side
    outside[:] = (320 + 30, 160 + 40)
    found = oks([inside, outside], [truth], [2500.0], [BOX])
    assert found[0, 0] == 1
    expected = np.mean([math.exp(-2500 / (2 * (2 * sigma) ** 2 * 2500)) for sigma in COCO17.sigmas])
    assert math.isclose(found[1, 0], expected, rel_tol=1e-12)


def test_oks_of_nobody_is_empty() -> None:
    nobody = np.zeros((0, 17, 3))
    assert oks(nobody, [body()], [1.0], [BOX]).shape == (0, 1)
    assert oks([body()], nobody, [], np.zeros((0, 4))).shape == (1, 0)


def person(image_id: int, number: int) -> Record:
    keypoints = body() + np.array([100 * number, 0, 0])
    return {
        "id": number + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0, "num_keypoints": 17,
        "keypoints": keypoints.ravel().tolist(), "bbox": [100.0 * number, 0, 160, 80], "area": 96.0**2 + 1,
    }  # fmt: skip


def record(*people: Record, images: int = 2) -> Record:
    truth, _ = scene(0, images, 1, 0, 0, ties=False)
    return truth | {"annotations": list(people)}


def result(image_id: int, number: int, score: float) -> Record:
    return {"image_id": image_id, "category_id": 1, "score": score, "keypoints": person(image_id, number)["keypoints"]}


def test_finding_all_scores_one_and_finding_nobody_scores_zero() -> None:
    truth = record(person(1, 0), person(1, 1))
    found = keypoint_ap(truth, [result(1, 0, 0.9), result(1, 1, 0.8)])
    assert all(math.isclose(found[name], 1) for name in METRICS if not name.endswith("M"))
    assert found["APM"] == found["ARM"] == -1  # nobody is of medium size
    nothing = keypoint_ap(truth, [])
    assert all(nothing[name] == 0 for name in METRICS if not name.endswith("M"))
    assert set(keypoint_ap(record(), []).values()) == {-1}
    assert set(keypoint_ap(record(), [result(1, 0, 0.9)]).values()) == {-1}


def test_people_found_where_there_are_none_count_if_the_image_is_scored() -> None:
    truth = record(person(1, 0))
    results = [result(1, 0, 0.5), result(2, 0, 0.9)]
    assert math.isclose(keypoint_ap(truth, results)["AP"], 0.5)
    assert math.isclose(keypoint_ap(truth, results, [1, 2])["AP"], 0.5)
    assert math.isclose(keypoint_ap(truth, results, [1])["AP"], 1)
    assert keypoint_ap(truth, results, [2])["AP"] == -1


def test_missing_one_of_two_is_half_the_recall() -> None:
    found = keypoint_ap(record(person(1, 0), person(2, 1)), [result(2, 1, 0.1)])
    assert math.isclose(found["AR"], 0.5)
    assert math.isclose(found["AP"], 51 / 101)  # precision 1 up to recall 0.5, at 51 of the 101 points


def test_images_that_are_not_listed_are_refused() -> None:
    truth = record(person(1, 0))
    with pytest.raises(DataError, match=r"do not list.*\[9\]"):
        keypoint_ap(truth, [result(9, 0, 1.0)])
    with pytest.raises(DataError, match=r"do not list.*\[9\]"):
        keypoint_ap(truth, [], [1, 9])
    with pytest.raises(DataError, match="no images"):
        keypoint_ap(truth, [], [])


def test_scoring_leaves_its_inputs_unchanged_and_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    truth, results = scene(3, 4, 4, 6, 0.05, ties=False)
    before = copy.deepcopy((truth, results))
    keypoint_ap(truth, results)
    assert (truth, results) == before
    assert capfd.readouterr() == ("", "")


def test_results_have_the_joints_of_coco_without_the_neck() -> None:
    keypoints = np.random.default_rng(0).uniform(1, 99, (18, 3)).astype(np.float32)
    keypoints[OPENPOSE18.joints.index("left_ankle")] = 0
    first, second = people_records([Pose(keypoints, 2.5), Pose(keypoints * 2, 1.5)], 42, OPENPOSE18)
    assert first["image_id"] == second["image_id"] == 42
    assert (first["score"], second["score"]) == (2.5, 1.5)
    assert first["category_id"] == 1
    back = np.array(first["keypoints"], np.float32).reshape(17, 3)
    assert np.array_equal(back, convert_keypoints(keypoints, OPENPOSE18, COCO17))
    assert back[COCO17.joints.index("left_ankle")].tolist() == [0, 0, 0]
    assert (back.any(axis=1)).sum() == 16
    assert all(type(value) is float for value in first["keypoints"])
    assert people_records([], 1, OPENPOSE18) == []
