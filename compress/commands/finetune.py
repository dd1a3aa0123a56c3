"""Fine-tune or distil a compressed network, or train a fresh one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.commands.base import Size, StageResult, option
from compress.commands.evaluate import ScoreOptions
from compress.commands.options import DataOptions, ModelOptions, load_model, open_dataset
from compress.commands.registry import Stage
from compress.commands.training_options import ExampleOptions, ScheduleOptions, VariationOptions, report_broken
from compress.commands.watched import WatchedOptions, Watcher, curve_path, log_path, write_curve
from compress.data.source import open_data
from compress.errors import UsageError
from compress.evaluation.score import evaluate
from compress.files import refuse_existing
from compress.pose.spec import PoseSpec
from compress.progress import Progress, Silent
from compress.runtime.torch_runner import TorchRunner
from compress.training.distil import DistilWeights
from compress.training.log import RunLog
from compress.training.loop import FineTuneOptions, finetune
from compress.training.processes import Processes, join
from compress.training.state import remove_temporary


class TuneOptions(
    ModelOptions, DataOptions, ScoreOptions, ScheduleOptions, VariationOptions, ExampleOptions, WatchedOptions
):
    """Options of `compress finetune` and `compress train`."""

    output: Path = option(..., "Model to write", flag="-o", output=True)
    validation: str | None = option(None, "Annotated data (as for --data) that is scored on the way; the best is kept")
    steps: int = option(300, "Optimizer steps")
    batch_size: int = option(16, "Images a step, of all processes together")
    size: Size | None = option(None, "Training crop HEIGHTxWIDTH (default: the network's own)")
    sigma: float | None = option(None, "Width of the heatmaps' peaks in input pixels (default: by the network)")
    freeze: tuple[str, ...] = option((), "Modules of this name or pattern stay as they are; repeat for more")
    freeze_statistics: bool = option(False, "Keep the running statistics of batch normalisation")
    ema: float | None = option(None, "Decay of a moving average of the weights, which is then what is kept")
    amp: Literal["auto", "off", "bf16", "fp16"] = option(
        "auto", "Arithmetic: auto takes half precision on CUDA, float32 on a CPU"
    )
    device: str = option("cpu", "cpu or cuda")
    workers: int = option(2, "Processes that load images")
    seed: int = option(0, "Seed of order and augmentation")
    evaluate_every: int | None = option(None, "Steps between scores on --validation (default: start and end)")
    checkpoint_every: int = option(200, "Steps between writings of the training state")
    resume: bool = option(False, "Go on from the training state beside the output")
    cache: Path | None = option(None, "Folder that keeps the images of --data once they are drawn or read", output=True)
    force: bool = option(False, "Replace an existing output")

    @property
    def state(self) -> Path:
        """Where the training state is kept until the run ends."""
        return self.output.with_suffix(".state")

    def can_resume(self) -> bool:
        """Whether an interrupted run left its training state."""
        return self.state.exists()


class FineTuneStageOptions(TuneOptions):
    """Options of `compress finetune`."""

    teacher: Path | None = option(None, "Model to learn from; no annotations are needed then", flag="-t")
    label_weight: float = option(1.0, "Weight of annotations, where the data has them; 0 leaves them unused")
    map_weight: float = option(1.0, "Weight of the teacher's maps")
    feature_weight: float = option(10.0, "Weight of the teacher's stage features")


def training_options(options: TuneOptions, pose: PoseSpec, images: int, **more: Any) -> FineTuneOptions:
    """Options of the training loop from those of the stage."""
    size = options.size or pose.size
    label_weight = more.pop("label_weight", 1.0) * options.label_share(pose, size)
    return FineTuneOptions(
        **options.schedule_settings(options.steps, options.batch_size, images),
        batch_size=options.batch_size,
        size=size,
        freeze=options.freeze,
        freeze_statistics=options.freeze_statistics,
        amp=options.amp,
        label_weight=label_weight,
        augmentation=options.augmentation,
        sigma=options.sigma,
        ema=options.ema,
        workers=options.workers,
        seed=options.seed,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
        accumulate=options.accumulate,
        factor_rate=options.factor_rate,
        stop_after=options.stop_after,
        recalibrate_norms=options.recalibrate_norms,
        rollbacks=options.rollbacks,
        **more,
    )


def _scorer(options: TuneOptions, pose: PoseSpec, processes: Processes) -> Callable[[nn.Module], float] | None:
    """A function that gives a network its headline metric on the validation data."""
    if options.validation is None:
        return None
    dataset = open_data(options.validation, split=options.split)

    def score(module: nn.Module) -> float:
        runner = TorchRunner(module, pose, device=str(processes.device))
        found = evaluate(
            dataset,
            runner,
            height=options.height,
            options=options.paf,
            heatmap=options.heatmap,
            crew=processes,
            strict=options.strict,
        )
        return found.score.headline[1]

    return score


def tune(options: TuneOptions, progress: Progress, command: str, teacher_path: Path | None, **more: Any) -> StageResult:
    """Train, and write the result beside its training state; of several processes only the main one writes."""
    processes = join(options.device)
    if not processes.is_main:
        progress = Silent()
    resume = options.resume and options.can_resume()
    refuse_existing(options.output, options.force or resume)
    if options.resume and not resume:
        progress.say("no training state to go on from: starting at the beginning")
    checkpoint = load_model(options)
    dataset = options.training_data(
        open_dataset(options),
        checkpoint.pose,
        progress,
        labels=more.get("label_weight", 1.0) > 0,
        strict=options.strict,
        cache=options.cache,
    )
    settings = training_options(options, checkpoint.pose, len(dataset), **more)
    teacher = None if teacher_path is None else load(teacher_path).module
    began = time.perf_counter()
    with contextlib.ExitStack() as opened:
        advance = opened.enter_context(progress.bar(command, settings.steps))
        log = None
        if processes.is_main:
            log = opened.enter_context(RunLog(log_path(options.output), resume=resume, tensorboard=options.tensorboard))
        watcher = Watcher(progress, advance, log)
        done = finetune(
            checkpoint.module,
            dataset,
            settings,
            pose=checkpoint.pose,
            teacher=teacher,
            evaluate=_scorer(options, checkpoint.pose, processes),
            on_step=watcher.step,
            on_event=watcher.event,
            state_path=options.state,
            resume=resume,
            processes=processes,
        )
    broken = report_broken(dataset, progress)
    smooth = max(1, len(done.log) // 20)
    losses = [log.loss for log in done.log]
    record = {
        "output": str(options.output),
        "steps": len(done.log),
        "seconds": time.perf_counter() - began,
        "loss": [sum(losses[:smooth]) / smooth, sum(losses[-smooth:]) / smooth],
        "score": [done.scores[0][1], done.best.score] if done.best else None,
        "best_step": done.best.step if done.best else None,
        "scores": [list(score) for score in done.scores],
        "distilled": list(done.distilled),
        "broken_images": broken,
        "images_per_second": done.log[-1].images_per_second,
        "rollbacks": done.rollbacks,
        "processes": processes.count,
        "log": str(log_path(options.output)),
        "curve": str(curve_path(options.output)),
    }
    note: dict[str, Any] = {k: record[k] for k in ("steps", "seconds", "loss", "score", "best_step")}
    note |= {
        "data": dataset.name,
        "validation": options.validation,
        "teacher": None if teacher_path is None else teacher_path.name,
        "from": options.model.name,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
    }
    trained = checkpoint.derive(done.module, command=command, **note)
    if processes.is_main:
        save(trained, options.output, force=options.force or resume)
        write_curve(options.output)
        options.state.unlink(missing_ok=True)
        # A kill while a state was written leaves its temporary file.
        remove_temporary(options.state)
    processes.wait()
    return StageResult(record, (options.output,))


def run(options: FineTuneStageOptions, progress: Progress) -> StageResult:
    """Fine-tune on annotations, on a teacher, or on both."""
    if not options.has_data:
        raise UsageError(
            "there are no images to tune on",
            hint="Give --data; with --teacher, images:DIR without annotations will do",
        )
    return tune(
        options,
        progress,
        "finetune",
        options.teacher,
        label_weight=options.label_weight,
        distil=DistilWeights(options.map_weight, options.feature_weight),
    )


STAGE = Stage(
    FineTuneStageOptions, run, "compress finetune small.pt --teacher model.pt --data synthetic:7:4000 -o tuned.pt"
)
