"""Score a model in keypoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from compress.commands.base import StageOptions, StageResult, option
from compress.commands.options import DataOptions, ModelOptions, open_dataset
from compress.commands.registry import Stage
from compress.data.boxes import read_boxes
from compress.evaluation.score import evaluate
from compress.files import refuse_existing, write_text
from compress.pose.decoders.heatmap import HeatmapOptions
from compress.pose.decoders.paf import PafOptions
from compress.pose.views import read_scales
from compress.progress import Progress
from compress.runtime.opening import open_runner


class ScoreOptions(StageOptions):
    """How images become people and a score."""

    height: int | None = option(None, "Height that images are scaled to (default: the network's own)")
    decoder: Literal["fast", "compat"] = option("fast", "fast, or compat: the public algorithm step by step")
    assignment: Literal["greedy", "jv"] = option("greedy", "Assignment per limb: greedy or Jonker-Volgenant")
    upsample: int = option(PafOptions.upsample, "Points a cell and axis among which fast looks for peaks, 1 to 8")

    flip: bool = option(False, "Average the maps with those of the mirrored image")
    scales: str = option("1", "Average the maps over these sizes of the image, such as 0.5,1,1.5")
    blur: int | None = option(None, "Gaussian filter over the heatmaps of such networks: 11 or 17 cells")

    strict: bool = option(False, "Stop at an image that can't be read, instead of leaving it out and saying so")

    @property
    def heatmap(self) -> HeatmapOptions:
        """Options of the decoder of networks that see one person."""
        return HeatmapOptions(flip=self.flip, blur=self.blur, scales=read_scales(self.scales))

    @property
    def paf(self) -> PafOptions:
        """Options of the PAF decoder."""
        return PafOptions(
            mode=self.decoder,
            assignment=self.assignment,
            upsample=self.upsample,
            flip=self.flip,
            scales=read_scales(self.scales),
        )


class RunnerOptions(StageOptions):
    """Where a network runs."""

    runtime: Literal["torch", "onnxruntime", "openvino"] | None = option(
        None, "Runtime (default: by the file: torch, onnxruntime for .onnx, openvino for .xml)"
    )
    device: str = option("cpu", "cpu or cuda")
    precision: Literal["fp32", "bf16", "fp16"] = option("fp32", "Arithmetic of the runtime")
    threads: int | None = option(None, "Threads (default: all cores)")


class EvaluateOptions(ModelOptions, DataOptions, ScoreOptions, RunnerOptions):
    """Options of `compress evaluate`."""

    boxes: Path | None = option(
        None, "Detections in COCO results form: where a top-down network looks for people (default: annotated boxes)"
    )
    results: Path | None = option(None, "Write the detections in COCO results form", output=True)
    force: bool = option(False, "Replace an existing output")


def run(options: EvaluateOptions, progress: Progress) -> StageResult:
    """Run the model on every image and score the people it finds."""
    if options.results is not None:
        refuse_existing(options.results, options.force)
    dataset = open_dataset(options)
    boxes = None if options.boxes is None else read_boxes(options.boxes)
    runner = open_runner(
        options.model,
        runtime=options.runtime,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        network=options.network,
    )
    with progress.bar("evaluate", len(dataset)) as advance:
        found = evaluate(
            dataset,
            runner,
            height=options.height,
            options=options.paf,
            heatmap=options.heatmap,
            boxes=boxes,
            strict=options.strict,
            progress=lambda done, total: advance(1),
        )
    files: tuple[Path, ...] = ()
    if options.results is not None:
        write_text(options.results, json.dumps(found.detections), force=options.force)
        files = (options.results,)
    record: dict[str, Any] = {"model": str(options.model), **asdict(found.score)}
    return StageResult(record, files)


STAGE = Stage(EvaluateOptions, run, "compress evaluate model.pt --data synthetic:1:100")
