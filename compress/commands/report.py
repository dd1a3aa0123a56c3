"""Compare an original with compressed networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from compress.checkpoint.load import load
from compress.commands.base import StageResult, option
from compress.commands.benchmark import TimingOptions, time_models
from compress.commands.evaluate import ScoreOptions
from compress.commands.options import DataOptions, SizeOptions, counting_size, open_dataset
from compress.commands.registry import Stage
from compress.commands.watched import draw_curve
from compress.data.sample import Dataset
from compress.data.tolerant import Tolerant
from compress.evaluation.score import Score, detect_people, evaluate
from compress.files import refuse_existing
from compress.measure.machine import describe
from compress.model import Model
from compress.network.cost import cost
from compress.pose.skeleton import get_skeleton
from compress.progress import Progress
from compress.reporting.drawing import draw_poses
from compress.reporting.figures import side_by_side
from compress.reporting.html import Report, write_report
from compress.reporting.tables import ModelFacts
from compress.runtime.runner import Runner
from compress.runtime.torch_runner import TorchRunner

#: History records that mean that weights were trained after an edit.
_TUNING = ("finetune", "train")


class ReportOptions(DataOptions, ScoreOptions, SizeOptions, TimingOptions):
    """Options of `compress report`."""

    original: Path = option(..., "Model of the original network", positional=True)
    variants: tuple[Path, ...] = option((), "Checkpoints of compressed networks", positional=True)
    network: str | None = option(None, "Name of the network in foreign checkpoints", flag="-n")
    pictures: int = option(4, "Images on which the poses of all models are drawn side by side")
    output: Path = option(Path("report"), "Folder for report.html, .md, .csv and .json", flag="-o", output=True)
    force: bool = option(False, "Replace an existing report")


@dataclass(frozen=True)
class _Model:
    label: str
    path: Path
    checkpoint: Model
    facts: ModelFacts


def _facts(label: str, path: Path, checkpoint: Model, size: tuple[int, int]) -> ModelFacts:
    counted = cost(checkpoint.module, size)
    factorized = [entry for entry in checkpoint.history if entry.get("command") == "factorize"]
    commands = [entry.get("command") for entry in checkpoint.history]
    return ModelFacts(
        label=label,
        file=path.name,
        params=counted.params,
        macs=counted.macs,
        size_bytes=counted.size_bytes,
        edits=tuple(json.dumps(edit.to_dict(), sort_keys=True) for edit in checkpoint.edits),
        tuned=bool(checkpoint.edits) and bool(commands) and commands[-1] in _TUNING,
        layers=tuple(factorized[-1].get("layers", ())) if factorized else (),
    )


def pair_tuned(models: Sequence[ModelFacts]) -> tuple[ModelFacts, ...]:
    """Give each fine-tuned network the label of the same structure before its fine-tuning, where it is there."""
    untuned = {model.edits: model.label for model in models if not model.tuned}
    return tuple(replace(m, before=untuned.get(m.edits)) if m.tuned else m for m in models)


def _score(models: Sequence[_Model], dataset: Dataset, options: ReportOptions, progress: Progress) -> dict[str, Score]:
    scores = {}
    for model in models:
        runner = TorchRunner(model.checkpoint.module, model.checkpoint.pose, threads=options.threads)
        with progress.bar(f"evaluate {model.label}", len(dataset)) as advance:
            found = evaluate(
                dataset,
                runner,
                height=options.height,
                options=options.paf,
                heatmap=options.heatmap,
                strict=options.strict,
                progress=lambda done, total: advance(1),
            )
        scores[model.label] = found.score
    return scores


def _scenes(models: Sequence[_Model], dataset: Dataset, options: ReportOptions) -> tuple[tuple[str, bytes], ...]:
    """Poses of all models, drawn on images spread over the data set."""
    runners: list[Runner] = [TorchRunner(m.checkpoint.module, m.checkpoint.pose) for m in models]
    scenes = []
    if not options.strict:
        dataset = Tolerant(dataset)
    for index in np.linspace(0, len(dataset) - 1, min(options.pictures, len(dataset))).astype(int):
        sample = dataset[int(index)]
        pictures, labels = [], []
        if dataset.annotated:
            people = [person.keypoints for person in sample.people if not person.crowd]
            pictures.append(draw_poses(sample.image, people, get_skeleton(sample.skeleton)))
            labels.append("annotation")
        for model, runner in zip(models, runners, strict=True):
            found = detect_people(runner, sample, height=options.height, options=options.paf, heatmap=options.heatmap)
            pictures.append(draw_poses(sample.image, [pose.keypoints for pose in found], runner.pose.joints))
            labels.append(model.label)
        scenes.append((sample.name, side_by_side(pictures, labels)))
    return tuple(scenes)


def _command(options: ReportOptions) -> str:
    words = ["compress report", options.original.name, *(path.name for path in options.variants)]
    plain = ("original", "variants", "output", "force")
    for name in type(options).model_fields:
        value = getattr(options, name)
        if name in plain or value == type(options).model_fields[name].default:
            continue
        flag = f"--{name.replace('_', '-')}"
        for item in value if isinstance(value, tuple) and name != "input" else [value]:
            shown = "x".join(map(str, item)) if isinstance(item, tuple) else item
            words.append(flag if shown is True else f"{flag} {shown}")
    return " ".join([*words, "-o", options.output.name])


def _conditions(
    options: ReportOptions,
    checkpoint: Model,
    size: tuple[int, int],
    dataset: Dataset | None,
    scores: dict[str, Score],
) -> dict[str, str]:
    machine = describe()
    conditions = {
        "network": checkpoint.source.name,
        "MACs": f"executed multiply-adds of convolution and linear layers at {size[0]}x{size[1]}",
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_gb} GiB, {machine.os}",
        "instruction sets": ", ".join(machine.instruction_sets),
        "GPU": machine.gpu,
        "software": f"Python {machine.python}, torch {machine.torch}, OpenVINO {machine.openvino}, "
        f"onnxruntime {machine.onnxruntime}",
        "latency": f"network alone, batch 1, {size[0]}x{size[1]}, fp32 unless the runtime says otherwise; interleaved "
        "rounds, median; speed-ups within rounds with 95 % bootstrap intervals",
    }
    if dataset is not None:
        height = options.height or checkpoint.pose.height
        conditions["data"] = f"{dataset.name}, {len(dataset)} images at height {height}"
        conditions["accuracy"] = "; ".join(dict.fromkeys(score.convention for score in scores.values())) or "none"
        conditions["accuracy"] += ", torch fp32"
    return conditions


def run(options: ReportOptions, progress: Progress) -> StageResult:
    """Measure everything that was asked for and write the report."""
    for name in ("report.html", "report.md", "report.csv", "report.json"):
        refuse_existing(options.output / name, options.force)
    paths = (options.original, *options.variants)
    labels = [path.stem for path in paths]
    if len(set(labels)) < len(labels):
        labels = [str(path.with_suffix("")) for path in paths]
    checkpoints = [load(path, options.network) for path in paths]
    size = counting_size(checkpoints[0], options.input)
    models = [
        _Model(label, path, checkpoint, _facts(label, path, checkpoint, size))
        for label, path, checkpoint in zip(labels, paths, checkpoints, strict=True)
    ]
    dataset = open_dataset(options) if options.has_data else None
    scores: dict[str, Score] = {}
    if dataset is not None and dataset.annotated:
        scores = _score(models, dataset, options, progress)
    times = time_models(list(zip(labels, paths, strict=True)), options, size, progress, network=options.network)
    latency: dict[str, dict[str, Any]] = {label: {} for label in labels}
    for row in times.rows:
        latency[row["model"]][row["label"]] = row
    facts = [
        replace(m.facts, metrics=dict(scores[m.label].metrics) if m.label in scores else {}, latency=latency[m.label])
        for m in models
    ]
    report = Report(
        title=f"{checkpoints[0].source.name}: original against compressed",
        command=_command(options),
        conditions=_conditions(options, checkpoints[0], size, dataset, scores),
        models=pair_tuned(facts),
        scenes=_scenes(models, dataset, options) if dataset is not None and options.pictures else (),
        absent=times.absent,
        curves=tuple((m.label, curve) for m in models if (curve := draw_curve(m.path)) is not None),
    )
    files = write_report(report, options.output, force=options.force)
    record = {
        "html": str(files[0]),
        "files": [str(path) for path in files],
        "models": [
            {"label": m.label, "params": m.params, "macs": m.macs, "metric": m.metric, m.metric: m.accuracy}
            for m in report.models
        ],
    }
    return StageResult(record, files)


STAGE = Stage(ReportOptions, run, "compress report model.pt small.pt --data synthetic:1000:100 -o report")
