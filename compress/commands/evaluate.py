"""`compress evaluate`: score a model by keypoint accuracy."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.commands.base import Command, Result, plain
from compress.commands.fields import option
from compress.commands.options import (
    DataOptions,
    ModelOptions,
    RunnerOptions,
    ViewOptions,
    decoder_of,
    open_dataset,
    open_model_runner,
    view_of,
)
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.evaluation.score import Score


class EvaluateOptions(ModelOptions, DataOptions, ViewOptions, RunnerOptions):
    """Options of `compress evaluate`."""

    boxes: Path | None = option(
        None, "Detections in COCO results form: where a top-down network looks for people (default: annotated boxes)"
    )
    results: Path | None = option(None, "Write the detections in COCO results form", output=True)
    force: bool = option(False, "Replace an existing output")


@dataclass(frozen=True)
class EvaluateResult(Result):
    """The model and its score."""

    model: str
    score: Score

    @property
    def record(self) -> dict[str, Any]:
        """The model and the fields of its score."""
        return {"model": self.model, **plain(self.score)}

    @property
    def summary(self) -> str:
        """The headline metric."""
        metric, value = self.score.headline
        return f"{self.model}: {metric} {value:.3f} on {self.score.data}, {self.score.images} images"

    def show(self) -> None:
        """Print all metrics and the conditions they hold under."""
        from compress.commands.terminal import print_table

        score = self.score
        print_table(
            f"{self.model} on {score.data}: {score.images} images at height {score.height}, {score.runtime} "
            f"{score.device} {score.precision}, {score.seconds:.1f} s; {score.convention}",
            list(score.metrics),
            [[f"{value:.3f}" for value in score.metrics.values()]],
            left=0,
        )


def run(options: EvaluateOptions, progress: Progress) -> EvaluateResult:
    """Run the model on every image and score the people it finds."""
    from compress.data.boxes import read_boxes
    from compress.evaluation.score import EvaluationOptions, evaluate_dataset
    from compress.files import refuse_existing, write_text

    if options.results is not None:
        refuse_existing(options.results, options.force)
    dataset = open_dataset(options)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    runner = open_model_runner(options, options)
    how = EvaluationOptions(decoder_of(options, runner.pose), view_of(options), boxes, options.strict)
    with closing(runner), progress.bar("evaluate", len(dataset)) as advance:
        done = evaluate_dataset(dataset, runner, how, progress=lambda done, total: advance(1))
    if options.results is None:
        return EvaluateResult(str(options.model), done.score)
    write_text(options.results, json.dumps(done.detections), force=options.force)
    return EvaluateResult(str(options.model), done.score, written=(options.results,))


COMMAND = Command(EvaluateOptions, run, "compress evaluate model.pt --data synthetic:1:100")
