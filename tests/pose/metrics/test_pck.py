"""PCK by hand, quirks of the public kits included."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from compress.errors import DataError
from compress.pose.metrics.pck import area_under_curve, pck_lsp, pckh_lip, pckh_mpii
from compress.pose.skeleton import LIP16, LSP14, MPII16


def people(count: int, joints: int) -> np.ndarray:
    """People whose joints lie 100 pixels apart in a row."""
    truth = np.full((count, joints, 3), 2.0)
    truth[..., 0] = 100 * np.arange(joints)
    truth[..., 1] = 0
    return truth


def test_mpii_takes_six_tenths_of_the_diagonal_of_the_head() -> None:
    truth = people(1, 16)
    heads = [[0, 0, 30, 40]]  # diagonal 50, head 30, half a head 15
    found = truth.copy()
    found[0, :, 1] = 15
    assert pckh_mpii(found, truth, heads).metrics["PCKh@0.5"] == 1
    found[0, :, 1] = 15.001
    assert pckh_mpii(found, truth, heads).metrics["PCKh@0.5"] == 0


def test_mpii_threshold_of_a_tenth_is_eleven_hundredths() -> None:
    truth = people(1, 16)
    for offset, share in ((3.29, 1), (3.31, 0)):
        found = truth.copy()
        found[0, :, 0] += offset
        assert pckh_mpii(found, truth, [[0, 0, 30, 40]]).metrics["PCKh@0.1"] == share


def test_mpii_mean_counts_joints_without_pelvis_and_thorax() -> None:
    truth = people(2, 16)
    truth[1, 5:] = 0  # the second person has five joints alone, and they are all missed
    found = truth.copy()
    found[0, [6, 7], 1] = 1e6  # pelvis and thorax cost nothing
    found[1, :5, 1] = 1e6
    metrics = pckh_mpii(found, truth, [[0, 0, 30, 40]] * 2).metrics
    assert metrics["PCKh@0.5"] == pytest.approx(14 / 19)
    assert metrics["ankle"] == pytest.approx((1 / 2 + 1) / 2)
    assert metrics["knee"] == pytest.approx(1 / 2)
    assert metrics["head"] == 1
    columns = [metrics[c] for c in ("head", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
    assert metrics["mean of 7"] == pytest.approx(np.mean(columns))


def test_lip_measures_from_neck_to_head_and_pools_joints() -> None:
    truth = people(3, 16)  # neck (8) and head (9) lie 100 apart
    truth[1, 9] = 0  # no head: this person does not count
    truth[2, 1:8] = 0
    found = truth.copy()
    found[0, :, 1] = 50
    found[0, 10, 1] = 50.5
    found[2, 0, 1] = 51
    found[0, [6, 7], 1] = 1e6
    score = pckh_lip(found, truth)
    assert score.people == 2
    # 14 joints of the first person, one missed; 1 + 8 of the third, one missed.
    assert score.metrics["PCKh@0.5"] == pytest.approx((13 + 8) / (14 + 9))
    assert score.metrics["upper body"] == pytest.approx(15 / 16)
    assert score.metrics["head"] == 1
    assert score.metrics["ankle"] == pytest.approx(2 / 3)
    assert "without pelvis and spine" in score.convention


def test_lsp_measures_a_torso_that_can_be_chosen() -> None:
    truth = people(1, 14)
    hip, shoulder = LSP14.joints.index("right_hip"), LSP14.joints.index("left_shoulder")
    torso = 100 * (shoulder - hip)
    found = truth.copy()
    found[0, :, 1] = 0.2 * torso
    score = pck_lsp(found, truth)
    assert score.metrics["PCK@0.2"] == 1
    assert "right_hip to left_shoulder" in score.convention
    assert pck_lsp(found, truth, torso=("left_hip", "right_shoulder")).metrics["PCK@0.2"] == 0
    found[0, LSP14.joints.index("head_top"), 1] += 1
    metrics = pck_lsp(found, truth).metrics
    assert metrics["head"] == 0.5
    assert metrics["PCK@0.2"] == pytest.approx(6.5 / 7)


def test_the_area_under_a_step_is_worked_out_by_hand() -> None:
    # All joints are off by 0.205 heads: 0 up to 0.20, 1 from 0.21 on. Half a trapezoid at the step, then 29 of 0.01.
    truth, heads = people(1, 16), [[0, 0, 30, 40]]
    found = truth.copy()
    found[0, :, 1] = 0.205 * 30
    assert pckh_mpii(found, truth, heads).metrics["AUC"] == pytest.approx((0.5 + 29) * 0.01 / 0.5)
    assert pckh_mpii(truth, truth, heads).metrics["AUC"] == pytest.approx(1)
    # A line from 0 to 1 has the area 1/2, and the limit changes nothing.
    assert area_under_curve(lambda limit: 2 * limit, 0.5) == pytest.approx(0.5)
    assert area_under_curve(lambda limit: 5 * limit, 0.2) == pytest.approx(0.5)


def test_areas_are_those_of_a_plain_count_of_all_thresholds() -> None:
    random = np.random.default_rng(0)
    truth = people(40, 16)
    found = truth.copy()
    found[..., :2] += random.normal(0, 12, (40, 16, 2))
    counted = [joint for joint in range(16) if joint not in (6, 7)]
    distance = np.hypot(*(found - truth)[..., :2].transpose(2, 0, 1))[:, counted]
    for score, size in ((pckh_mpii(found, truth, [[0, 0, 30, 40]] * 40), 30.0), (pckh_lip(found, truth), 100.0)):
        curve = [np.mean(distance <= n / 100 * size) for n in range(51)]
        area = sum((before + after) / 2 for before, after in pairwise(curve)) / 50
        assert score.metrics["AUC"] == pytest.approx(area)
        assert 0.1 < area < 1
    truth, found = truth[:, :14], found[:, :14]
    columns = [[12, 13], [8, 9], [7, 10], [6, 11], [2, 3], [1, 4], [0, 5]]
    distance = np.hypot(*(found - truth)[..., :2].transpose(2, 0, 1))
    torso = 100 * (LSP14.joints.index("left_shoulder") - LSP14.joints.index("right_hip"))
    curve = [np.mean([np.mean(distance[:, c] <= n / 100 * torso) for c in columns]) for n in range(21)]
    area = sum((before + after) / 2 for before, after in pairwise(curve)) / 20
    assert pck_lsp(found, truth).metrics["AUC"] == pytest.approx(area)


def test_people_without_a_head_box_are_left_out() -> None:
    truth = people(2, 16)
    found = truth.copy()
    found[1, :, 1] = 1e6
    score = pckh_mpii(found, truth, [[0, 0, 30, 40], [np.nan] * 4])
    assert (score.people, score.metrics["PCKh@0.5"], score.metrics["AUC"]) == (1, 1, 1)


def test_the_papers_own_means_are_plain_means_of_seven_columns() -> None:
    assert np.mean([97.75, 92.9, 88.5, 86.3, 91.19, 93.0, 92.0]) == pytest.approx(91.66, abs=0.005)


def test_a_joint_that_was_not_found_is_wrong_wherever_it_is_written() -> None:
    truth = people(1, 14)
    found = truth.copy()
    found[..., 2] = 0
    assert pck_lsp(found, truth).metrics["PCK@0.2"] == 0


def test_metrics_without_people_are_minus_one() -> None:
    nobody = np.zeros((0, 16, 3))
    assert pckh_lip(nobody, nobody).metrics["PCKh@0.5"] == -1
    assert pckh_mpii(nobody, nobody, np.zeros((0, 4))).metrics["knee"] == -1


def test_other_shapes_are_refused() -> None:
    truth = people(2, 16)
    with pytest.raises(DataError, match="14 joints"):
        pck_lsp(truth, truth)
    with pytest.raises(DataError, match="box of every head"):
        pckh_mpii(truth, truth, [[0, 0, 1, 1]])
    with pytest.raises(DataError, match="joints of LSP"):
        pck_lsp(people(1, 14), people(1, 14), torso=("nose", "neck"))
    assert MPII16.joints[6:8] == ("pelvis", "thorax")
    assert LIP16.joints[8:10] == ("neck", "head_top")
