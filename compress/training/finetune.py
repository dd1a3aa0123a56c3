"""Training, fine-tuning and distillation of a model, with its data, validation, log, curve and training state."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.source import images as open_images
from compress.data.source import open_data
from compress.data.spec import DataSpec
from compress.errors import FileError, UsageError
from compress.evaluation.inputs import UNSPECIFIED
from compress.model import Model
from compress.progress import Progress, Silent
from compress.training.curve import write_curve
from compress.training.data import DataPreparation, prepare_data, unreadable
from compress.training.log import RunLog, RunMonitor, log_path
from compress.training.loop import Hooks, StateFile, train
from compress.training.options import FineTuneOptions
from compress.training.processes import ProcessGroup, join
from compress.training.results import Best, StepLog
from compress.training.state import remove_temporary, state_path
from compress.training.validation import Validation, scorer

#: Default number of steps of `finetune`.
STEPS = 300


@dataclass(frozen=True)
class RunFiles:
    """The files of a run beside the model that it writes.

    Attributes
    ----------
    output : Path
        The model file; the log (``.log.jsonl``), the curve (``.curve.png``) and, until the run ends, the training state
        (``.state``) are written beside it. The model itself is written by the caller.
    resume : bool
        Continue from the training state, if there is one.
    force : bool
        Discard the training state of an interrupted run instead of refusing to start.
    tensorboard : Path or None
        Folder for TensorBoard event files.
    """

    output: Path
    resume: bool = False
    force: bool = False
    tensorboard: Path | None = None

    @property
    def state(self) -> Path:
        """The training state."""
        return state_path(self.output)

    @property
    def resumes(self) -> bool:
        """Whether the run continues from a training state."""
        return self.resume and self.state.exists()

    def remove_state(self) -> None:
        """Remove the training state, once the model is written."""
        self.state.unlink(missing_ok=True)
        # An interruption while a state was written leaves its temporary file.
        remove_temporary(self.state)


@dataclass(frozen=True)
class RunOptions:
    """What surrounds the training itself in `finetune_model`.

    Attributes
    ----------
    preparation : DataPreparation
        What of the data set becomes training examples.
    validation : Validation or None
        Data that is scored on the way; the best weights are kept.
    files : RunFiles or None
        Files of the run; None writes none.
    group : ProcessGroup or None
        The processes that train together; by default those that were launched together.
    command : str
        Name of the step in the model's history.
    """

    preparation: DataPreparation = field(default_factory=DataPreparation)
    validation: Validation | None = None
    files: RunFiles | None = None
    group: ProcessGroup | None = None
    command: str = "finetune"


@dataclass(frozen=True)
class Tuned:
    """The outcome of `finetune_model`.

    Attributes
    ----------
    model : Model
        The trained model, with an entry in its history.
    log : tuple of StepLog
        Every step.
    scores : tuple of (int, float)
        Every evaluation: steps completed (0 before training) and score.
    best : Best or None
        The evaluation whose weights were kept.
    distilled : tuple of str
        Submodules whose features were compared with the teacher's.
    rollbacks : int
        Number of rollbacks after a NaN or infinite loss or gradient.
    broken : tuple of str
        What is wrong with each image that could not be read and was replaced by another.
    images : int
        Size of the data set.
    seconds : float
        Wall time of the training.
    """

    model: Model
    log: tuple[StepLog, ...]
    scores: tuple[tuple[int, float], ...]
    best: Best | None
    distilled: tuple[str, ...]
    rollbacks: int
    broken: tuple[str, ...]
    images: int
    seconds: float

    @property
    def loss(self) -> tuple[float, float]:
        """Mean loss of the first and of the last twentieth of the steps."""
        losses = [entry.loss for entry in self.log]
        span = max(1, len(losses) // 20)
        return sum(losses[:span]) / span, sum(losses[-span:]) / span

    @property
    def score(self) -> tuple[float, float] | None:
        """Score before training and that of the weights that were kept; None without validation."""
        return (self.scores[0][1], self.best.score) if self.best else None


def finetune(
    model: Model,
    *,
    images: Any = None,
    data: Any = None,
    teacher: Model | None = None,
    steps: int | None = None,
    options: FineTuneOptions | None = None,
    progress: Progress | None = None,
) -> Model:
    """Fine-tune a model on annotations, or distil it from a teacher.

    Parameters
    ----------
    model : Model
        The model; it is not changed.
    images : optional
        Images without labels, or ready network inputs, as of `compress.images`; needs a teacher.
    data : str, DataSpec or Dataset, optional
        Annotated images, such as ``"coco:DIR,train2017"``. With a teacher the network learns from both.
    teacher : Model, optional
        A model with the same outputs, usually the original.
    steps : int, optional
        Optimizer steps; by default those of the options, or 300.
    options : FineTuneOptions, optional
        How to train.
    progress : Progress, optional
        Where progress is shown.

    Returns
    -------
    Model
        The trained model.

    Raises
    ------
    UsageError
        If there are no images or several sources of them, or images without labels and no teacher.
    DataError, NetworkError, CompressError
        As of `compress.training.loop.train`.
    """
    if (images is None) == (data is None):
        raise UsageError(
            "fine-tuning needs either annotated data or images without labels",
            hint="Give data=, or images= with teacher=",
        )
    options = options or FineTuneOptions(steps=STEPS if steps is None else steps)
    if steps is not None:
        options = replace(options, steps=steps)
    source: Dataset | Tensors
    if images is not None:
        source, options = open_images(images), replace(options, label_weight=0.0)
    else:
        source = open_data(data) if isinstance(data, (str, DataSpec)) else data
    return finetune_model(model, source, options, teacher=teacher, progress=progress).model


def finetune_model(
    model: Model,
    data: Dataset | Tensors,
    options: FineTuneOptions,
    *,
    teacher: Model | None = None,
    run: RunOptions | None = None,
    progress: Progress | None = None,
) -> Tuned:
    """Train a model, with validation and the files of the run.

    Parameters
    ----------
    model : Model
        The model to start from; it is not changed.
    data : Dataset or Tensors
        Images, with or without annotations; or ready network inputs.
    options : FineTuneOptions
        How to train.
    teacher : Model, optional
        A model with the same outputs to learn from.
    run : RunOptions, optional
        Data preparation, validation, files and processes.
    progress : Progress, optional
        Where progress is shown; used by the main process only.

    Raises
    ------
    UsageError
        If an interrupted run left a training state and it is neither resumed nor discarded.
    DataError, NetworkError, UsageError, FileError, CompressError
        As of `compress.training.loop.train`.
    """
    run = run or RunOptions()
    group = run.group or join(options.device)
    progress = progress if progress is not None and group.is_main else Silent()
    files = run.files
    if files is not None:
        _check_state(files, progress)
    dataset = data
    if not isinstance(data, Tensors):
        dataset = prepare_data(data, model.pose, run.preparation, progress, labels=options.label_weight > 0)
        if model.pose is None and (teacher is None or teacher.pose is None):
            progress.say(UNSPECIFIED)
    began = time.perf_counter()
    with contextlib.ExitStack() as opened:
        advance = opened.enter_context(progress.bar(run.command, options.steps))
        log = None
        if files is not None and group.is_main:
            log = RunLog(log_path(files.output), resume=files.resumes, tensorboard=files.tensorboard)
            opened.enter_context(log)
        monitor = RunMonitor(progress, advance, log)
        score = None if run.validation is None else scorer(model, run.validation, group)
        done = train(
            model,
            dataset,
            options,
            teacher=teacher,
            hooks=Hooks(score, monitor.step, monitor.event),
            state=None if files is None else StateFile(files.state, files.resumes),
            group=group,
        )
    if files is not None and group.is_main:
        write_curve(files.output)
    tuned = Tuned(
        model=model,
        log=done.log,
        scores=done.scores,
        best=done.best,
        distilled=done.distilled,
        rollbacks=done.rollbacks,
        broken=unreadable(dataset),
        images=len(dataset),
        seconds=time.perf_counter() - began,
    )
    entry: dict[str, Any] = {
        "data": data.name,
        "validation": None if run.validation is None else run.validation.data.name,
        "teacher": None if teacher is None else teacher.label or teacher.name,
        "from": model.label or model.name,
        "learning_rate": options.learning_rate,
        "batch_size": options.batch_size,
    }
    return replace(tuned, model=model.derive(done.module, command=run.command, **_summary(tuned), **entry))


def _summary(tuned: Tuned) -> dict[str, Any]:
    """The outcome as plain values, for the history of the model."""
    return {
        "steps": len(tuned.log),
        "seconds": tuned.seconds,
        "loss": list(tuned.loss),
        "score": None if tuned.score is None else list(tuned.score),
        "best_step": None if tuned.best is None else tuned.best.step,
    }


def _check_state(files: RunFiles, progress: Progress) -> None:
    if files.resume and not files.resumes:
        progress.say("there is no training state to resume from: starting at the beginning")
    if files.state.exists() and not (files.resume or files.force):
        raise FileError(
            "an interrupted run left its training state",
            found=str(files.state),
            hint="Continue it with --resume, or discard it with --force",
        )
