"""From scored limbs to people: the assignment of limbs to peaks, and their grouping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from compress.pose.decoders.peaks import Peaks
from compress.pose.skeleton import Skeleton

Indices = NDArray[np.int64]
Assignment = Literal["greedy", "jv"]

#: One assigned limb: peak of its first joint, peak of its second, score.
Connection = tuple[int, int, float]


@dataclass(frozen=True)
class Pairs:
    """Pairs of peaks that could be limbs.

    Attributes
    ----------
    limb : array, shape (N,), int
        Index in the skeleton's limbs, ascending.
    first, second : array, shape (N,), int
        Peaks at the two ends.
    """

    limb: Indices
    first: Indices
    second: Indices

    def keep(self, chosen: NDArray[np.bool_] | Indices | slice) -> Pairs:
        """The pairs that a mask, indices or a slice select."""
        return Pairs(self.limb[chosen], self.first[chosen], self.second[chosen])


@dataclass(frozen=True)
class Limbs:
    """Possible limbs.

    Attributes
    ----------
    pairs : Pairs
        Their ends.
    score : array, shape (N,), float
        Mean agreement with the part-affinity field, above 0.
    """

    pairs: Pairs
    score: NDArray[np.floating]


@dataclass(eq=False)
class Entry:
    """A partly grouped person: peaks by joint (-1 where missing), number of parts and sum of scores."""

    peaks: list[int]
    parts: int = 0
    total: float = 0.0


def candidate_pairs(peaks: Peaks, skeleton: Skeleton) -> Pairs:
    """Every pair of peaks that could be a limb, sorted by limb, first and second peak."""
    index = np.arange(len(peaks.scores))
    groups = [index[start:stop] for start, stop in pairwise(peaks.starts)]
    ends = [(groups[a], groups[b]) for a, b in skeleton.limbs]
    return Pairs(
        np.repeat(np.arange(len(ends)), [len(a) * len(b) for a, b in ends]),
        np.concatenate([np.repeat(a, len(b)) for a, b in ends]),
        np.concatenate([np.tile(b, len(a)) for a, b in ends]),
    )


def assign(limbs: Limbs, skeleton: Skeleton, method: Assignment) -> list[list[Connection]]:
    """The limbs that are chosen: of each kind, no two share an end.

    Parameters
    ----------
    limbs : Limbs
        Candidates.
    skeleton : Skeleton
        Whose limbs they are.
    method : str
        ``"greedy"`` repeatedly takes the best remaining one; of equal ones that with the first peaks. ``"jv"`` takes
        those with the largest sum of scores (Jonker and Volgenant, 1987, as in scipy).

    Returns
    -------
    list of list of (int, int, float)
        For each kind of limb the first peaks, second peaks and scores, best first.
    """
    pairs = limbs.pairs
    order = np.lexsort((-limbs.score, pairs.limb))
    starts = np.searchsorted(pairs.limb, np.arange(len(skeleton.limbs) + 1))
    assigned = []
    for start, stop in pairwise(starts):
        chosen = order[start:stop]
        first, second, score = pairs.first[chosen], pairs.second[chosen], limbs.score[chosen]
        if method == "jv" and len(score):
            best = _best_sum(first, second, score)
            first, second, score = first[best], second[best], score[best]
        assigned.append(list(_one_to_one(first.tolist(), second.tolist(), score.tolist())))
    return assigned


def _one_to_one(first: list[int], second: list[int], score: list[float]) -> Iterator[Connection]:
    used: set[int] = set()  # the two ends are peaks of different joints, so one set holds both
    for connection in zip(first, second, score, strict=True):
        a, b, _ = connection
        if a not in used and b not in used:
            used.update((a, b))
            yield connection


def _best_sum(first: Indices, second: Indices, score: NDArray[np.floating]) -> Indices:
    """Indices of the candidates with the largest sum, ascending."""
    rows, row = np.unique(first, return_inverse=True)
    columns, column = np.unique(second, return_inverse=True)
    gain = np.zeros((len(rows), len(columns)))
    gain[row, column] = score
    chosen = np.zeros(gain.shape, dtype=np.bool_)
    chosen[linear_sum_assignment(gain, maximize=True)] = True
    return np.flatnonzero(chosen[row, column])  # pairs that are no candidates are dropped here


def group(
    connections: Sequence[Sequence[Connection]], scores: NDArray[np.float32], skeleton: Skeleton, *, merge: bool
) -> list[Entry]:
    """Group limbs into people, kind by kind, as the public decoder of lightweight OpenPose does.

    A limb whose first peak belongs to a person extends that person, any other limb starts a new one; both raise the
    number of parts and add the scores of the new peaks and of the limb. Limbs whose second joint is also reached by an
    earlier kind (shoulder to ear) start nobody, add no score, and only fill in missing ends. With ``merge`` such a limb
    merges two people without a common joint, which the public decoder does not do.

    Parameters
    ----------
    connections : sequence of sequences of (int, int, float)
        Assigned limbs of each kind, from `assign`.
    scores : array, shape (P,)
        Heights of the peaks.
    skeleton : Skeleton
        Limbs in the order of grouping: each joint is reached before it is the first joint of a limb.
    merge : bool
        Whether two people may be merged.
    """
    height: list[float] = scores.tolist()
    entries: list[Entry] = []
    owner: dict[int, Entry] = {}
    reached: set[int] = set()
    for (joint_a, joint_b), assigned in zip(skeleton.limbs, connections, strict=True):
        closing = joint_b in reached
        reached.add(joint_b)
        for a, b, score in assigned:
            if closing:
                _close(entries, owner, (joint_a, a), (joint_b, b), merge)
                continue
            entry = owner.get(a)
            if entry is None:
                entry = owner[a] = Entry(peaks=[-1] * len(skeleton.joints), parts=1, total=height[a])
                entry.peaks[joint_a] = a
                entries.append(entry)
            owner[b] = entry
            entry.peaks[joint_b] = b
            entry.parts += 1
            entry.total += height[b] + score
    return entries


def _close(
    entries: list[Entry], owner: dict[int, Entry], first: tuple[int, int], second: tuple[int, int], merge: bool
) -> None:
    """Add a limb both of whose joints, (joint, peak) each, earlier limbs have reached."""
    left, right = owner.get(first[1]), owner.get(second[1])
    if merge and left is not None and right is not None:
        if left is not right and all(a == -1 or b == -1 for a, b in zip(left.peaks, right.peaks, strict=True)):
            left.peaks = [max(a, b) for a, b in zip(left.peaks, right.peaks, strict=True)]
            left.parts += right.parts
            left.total += right.total
            owner.update((peak, left) for peak in right.peaks if peak != -1)
            entries.remove(right)
        return
    for entry, (joint, peak) in ((left, second), (right, first)):
        if entry is not None and entry.peaks[joint] == -1:
            entry.peaks[joint] = peak
            owner.setdefault(peak, entry)
