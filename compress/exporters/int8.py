"""INT8 with a gate in keypoints: quantize, score, keep what hurts in floating point until it is met, or refuse."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.data.sample import Dataset
from compress.data.tolerant import readable
from compress.errors import CompressError, DataError
from compress.evaluation.score import SEEN, detect_people, evaluate, network_inputs
from compress.exporters.ir_layers import first_layers, has_gates, head_layers, is_quantised, layer_labels, layers_of
from compress.exporters.quantise import Array, layer_errors, quantise
from compress.exporters.to_openvino import SECTION, write_ir
from compress.pose.metrics.ap_interval import Matches, ap_difference, average_precision, match_people
from compress.pose.metrics.displacement import areas_of
from compress.pose.metrics.oks import coco_results
from compress.pose.skeleton import COCO17
from compress.progress import Progress
from compress.runtime.opening import open_runner
from compress.runtime.openvino_runner import shared_core
from compress.runtime.runner import Runner

#: Most that may be lost by default: of a score on annotated data, and of AP against the people that the network itself
#: finds in floating point. The second asks for much more: poses that are as good but not the same lose there too (a
#: network that lost 0.008 against the annotations of 40 images lost 0.14 against its own people).
MAX_DROP, MAX_OWN_DROP = 0.01, 0.2

#: Shares of the layers that stay in floating point after heads and first convolution, tried in turn.
WORST = (0.05, 0.1, 0.2, 0.4)

#: Images on which layers are tried one by one.
TRIED_ON = 2


@dataclass(frozen=True)
class Trial:
    """One choice of layers that stay in floating point.

    Attributes
    ----------
    what : str
        The choice in words.
    keep : tuple of str
        Names of their operations.
    symmetric : bool
        Whether activations have symmetric steps.
    score : float
        Of the network with all others in eight bits; nan before it is measured.
    """

    what: str
    keep: tuple[str, ...]
    symmetric: bool = False
    score: float = math.nan


@dataclass(frozen=True)
class Held:
    """What a network scores, and what the score is made of."""

    score: float
    matches: Matches | None


class Judge:
    """Scores networks on the same images: against annotations, or against the people that a first network finds.

    Parameters
    ----------
    dataset : Dataset
        The images.
    first : Runner
        The network in floating point.
    height : int, optional
        Height in pixels that images or crops are scaled to; the network's own by default.
    progress : Progress
        Told of every image.

    Raises
    ------
    DataError
        If the first network finds nobody, or nobody right.
    """

    def __init__(self, dataset: Dataset, first: Runner, height: int | None, progress: Progress) -> None:
        self._dataset, self._height, self._progress = dataset, height, progress
        self._ids = [sample.image_id for sample in readable(dataset, progress)]
        self.own = not dataset.annotated
        self.metric, self._truth = "AP", {}
        if self.own:
            self._truth = own_people(self._detect(first, "people of the FP32 network"), self._ids)
        self.before = self.hold(first, "score in FP32")
        if not self.before.score > 0:
            raise DataError(
                "there is nothing to hold eight bits against: in floating point the network finds nobody right",
                found=f"{self.metric} {self.before.score:.3f} on {dataset.name}",
                hint="Use images with people, and a network that finds them; fine-tune a factorized one first",
            )

    @property
    def against(self) -> str:
        """What scores are about."""
        return "the FP32 network's own people" if self.own else f"the annotations of {self._dataset.name}"

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self._dataset)

    def hold(self, runner: Runner, what: str) -> Held:
        """The score of a network."""
        if self.own:
            results = self._detect(runner, what)
        else:
            with self._progress.bar(what, self.images) as advance:
                found = evaluate(self._dataset, runner, height=self._height, progress=lambda *_: advance(1))
            self.metric, score = found.score.headline
            if self._dataset[0].skeleton != COCO17.name:
                return Held(score, None)
            results, self._truth = found.detections, self._truth or self._dataset.ground_truth()
        matches = match_people(self._truth, results, self._ids)
        return Held(average_precision(matches), matches)

    def drop(self, held: Held) -> float:
        """By how much a score is lower than that of the first network."""
        return self.before.score - held.score

    def interval(self, held: Held) -> tuple[float, float] | None:
        """95 % bootstrap interval over images of what a network loses; None for scores other than AP."""
        if held.matches is None or self.before.matches is None:
            return None
        gain = ap_difference(self.before.matches, held.matches)
        return -gain.high, -gain.low

    def _detect(self, runner: Runner, what: str) -> list[dict[str, Any]]:
        results = []
        with self._progress.bar(what, self.images) as advance:
            for sample in readable(self._dataset):
                people = detect_people(runner, sample, height=self._height)
                results += coco_results(people, sample.image_id, runner.pose.joints)
                advance(1)
        return results


def own_people(results: Sequence[dict[str, Any]], image_ids: Sequence[int]) -> dict[str, Any]:
    """Found people as annotations: joints with a score of at least `SEEN` count as visible."""
    annotations: list[dict[str, Any]] = []
    for found in results:
        keypoints = np.array(found["keypoints"]).reshape(-1, 3)
        there = keypoints[:, 2] >= SEEN
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


def people_images(
    dataset: Dataset, runner: Runner, height: int | None, count: int, progress: Progress | None = None
) -> list[Array]:
    """The first images with people, as the network is fed them, each (1, 3, H, W).

    Where there are annotations they tell who is there, else the network itself.

    Raises
    ------
    DataError
        If there is nobody in any image.
    """
    inputs: list[Array] = []
    for sample in readable(dataset, progress):
        there = bool(sample.people)
        if not dataset.annotated:
            found = detect_people(runner, sample, height=height)
            there = any((person.keypoints[:, 2] >= SEEN).any() for person in found)
        if there:
            inputs += [array[None] for array in network_inputs(sample, runner.pose, height)]
        if len(inputs) >= count:
            break
    if not inputs:
        raise DataError("there are no people to calibrate eight bits with", found=dataset.name)
    return inputs[:count]


def choices(model: Any, images: Sequence[Array], outputs: Sequence[str], progress: Progress) -> Iterator[Trial]:
    """What to keep in floating point, more each time; layers are ranked only once it comes to that."""
    if has_gates(model):
        yield Trial("nothing, steps symmetric", (), symmetric=True)
    yield Trial("nothing", ())
    heads = head_layers(model, outputs)
    yield Trial("heads", heads)
    ends = tuple(dict.fromkeys((*heads, *first_layers(model, outputs))))
    yield Trial("heads and first convolution", ends)
    names = [op.get_friendly_name() for op in layers_of(model, outputs)]
    with progress.bar("layers one by one", len(names)) as advance:
        errors = layer_errors(model, images[:TRIED_ON], outputs=outputs, progress=advance)
    ranked = sorted((name for name in names if name not in ends), key=lambda name: -errors[name])
    for count in sorted({math.ceil(share * len(ranked)) for share in WORST} - {0}):
        yield Trial(f"heads, first convolution and the {count} layer(s) that hurt most", (*ends, *ranked[:count]))


def quantise_checked(
    onnx_path: Path,
    path: Path,
    *,
    calibration: Dataset,
    validation: Dataset,
    count: int,
    height: int | None,
    max_drop: float | None,
    threads: int | None,
    progress: Progress,
) -> dict[str, Any]:
    """Write an ONNX file of ours as OpenVINO IR in eight bits that keeps its score, or nothing.

    Parameters
    ----------
    onnx_path : Path
        A file that `compress.exporters.to_onnx.export_onnx` wrote.
    path : Path
        The ``.xml`` file; what stands there is replaced.
    calibration, validation : Dataset
        Where images to calibrate with come from, and where the result is judged.
    count : int
        Most images to calibrate with.
    height : int, optional
        Height that images or crops are scaled to, for both; the network's own by default.
    max_drop : float, optional
        Most that may be lost; `MAX_DROP` or `MAX_OWN_DROP` by default.
    threads : int, optional
        Of the runtime.
    progress : Progress
        Told of every step.

    Returns
    -------
    dict
        The record: layers in floating point, scores before and after, every trial.

    Raises
    ------
    CompressError
        If no trial loses so little.
    """
    import openvino

    with tempfile.TemporaryDirectory(prefix="compress-int8-") as folder:
        whole, attempt = Path(folder) / "fp32.xml", Path(folder) / "int8.xml"
        write_ir(onnx_path, whole)
        model = shared_core().read_model(whole)
        original = open_runner(whole, threads=threads)
        try:
            outputs, tall = original.pose.outputs, height or original.pose.height
            images = people_images(calibration, original, height, count, progress)
            judge = Judge(validation, original, height, progress)
        finally:
            original.close()
        limit = max_drop if max_drop is not None else MAX_OWN_DROP if judge.own else MAX_DROP
        trials: list[Trial] = []
        for choice in choices(model, images, outputs, progress):
            if trials and (choice.keep, choice.symmetric) == (trials[-1].keep, trials[-1].symmetric):
                continue
            progress.say(f"eight bits, in floating point: {choice.what}")
            quantised = quantise(model, images, keep=choice.keep, outputs=outputs, symmetric=choice.symmetric)
            openvino.save_model(quantised, attempt, compress_to_fp16=False)
            runner = open_runner(attempt, threads=threads)
            try:
                held = judge.hold(runner, "score in INT8")
            finally:
                runner.close()
            trials.append(replace(choice, score=held.score))
            if judge.drop(held) <= limit:
                break
        else:
            raise _refusal(judge, trials, limit, len(images))
        labels = layer_labels(model)
        layers = layers_of(quantised, outputs)
        record = {
            "metric": judge.metric,
            "against": judge.against,
            "own": judge.own,
            "images": judge.images,
            "height": tall,
            "calibration_images": len(images),
            "before": judge.before.score,
            "after": held.score,
            "drop": judge.drop(held),
            "interval": judge.interval(held),
            "max_drop": limit,
            "symmetric": choice.symmetric,
            "layers": len(layers),
            "kept": [labels[op.get_friendly_name()] for op in layers if not is_quantised(op)],
            "trials": [
                {"kept": t.what, "layers": len(t.keep), "score": t.score, "drop": judge.before.score - t.score}
                for t in trials
            ],
            "fp32_bytes": _bytes(whole),
        }
        quantised.set_rt_info(json.dumps(record), [SECTION, "int8"])
        openvino.save_model(quantised, path, compress_to_fp16=False)
    return record | {"size_bytes": _bytes(path)}


def _refusal(judge: Judge, trials: Sequence[Trial], limit: float, images: int) -> CompressError:
    drops = [judge.before.score - trial.score for trial in trials]
    tried = "; ".join(f"{trial.what} {drop:.3f}" for trial, drop in zip(trials, drops, strict=True))
    more = "calibrate on more images with people, " if images < 100 else ""
    return CompressError(
        f"INT8 loses {min(drops):.3f} of {judge.metric} {judge.before.score:.3f} against {judge.against} at best, more "
        f"than --max-drop {limit:g}; lost with these layers in floating point: {tried}",
        hint=f"Allow more by --max-drop, {more}or export --openvino and run it with --precision bf16",
    )


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path, path.with_suffix(".bin")))
