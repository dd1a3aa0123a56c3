"""Fine-tune or distil a compressed network, or train a fresh one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from torch import nn

from compress.checkpoint import load_checkpoint, save_checkpoint, snapshot
from compress.data.augment import Augmentation
from compress.data.cache import Cached
from compress.data.source import open_data
from compress.errors import UsageError
from compress.evaluate import evaluate
from compress.files import refuse_existing
from compress.pose.spec import PoseSpec
from compress.runtime.torch_runner import TorchRunner
from compress.stages.base import Progress, Range, Size, StageResult, option
from compress.stages.evaluate import ScoreOptions
from compress.stages.models import DataOptions, ModelOptions, load, open_dataset
from compress.stages.registry import Stage
from compress.training.distil import DistilWeights
from compress.training.loop import FineTuneOptions, StepLog, finetune


class TuneOptions(ModelOptions, DataOptions, ScoreOptions):
    """Options of `compress finetune` and `compress train`."""

    output: Path = option(..., "Checkpoint to write", flag="-o", output=True)
    validation: str | None = option(None, "Annotated data (as for --data) that is scored on the way; the best is kept")
    steps: int = option(300, "Optimizer steps")
    batch_size: int = option(16, "Images a step")
    learning_rate: float = option(1e-3, "Highest learning rate of Adam")
    warmup: float = option(0.05, "Share of the steps over which the learning rate rises")
    schedule: Literal["cosine", "constant"] = option("cosine", "Learning rate after the warm-up")
    weight_decay: float = option(0.0, "L2 penalty of weights, none for biases and normalisation")
    clip: float | None = option(None, "Largest norm of the gradient")
    size: Size | None = option(None, "Training crop HEIGHTxWIDTH (default: the network's own)")
    scale: Range = option((0.7, 1.4), "Smallest and largest random scale, as LOW,HIGH")
    rotate: float = option(30.0, "Largest random rotation in degrees")
    half_body: float = option(0.0, "Probability of half a body, for networks that see one person")
    body_mask: float = option(0.0, "Probability of a grey mask on the body, for networks that see one person")
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

    teacher: Path | None = option(None, "Checkpoint to learn from; no annotations are needed then", flag="-t")
    label_weight: float = option(1.0, "Weight of annotations, where the data has them; 0 leaves them unused")
    map_weight: float = option(1.0, "Weight of the teacher's maps")
    feature_weight: float = option(10.0, "Weight of the teacher's stage features")


def training_options(options: TuneOptions, pose: PoseSpec, **more: Any) -> FineTuneOptions:
    """Options of the training loop from those of the stage."""
    return FineTuneOptions(
        steps=options.steps,
        batch_size=options.batch_size,
        size=options.size or pose.size,
        learning_rate=options.learning_rate,
        warmup=options.warmup,
        schedule=options.schedule,
        weight_decay=options.weight_decay,
        clip=options.clip,
        freeze=options.freeze,
        freeze_statistics=options.freeze_statistics,
        amp=options.amp,
        augmentation=Augmentation(
            scale=options.scale, rotate=options.rotate, half_body=options.half_body, body_mask=options.body_mask
        ),
        sigma=options.sigma,
        ema=options.ema,
        workers=options.workers,
        seed=options.seed,
        evaluate_every=options.evaluate_every,
        checkpoint_every=options.checkpoint_every,
        **more,
    )


def _scorer(options: TuneOptions, pose: PoseSpec) -> Callable[[nn.Module], float] | None:
    """A function that gives a network its headline metric on the validation data."""
    if options.validation is None:
        return None
    dataset = open_data(options.validation, split=options.split)

    def score(module: nn.Module) -> float:
        runner = TorchRunner(module, pose, device=options.device)
        found = evaluate(dataset, runner, height=options.height, options=options.paf, heatmap=options.heatmap)
        return found.score.headline[1]

    return score


def tune(options: TuneOptions, progress: Progress, command: str, teacher_path: Path | None, **more: Any) -> StageResult:
    """Train, and write the result beside its training state."""
    refuse_existing(options.output, options.force or options.resume)
    checkpoint = load(options)
    dataset = open_dataset(options)
    if options.cache is not None:
        dataset = Cached(dataset, options.cache)
    teacher = None if teacher_path is None else load_checkpoint(teacher_path).build()
    began = time.perf_counter()
    with progress.bar(command, options.steps) as advance:

        def on_step(log: StepLog) -> None:
            if log.score is not None:
                progress.say(f"step {log.step}: score {log.score:.3f}" + (" (best)" if log.best else ""))
            if log.step:
                advance(1, f"loss {log.loss:.4g}  lr {log.learning_rate:.2g}  {log.images_per_second:.0f} images/s")

        done = finetune(
            checkpoint.build(),
            dataset,
            training_options(options, checkpoint.pose, **more),
            pose=checkpoint.pose,
            teacher=teacher,
            evaluate=_scorer(options, checkpoint.pose),
            on_step=on_step,
            state_path=options.state,
            resume=options.resume,
            device=options.device,
        )
    smooth = max(1, len(done.log) // 20)
    losses = [log.loss for log in done.log]
    record = {
        "output": str(options.output),
        "steps": options.steps,
        "seconds": time.perf_counter() - began,
        "loss": [sum(losses[:smooth]) / smooth, sum(losses[-smooth:]) / smooth],
        "score": [done.scores[0][1], done.best.score] if done.best else None,
        "best_step": done.best.step if done.best else None,
        "scores": [list(score) for score in done.scores],
        "distilled": list(done.distilled),
        "images_per_second": done.log[-1].images_per_second,
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
    trained = snapshot(checkpoint, done.module, command=command, **note)
    save_checkpoint(trained, options.output, force=options.force or options.resume)
    options.state.unlink(missing_ok=True)
    return StageResult(record, (options.output,))


def run(options: FineTuneStageOptions, progress: Progress) -> StageResult:
    """Fine-tune on annotations, on a teacher, or on both."""
    if not options.has_data:
        raise UsageError(
            "there are no images to tune on",
            way_out="Give --data; with --teacher, images:DIR without annotations will do",
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
