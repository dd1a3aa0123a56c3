"""Whether a changed network is as good as the FP32 network: by keypoints, or by its outputs where there are none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.tolerant import readable
from compress.errors import DataError
from compress.evaluation.inputs import calibration_inputs, network_inputs
from compress.evaluation.people import PRESENT, find_people, pose_of
from compress.evaluation.score import EvaluationOptions, evaluate_dataset
from compress.model import Model
from compress.network.inputs import Inputs
from compress.pose.metrics.ap_interval import Matches, ap_difference, average_precision, match_people
from compress.pose.metrics.displacement import areas_of
from compress.pose.metrics.oks import people_records
from compress.pose.prepare import batch_inputs
from compress.pose.skeleton import COCO17
from compress.pose.views import View
from compress.progress import Progress
from compress.runtime.runner import ArrayInputs, Runner

#: Most that may be lost by default: of a score on annotated data, and of AP against the people that the FP32 network
#: finds. The second asks for much more: poses that are as good but not the same lose there too (a network that lost
#: 0.008 against the annotations of 40 images lost 0.14 against its own people).
MAX_DROP, MAX_OWN_DROP = 0.01, 0.2

#: Most relative squared error of the outputs by default, for networks without keypoints.
MAX_OUTPUT_ERROR = 0.05


@dataclass(frozen=True)
class Measured:
    """The score of a network, and the matches that an AP is made of."""

    score: float
    matches: Matches | None = None


class Gate(ABC):
    """Scores networks on the same images, higher being better.

    Attributes
    ----------
    metric : str
        Name of the score.
    against : str
        What the score is measured against.
    own : bool
        Whether that is the FP32 network itself.
    images : int
        Number of images.
    usual_drop : float
        Most that a network may lose by default.
    before : Measured
        The score of the FP32 network.
    """

    metric: str
    against: str
    own: bool
    images: int
    usual_drop: float
    before: Measured

    @abstractmethod
    def measure(self, runner: Runner, what: str) -> Measured:
        """The score of a network; ``what`` describes the work in progress bars."""

    def drop(self, measured: Measured) -> float:
        """How much lower a score is than that of the FP32 network."""
        return self.before.score - measured.score

    def interval(self, measured: Measured) -> tuple[float, float] | None:
        """95 % bootstrap interval over images of the loss; None for scores other than AP."""
        if measured.matches is None or self.before.matches is None:
            return None
        gain = ap_difference(self.before.matches, measured.matches)
        return -gain.high, -gain.low


class PeopleGate(Gate):
    """Scores networks against annotations, or against the people that the FP32 network finds.

    Parameters
    ----------
    dataset : Dataset
        The images.
    first : Runner
        The FP32 network.
    height : int, optional
        Height in pixels that images or crops are scaled to; the network's own by default.
    progress : Progress
        Told of every image.

    Raises
    ------
    DataError
        If the FP32 network finds nobody, or nobody right.
    """

    def __init__(self, dataset: Dataset, first: Runner, height: int | None, progress: Progress) -> None:
        self._dataset, self._view, self._progress = dataset, View(height), progress
        self._ids = [sample.image_id for sample in readable(dataset, progress)]
        self.images = len(dataset)
        self.own = not dataset.annotated
        self.usual_drop = MAX_OWN_DROP if self.own else MAX_DROP
        self.against = "the FP32 network's own people" if self.own else f"the annotations of {dataset.name}"
        self.metric = "AP"
        self._truth: dict[str, Any] = {}
        if self.own:
            self._truth = own_people(self._find(first, "people of the FP32 network"), self._ids)
        self.before = self.measure(first, "score in FP32")
        if not self.before.score > 0:
            raise DataError(
                "INT8 can't be judged on these images: in FP32 the network detects no person correctly",
                found=f"{self.metric} {self.before.score:.3f} on {dataset.name}",
                hint="Use images with people, and a network that finds them; fine-tune a factorized one first",
            )

    def measure(self, runner: Runner, what: str) -> Measured:
        """The score of a network."""
        if self.own:
            results: Sequence[Mapping[str, Any]] = self._find(runner, what)
        else:
            options = EvaluationOptions(view=self._view, strict=False)
            with self._progress.bar(what, self.images) as advance:
                found = evaluate_dataset(self._dataset, runner, options, progress=lambda *_: advance(1))
            self.metric, score = found.score.headline
            if self._dataset[0].skeleton != COCO17.name:
                return Measured(score)
            results, self._truth = found.detections, self._truth or self._dataset.ground_truth()
        matches = match_people(self._truth, results, self._ids)
        return Measured(average_precision(matches), matches)

    def _find(self, runner: Runner, what: str) -> list[dict[str, Any]]:
        results = []
        with self._progress.bar(what, self.images) as advance:
            for sample in readable(self._dataset):
                people = find_people(runner, sample, view=self._view)
                results += people_records(people, sample.image_id, pose_of(runner).joints)
                advance(1)
        return results


class OutputGate(Gate):
    """Scores networks by how close their outputs are to those of the FP32 network: 1 less the relative squared error.

    Parameters
    ----------
    inputs : sequence of arrays, or of tuples of arrays
        What the networks read.
    first : Runner
        The FP32 network.
    """

    metric = "output fidelity"
    against = "the FP32 network's own outputs"
    own = True
    usual_drop = MAX_OUTPUT_ERROR

    def __init__(self, inputs: Sequence[ArrayInputs], first: Runner) -> None:
        self._inputs = inputs
        self.images = len(inputs)
        self._wanted = [first.run(given) for given in inputs]
        self.before = Measured(1.0)

    def measure(self, runner: Runner, what: str) -> Measured:
        """The score of a network."""
        found = [runner.run(given) for given in self._inputs]
        errors = []
        for name, first in self._wanted[0].items():
            if not np.issubdtype(first.dtype, np.floating):
                continue
            pairs = [(a[name].astype(np.float64), b[name]) for a, b in zip(self._wanted, found, strict=True)]
            energy = sum(float(np.square(a).sum()) for a, _ in pairs)
            errors.append(sum(float(np.square(a - b).sum()) for a, b in pairs) / max(energy, 1e-30))
        return Measured(1 - float(np.mean(errors)) if errors else 1.0)


def open_gate(
    images: Dataset | Tensors, model: Model, first: Runner, height: int | None, count: int, progress: Progress
) -> Gate:
    """The gate for a network: keypoints where it has them and the images are images, else its outputs."""
    if model.pose is None or isinstance(images, Tensors):
        return OutputGate(arrays_of(calibration_inputs(images, model, count, height, progress)), first)
    return PeopleGate(images, first, height, progress)


def arrays_of(inputs: Sequence[Inputs]) -> list[ArrayInputs]:
    """Tensors as arrays."""
    return [tuple(part.numpy() for part in given) if isinstance(given, tuple) else given.numpy() for given in inputs]


def own_people(results: Sequence[Mapping[str, Any]], image_ids: Sequence[int]) -> dict[str, Any]:
    """Found people as annotations: joints with a score of at least `PRESENT` count as visible."""
    annotations: list[dict[str, Any]] = []
    for found in results:
        keypoints = np.array(found["keypoints"]).reshape(-1, 3)
        there = keypoints[:, 2] >= PRESENT
        if not there.any():
            continue
        keypoints[:, 2] = np.where(there, 2, 0)
        low, high = keypoints[there, :2].min(axis=0), keypoints[there, :2].max(axis=0)
        annotations.append(
            {
                "id": len(annotations) + 1,
                "image_id": found["image_id"],
                "category_id": found["category_id"],
                "keypoints": keypoints.ravel().tolist(),
                "num_keypoints": int(there.sum()),
                "area": float(areas_of(keypoints[None], there[None])[0]),
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "iscrowd": 0,
            }
        )
    return {"images": [{"id": number} for number in image_ids], "annotations": annotations}


def people_inputs(
    dataset: Dataset, runner: Runner, height: int | None, count: int, progress: Progress | None = None
) -> list[ArrayInputs]:
    """Network inputs of the first images with people, each with a batch of one.

    Annotations say where there are people; without them the network itself does.

    Raises
    ------
    DataError
        If no image shows a person.
    """
    pose, view = pose_of(runner), View(height)
    inputs: list[ArrayInputs] = []
    for sample in readable(dataset, progress):
        there = bool(sample.people)
        if not dataset.annotated:
            found = find_people(runner, sample, view=view)
            there = any((person.keypoints[:, 2] >= PRESENT).any() for person in found)
        if there:
            inputs += [batch_inputs([array], pose) for array in network_inputs(sample, pose, view)]
        if len(inputs) >= count:
            break
    if not inputs:
        raise DataError("no person was detected in the calibration images", found=dataset.name)
    return inputs[:count]
