"""Share of joints found within a distance (PCK): MPII's and LIP's PCKh, LSP's PCK, each with its public conventions.

Positions start at 0, as everywhere here; the public kit of MPII adds 1 to both sides, which changes no distance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from compress.errors import DataError
from compress.pose.skeleton import LIP16, LSP14, MPII16, Skeleton

#: Joints of each column in tables of results.
GROUPS = {
    "head": ("head_top",),
    "shoulder": ("left_shoulder", "right_shoulder"),
    "elbow": ("left_elbow", "right_elbow"),
    "wrist": ("left_wrist", "right_wrist"),
    "hip": ("left_hip", "right_hip"),
    "knee": ("left_knee", "right_knee"),
    "ankle": ("left_ankle", "right_ankle"),
}

#: MPII's head size is this share of the diagonal of the head's box.
HEAD_SHARE = 0.6

#: The torso of LSP in the common evaluation kit (joints 3 and 10 of its list).
TORSO = ("right_hip", "left_shoulder")

#: Distance of neighbouring thresholds of a curve.
CURVE_STEP = 0.01


@dataclass(frozen=True)
class Pck:
    """Shares of joints that were found.

    Attributes
    ----------
    convention : str
        How they were computed.
    metrics : dict of str to float
        From 0 to 1, the headline first; -1 where no joint is annotated, as in COCO's evaluation.
    people : int
        People with a reference length.
    """

    convention: str
    metrics: dict[str, float]
    people: int


def area_under_curve(share: Callable[[float], float], limit: float) -> float:
    """Area under the curve of a share of found joints over thresholds, as MPII's evaluation computes it.

    The thresholds are 0, 0.01, 0.02, ..., limit; their range is scaled to 0 to 1, and the area is that of the
    trapezoids between them, so that a curve of all ones has the area 1 (Andriluka et al. 2014, public kit).

    Parameters
    ----------
    share : callable
        The share at a threshold.
    limit : float
        The last threshold, such as 0.5 for PCKh@0.5.

    Returns
    -------
    float
        From 0 to 1; NaN where the share is.
    """
    thresholds = np.linspace(0, limit, round(limit / CURVE_STEP) + 1)
    values = [share(float(threshold)) for threshold in thresholds]
    return float(np.trapezoid(values, thresholds) / limit)


def pckh_mpii(found: ArrayLike, truth: ArrayLike, head_boxes: ArrayLike) -> Pck:
    """PCKh@0.5 as the public validation code of MPII computes it, including its peculiarities.

    A joint is found if it is no further than half a head from its position, a head being 0.6 times the diagonal of the
    head's box (Andriluka et al., 2014). Joints that are not annotated are left out. The mean weights each joint by how
    often it is annotated and leaves out pelvis and thorax. ``PCKh@0.1`` takes the twelfth of the thresholds 0, 0.01,
    0.02, ..., which is 0.11. ``mean of 7`` is the plain mean of the seven columns, which some papers report. ``AUC`` is
    the area under the curve of the mean up to 0.5 (`area_under_curve`).

    Parameters
    ----------
    found : array, shape (N, 16, 3)
        x, y and score; a joint with a score of 0 was not found.
    truth : array, shape (N, 16, 3)
        x, y and visibility; a joint with visibility 0 is not annotated.
    head_boxes : array, shape (N, 4)
        Left, upper, right and lower edge of the heads.

    Raises
    ------
    DataError
        If the arrays have other shapes.
    """
    points, people = _check(found, truth, MPII16)
    corners = np.asarray(head_boxes, dtype=np.float64)
    if corners.shape != (len(people), 4):
        raise DataError("MPII's PCKh needs the box of every head", found=corners.shape)
    size = HEAD_SHARE * np.linalg.norm(corners[:, 2:] - corners[:, :2], axis=1)
    errors = _errors(points, people, size)
    counted = np.array([joint not in ("pelvis", "thorax") for joint in MPII16.joints])
    labelled = (people[..., 2] > 0) & np.isfinite(size)[:, None]
    share, fine = (_shares(errors, labelled, limit) for limit in (0.5, float(np.arange(0, 0.51, 0.01)[11])))
    weight = labelled.sum(axis=0) * counted
    metrics = {"PCKh@0.5": _mean(share, weight), "PCKh@0.1": _mean(fine, weight)}
    columns = {name: _plain([share[MPII16.joints.index(j)] for j in joints]) for name, joints in GROUPS.items()}
    auc = area_under_curve(lambda limit: _mean(_shares(errors, labelled, limit), weight), 0.5)
    metrics |= columns | {"mean of 7": _plain(list(columns.values())), "AUC": auc}
    convention = (
        "MPII PCKh@0.5: head size 0.6 x diagonal of the head box, mean over joints by their number without pelvis and "
        "thorax; PCKh@0.1 at 0.11 as in the public code; AUC of the mean from 0 to 0.5"
    )
    return Pck(convention, _numbers(metrics), int(np.isfinite(size).sum()))


def pckh_lip(found: ArrayLike, truth: ArrayLike) -> Pck:
    """PCKh@0.5 of Look Into Person, as its public ``calc_pckh`` computes it.

    A head is the distance from the neck to the top of the head, without a factor; people without both are left out. The
    average pools all annotated joints except pelvis and spine, the upper body those from the neck on. ``AUC`` is the
    area under the curve of the average up to 0.5 (`area_under_curve`).

    Parameters
    ----------
    found, truth : array, shape (N, 16, 3)
        As for `pckh_mpii`.
    """
    points, people = _check(found, truth, LIP16)
    size = _span(people, LIP16, "neck", "head_top")
    labelled = (people[..., 2] > 0) & np.isfinite(size)[:, None]
    errors = _errors(points, people, size)
    upper = np.arange(len(LIP16.joints)) >= LIP16.joints.index("neck")
    counted = upper | (np.arange(len(LIP16.joints)) < LIP16.joints.index("pelvis"))

    def pooled(chosen: NDArray[np.bool_], limit: float = 0.5) -> float:
        number = int(labelled[:, chosen].sum())
        good = labelled & (errors <= limit)
        return float(good[:, chosen].sum() / number) if number else float("nan")

    metrics = {"PCKh@0.5": pooled(counted)}
    for name, joints in ({**GROUPS, "head": ("neck", "head_top")}).items():
        metrics[name] = pooled(np.isin(LIP16.joints, joints))
    metrics["upper body"] = pooled(upper)
    metrics["AUC"] = area_under_curve(lambda limit: pooled(counted, limit), 0.5)
    convention = "LIP PCKh@0.5: head size from neck to head top, joints pooled without pelvis and spine"
    return Pck(convention, _numbers(metrics), int(np.isfinite(size).sum()))


def pck_lsp(found: ArrayLike, truth: ArrayLike, *, torso: tuple[str, str] = TORSO, threshold: float = 0.2) -> Pck:
    """PCK@0.2 of Leeds Sports Pose, person-centric.

    A joint is found if it is no further from its position than the threshold times the torso, the distance between a
    hip and the opposite shoulder. The head's column is the mean of neck and head top, the mean that of the columns.
    ``AUC`` is the area under the curve of the mean up to the threshold (`area_under_curve`).

    Parameters
    ----------
    found, truth : array, shape (N, 14, 3)
        As for `pckh_mpii`.
    torso : (str, str), optional
        The two joints between which the torso is measured; people without both are left out.
    threshold : float, optional
        Share of the torso.

    Raises
    ------
    DataError
        If the arrays have other shapes, or the torso's joints are not those of LSP.
    """
    points, people = _check(found, truth, LSP14)
    if not set(torso) <= set(LSP14.joints):
        raise DataError("the torso must be measured between two joints of LSP", found=torso)
    size = _span(people, LSP14, *torso)
    labelled = (people[..., 2] > 0) & np.isfinite(size)[:, None]
    errors = _errors(points, people, size)
    groups: Mapping[str, tuple[str, ...]] = {**GROUPS, "head": ("neck", "head_top")}

    def columns_at(limit: float) -> dict[str, float]:
        share = _shares(errors, labelled, limit)
        return {name: _plain([share[LSP14.joints.index(j)] for j in joints]) for name, joints in groups.items()}

    columns = columns_at(threshold)
    auc = area_under_curve(lambda limit: _plain(list(columns_at(limit).values())), threshold)
    convention = (
        f"LSP PCK@{threshold:g}: person-centric, torso from {torso[0]} to {torso[1]}, plain mean of seven columns"
    )
    metrics = {f"PCK@{threshold:g}": _plain(list(columns.values())), **columns, "AUC": auc}
    return Pck(convention, _numbers(metrics), int(np.isfinite(size).sum()))


def _check(found: ArrayLike, truth: ArrayLike, skeleton: Skeleton) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points, people = (np.asarray(a, dtype=np.float64) for a in (found, truth))
    expected = (len(skeleton.joints), 3)
    if people.ndim != 3 or people.shape[1:] != expected or points.shape != people.shape:
        raise DataError(f"PCK compares as many people with {expected[0]} joints of x, y and visibility",
                        found=(points.shape, people.shape))  # fmt: skip
    return points, people


def _span(people: NDArray[np.float64], skeleton: Skeleton, first: str, second: str) -> NDArray[np.float64]:
    """Distance of two annotated joints of each person, NaN where one is missing or they coincide."""
    a, b = (people[:, skeleton.joints.index(joint)] for joint in (first, second))
    length = np.linalg.norm(a[:, :2] - b[:, :2], axis=1)
    return np.where((a[:, 2] > 0) & (b[:, 2] > 0) & (length > 0), length, np.nan)


def _errors(found: NDArray[np.float64], truth: NDArray[np.float64], size: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances in units of the reference length; infinite for joints that were not found."""
    distance = np.linalg.norm(found[..., :2] - truth[..., :2], axis=-1) / size[:, None]
    return np.where(found[..., 2] > 0, distance, np.inf)


def _shares(errors: NDArray[np.float64], labelled: NDArray[np.bool_], limit: float) -> NDArray[np.float64]:
    """For each joint the share of its annotations that were found, NaN without any."""
    number = labelled.sum(axis=0)
    good = (labelled & (errors <= limit)).sum(axis=0)
    return np.where(number > 0, good / np.maximum(number, 1), np.nan)


def _mean(values: NDArray[np.float64], weight: NDArray[np.int64]) -> float:
    return float(np.nansum(values * weight) / weight.sum()) if weight.sum() else float("nan")


def _numbers(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value if np.isfinite(value) else -1.0 for name, value in metrics.items()}


def _plain(values: list[float]) -> float:
    return float(np.mean(values))
