"""How a training run is kept going and written down: options, and who tells what to whom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compress.commands.base import StageOptions, option
from compress.files import atomic_path
from compress.progress import Progress
from compress.reporting.curve import training_curve
from compress.training.log import RunLog, read_log, steps_of
from compress.training.results import Event, StepLog


class WatchedOptions(StageOptions):
    """What a run does about its numbers on the way."""

    accumulate: int = option(1, "Pieces that a batch is computed in, one after another, where memory is short")
    factor_rate: float = option(1.0, "Learning rate of factors, as a multiple of that of all other layers")
    stop_after: int | None = option(None, "Stop after so many scores on --validation without a better one")
    recalibrate_norms: int = option(
        0, "Batches to compute the statistics of batch normalisation anew on, before each score and at the end"
    )
    rollbacks: int = option(3, "Returns to the last good state, at half the rate, before a diverging run gives up")
    tensorboard: Path | None = option(None, "Folder for TensorBoard's files, beside the log", output=True)


def log_path(checkpoint: Path) -> Path:
    """Where the log of a run lies that wrote or will write this checkpoint."""
    return checkpoint.with_name(f"{checkpoint.stem}.log.jsonl")


def curve_path(checkpoint: Path) -> Path:
    """Where the picture of that log lies."""
    return checkpoint.with_name(f"{checkpoint.stem}.curve.png")


def draw_curve(checkpoint: Path) -> bytes | None:
    """The curve of the log beside a checkpoint, as PNG; None if there is no log, or no step in it."""
    log = log_path(checkpoint)
    if not log.is_file():
        return None
    lines = read_log(log)
    return training_curve(steps_of(lines), [line for line in lines if "event" in line])


def write_curve(checkpoint: Path) -> None:
    """Draw the log beside a checkpoint, beside it."""
    picture = draw_curve(checkpoint)
    if picture is not None:
        with atomic_path(curve_path(checkpoint)) as temporary:
            temporary.write_bytes(picture)


class Watcher:
    """Tells the user and the log what happens in a run.

    Parameters
    ----------
    progress : Progress
        Where to say what stays.
    advance : callable
        Of the bar.
    log : RunLog or None
        None in processes that write nothing.
    """

    def __init__(self, progress: Progress, advance: Callable[..., None], log: RunLog | None) -> None:
        self._progress, self._advance, self._log = progress, advance, log

    def step(self, entry: StepLog) -> None:
        """Tell of a step."""
        if self._log is not None:
            self._log.step(entry)
        if entry.score is not None:
            self._progress.say(f"step {entry.step}: score {entry.score:.3f}" + (" (best)" if entry.best else ""))
        self._advance(1, f"loss {entry.loss:.4g}  lr {entry.learning_rate:.2g}  {entry.images_per_second:.0f} images/s")

    def event(self, event: Event) -> None:
        """Tell of something else."""
        if self._log is not None:
            self._log.event(event)
        self._progress.say(event.text)
        if event.kind == "resume":
            self._advance(event.step)
        if event.kind == "rollback":
            self._advance(event.step - event.values["failed"] + 1)
