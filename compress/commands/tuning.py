"""What `compress finetune` and `compress train` share: options, the run, and its result."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from compress.commands.base import CommandOptions, Result
from compress.commands.fields import DataText, Range, Size, option
from compress.commands.options import (
    DataOptions,
    ModelOptions,
    ViewOptions,
    decoder_of,
    load_model,
    open_dataset,
    open_validation,
    view_of,
)
from compress.errors import UsageError
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.data.sample import Dataset
    from compress.model import Model
    from compress.pose.spec import PoseSpec
    from compress.training.finetune import RunOptions, Tuned
    from compress.training.options import FineTuneOptions

#: Unreadable images that are listed one by one.
_LISTED = 5


class ScheduleOptions(CommandOptions):
    """How long and how fast a network is trained."""

    steps: int = option(300, "Optimizer steps")
    epochs: float | None = option(
        None, "Passes over the data, instead of --steps; --milestones are then counted in epochs"
    )
    batch_size: int = option(16, "Images per step, of all processes together")
    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = option("adam", "Optimizer")
    momentum: float = option(0.9, "Momentum of sgd and rmsprop")
    learning_rate: float = option(1e-3, "Highest learning rate")
    warmup: float = option(0.05, "Share of the steps over which the learning rate rises")
    warmup_steps: int | None = option(None, "The same in steps, instead of --warmup")
    schedule: Literal["cosine", "constant", "step", "poly", "exponential", "plateau"] = option(
        "cosine", "Learning rate after the warm-up"
    )
    final_rate: float = option(0.01, "Final learning rate of cosine, poly and exponential, as a share of the highest")
    milestones: tuple[float, ...] = option(
        (), "Steps (or epochs) at which the rate of --schedule step drops; repeat for more"
    )
    gamma: tuple[float, ...] = option((0.1,), "Factor of the rate at each milestone, or one for all; also of plateau")
    power: float = option(0.9, "Exponent of poly")
    patience: int = option(5, "Evaluations without improvement before the rate of plateau drops")
    threshold: float = option(0.0, "Smallest improvement that counts for plateau: of the score, or share of the loss")
    plateau_metric: Literal["score", "loss"] = option(
        "score", "What plateau watches: the score on --validation, or the mean training loss between evaluations"
    )
    max_drops: int | None = option(None, "Most drops of plateau (default: any number)")
    weight_decay: float = option(0.0, "L2 penalty of weights, none for biases and normalisation")
    clip: float | None = option(None, "Largest norm of the gradient")
    loss: Literal["sum", "mean"] = option(
        "sum", "Squared errors of labels summed over joints and cells, or averaged (for the usual rates of sgd)"
    )
    loss_kernel: float | None = option(
        None, "Width of a Gaussian kernel distance between outputs and targets (default: squared error)"
    )
    joint_weights: Literal["plain", "partial"] = option(
        "plain",
        "Single-person networks: plain mean square error, or the partial loss of RePose, in which people with few "
        "annotated joints weigh as much as others",
    )


class VariationOptions(CommandOptions):
    """How training images vary."""

    scale: Range = option((0.7, 1.4), "Smallest and largest random scale, as LOW,HIGH")
    person_scale: float | None = option(
        None, "Share of the crop's height that a person fills at scale 1, for networks that find several people"
    )
    rotate: float = option(30.0, "Largest random rotation in degrees")
    rotated: float = option(1.0, "Share of the images that are rotated")
    shift: float = option(0.1, "Largest random shift as a share of the crop")
    colour: float = option(0.25, "Strength of random colour changes, 0 to below 1")
    channels: float = option(0.0, "Probability that the colour channels are permuted")
    half_body: float = option(0.0, "Probability of showing half a body, for single-person networks")
    body_mask: float = option(0.0, "Probability of a grey mask on the body, for single-person networks")
    keypoint_mask: float = option(0.0, "Probability of grey patches on some joints, for single-person networks")


class TuneOptions(ModelOptions, DataOptions, ViewOptions, ScheduleOptions, VariationOptions):
    """Options of `compress finetune` and `compress train`."""

    output: Path = option(..., "Model to write", flag="-o", output=True)
    validation: DataText | None = option(
        None, "Annotated data (as for --data) that is scored on the way; the best weights are kept"
    )
    each_person: bool = option(
        False, "An epoch shows every annotated person once instead of every image (single-person networks)"
    )
    size: Size | None = option(None, "Training crop HEIGHTxWIDTH (default: the network's own)")
    sigma: float | None = option(None, "Width of the heatmaps' peaks in input pixels (default: by the network)")
    overlap: Literal["lightweight", "cao"] | None = option(
        None,
        "Targets where people overlap, for networks that find several: lightweight sums heatmaps, clips them at 1 and "
        "keeps the last person's fields; cao takes the maximum of heatmaps and the mean of fields",
    )
    freeze: tuple[str, ...] = option((), "Freeze modules of this name or pattern; repeat for more")
    freeze_statistics: bool = option(False, "Keep the running statistics of batch normalisation")
    ema: float | None = option(None, "Decay of a moving average of the weights, which is then what is kept")
    amp: Literal["auto", "off", "bf16", "fp16"] = option(
        "auto", "Mixed precision: auto uses half precision on CUDA and FP32 on a CPU"
    )
    device: str = option("cpu", "cpu or cuda")
    workers: int = option(2, "Processes that load images")
    seed: int = option(0, "Seed of order and augmentation")
    accumulate: int = option(1, "Gradient accumulation: parts that a batch is computed in, to save memory")
    factor_rate: float = option(1.0, "Factor of the learning rate of factorized layers' factors")
    stop_after: int | None = option(None, "Early stopping: evaluations on --validation without improvement")
    recalibrate_norms: int = option(
        0, "Batches on which batch normalisation statistics are recomputed before each evaluation and at the end"
    )
    rollbacks: int = option(3, "Rollbacks to the last good state, each halving the rate, before divergence is an error")
    evaluate_every: int | None = option(
        None, "Steps between evaluations on --validation (default: at the start and end)"
    )
    checkpoint_every: int = option(200, "Steps between writes of the training state")
    resume: bool = option(False, "Continue from the training state beside the output")
    cache: Path | None = option(None, "Folder that caches the images of --data once rendered or read", output=True)
    tensorboard: Path | None = option(None, "Folder for TensorBoard event files, beside the log", output=True)
    force: bool = option(False, "Replace an existing output, and discard the training state of an interrupted run")

    @property
    def state(self) -> Path:
        """Where the training state is kept until the run ends."""
        return self.output.with_suffix(".state")

    def can_resume(self) -> bool:
        """Whether an interrupted run left its training state."""
        return self.state.exists()


@dataclass(frozen=True)
class TuneResult(Result):
    """Where the model, its log and its curve are, and how training went."""

    output: str
    steps: int
    seconds: float
    loss: tuple[float, float]
    score: tuple[float, float] | None
    best_step: int | None
    scores: tuple[tuple[int, float], ...]
    distilled: tuple[str, ...]
    broken_images: tuple[str, ...]
    images_per_second: float
    rollbacks: int
    processes: int
    log: str
    curve: str

    @property
    def summary(self) -> str:
        """Loss and score, first and last."""
        text = f"{self.output}: {self.steps} steps, loss {self.loss[0]:.4g} -> {self.loss[1]:.4g}"
        return text if self.score is None else f"{text}, score {self.score[0]:.3f} -> {self.score[1]:.3f}"

    def show(self) -> None:
        """Print the summary."""
        from compress.commands.terminal import print_lines

        print_lines(self.summary)


def training_settings(
    options: TuneOptions, pose: PoseSpec | None, images: int, *, label_weight: float = 1.0, **more: Any
) -> FineTuneOptions:
    """Options of the training itself.

    Parameters
    ----------
    options : TuneOptions
        Of the command.
    pose : PoseSpec or None
        Of the network.
    images : int
        Number of images of an epoch.
    label_weight : float
        Weight of the loss against annotations, before it is averaged.
    **more
        Options that the commands do not share.

    Raises
    ------
    UsageError
        If both steps and epochs are given, the number of epochs is not positive, or a value is out of range.
    """
    from compress.data.augment import Augmentation
    from compress.training.options import FineTuneOptions

    steps, steps_per_unit = options.steps, 1.0
    if options.epochs is not None:
        if "steps" in options.model_fields_set:
            raise UsageError("give either steps or epochs", found=f"{steps} steps and {options.epochs} epochs")
        if not 0 < options.epochs < math.inf:
            raise UsageError("the number of epochs must be above 0", found=options.epochs)
        steps_per_unit = images / options.batch_size
        steps = max(1, math.ceil(options.epochs * steps_per_unit))
    same = (
        "batch_size", "optimizer", "momentum", "learning_rate", "warmup", "warmup_steps", "schedule", "final_rate",
        "gamma", "power", "patience", "threshold", "weight_decay", "clip", "size", "sigma", "freeze",
        "freeze_statistics", "ema", "amp", "device", "workers", "seed", "accumulate", "factor_rate", "stop_after",
        "recalibrate_norms", "rollbacks", "evaluate_every", "checkpoint_every", "joint_weights",
        "plateau_metric", "max_drops", "loss_kernel", "overlap",
    )  # fmt: skip
    return FineTuneOptions(
        **{name: getattr(options, name) for name in same},
        steps=steps,
        milestones=tuple(round(mark * steps_per_unit) for mark in options.milestones),
        augmentation=Augmentation(**{name: getattr(options, name) for name in VariationOptions.model_fields}),
        label_weight=label_weight * _label_share(options, pose),
        **more,
    )


def _label_share(options: TuneOptions, pose: PoseSpec | None) -> float:
    """Factor by which a loss summed over joints and cells becomes the one that ``--loss`` names."""
    if options.loss == "sum" or pose is None:
        return 1.0
    height, width = options.size or pose.size
    cells = (height // pose.stride) * (width // pose.stride)
    return 1.0 / (cells * (len(pose.joints.joints) + pose.background))


def _examples(options: TuneOptions, dataset: Dataset) -> int:
    """Number of training examples of an epoch."""
    from compress.data.each_person import people_of

    return len(people_of(dataset)) if options.each_person and options.epochs is not None else len(dataset)


def _run_options(options: TuneOptions, model: Model, command: str) -> RunOptions:
    from compress.training.data import DataPreparation
    from compress.training.finetune import RunFiles, RunOptions
    from compress.training.validation import Validation

    data = open_validation(options.validation, options)
    return RunOptions(
        preparation=DataPreparation(options.each_person, options.strict, options.cache),
        validation=None
        if data is None
        else Validation(data, decoder_of(options, model.pose), view_of(options), options.strict),
        files=RunFiles(options.output, options.resume, options.force, options.tensorboard),
        command=command,
    )


def tune(
    options: TuneOptions, progress: Progress, command: str, *, teacher: Model | None = None, **more: Any
) -> TuneResult:
    """Train, and write the model; of several processes only the main one writes."""
    from compress.checkpoint.save import save
    from compress.files import refuse_existing
    from compress.training.finetune import RunFiles, finetune_model
    from compress.training.processes import join

    group = join(options.device)
    files = RunFiles(options.output, options.resume, options.force)
    force = options.force or files.resumes
    refuse_existing(options.output, force)
    model = load_model(options)
    run = replace(_run_options(options, model, command), group=group)
    dataset = open_dataset(options)
    settings = training_settings(options, model.pose, _examples(options, dataset), **more)
    done = finetune_model(model, dataset, settings, teacher=teacher, run=run, progress=progress)
    if group.is_main:
        _list_unreadable(done, progress)
        save(done.model, options.output, force=force)
        files.remove_state()
    group.wait()
    return _result(options, done, group.count)


def _list_unreadable(done: Tuned, progress: Progress) -> None:
    """Report which images could not be read, and why."""
    if done.broken:
        progress.say(f"{len(done.broken)} of {done.images} images could not be read and were left out:")
    for message in done.broken[:_LISTED]:
        progress.say(f"  {message}")


def _result(options: TuneOptions, done: Tuned, processes: int) -> TuneResult:
    from compress.training.curve import curve_path
    from compress.training.log import log_path

    return TuneResult(
        output=str(options.output),
        steps=len(done.log),
        seconds=done.seconds,
        loss=done.loss,
        score=done.score,
        best_step=None if done.best is None else done.best.step,
        scores=done.scores,
        distilled=done.distilled,
        broken_images=done.broken,
        images_per_second=done.log[-1].images_per_second,
        rollbacks=done.rollbacks,
        processes=processes,
        log=str(log_path(options.output)),
        curve=str(curve_path(options.output)),
        written=(options.output,),
    )
