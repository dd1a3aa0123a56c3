"""Training, fine-tuning and distillation of networks: one loop, from one CPU process to many GPUs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.errors import UsageError
from compress.model import Model
from compress.training.options import FineTuneOptions, learning_rate
from compress.training.processes import ProcessGroup, join
from compress.training.results import Event, FineTuneResult, StepLog
from compress.training.run import Run, process_seed
from compress.training.state import read_state, write_state
from compress.training.training_set import training_set
from compress.training.watchdog import COPY_EVERY, Diverged

#: Steps over which the throughput is averaged.
_SPEED_WINDOW = 20


@dataclass(frozen=True)
class Hooks:
    """Functions that a run calls.

    Attributes
    ----------
    score : callable or None
        Scores a network in eval mode; higher is better. Called before the first step, every ``evaluate_every`` steps
        and at the end, in every process, with the same result in all.
    on_step : callable or None
        Called with each step's `StepLog`, after its evaluation and before the training state is written; in the main
        process only.
    on_event : callable or None
        Called with each `Event`; in the main process only.
    """

    score: Callable[[nn.Module], float] | None = None
    on_step: Callable[[StepLog], None] | None = None
    on_event: Callable[[Event], None] | None = None


@dataclass(frozen=True)
class StateFile:
    """Where the training state is written, and whether the run continues from it.

    Attributes
    ----------
    path : Path
        An older file there is replaced.
    resume : bool
        Continue from that state, with any number of processes. On the same device and with the same number of
        processes the weights equal those of an uninterrupted run.
    """

    path: Path
    resume: bool = False


def train(
    model: Model,
    data: Dataset | Tensors,
    options: FineTuneOptions,
    *,
    teacher: Model | None = None,
    hooks: Hooks | None = None,
    state: StateFile | None = None,
    group: ProcessGroup | None = None,
) -> FineTuneResult:
    """Train a network on annotations, on a teacher's outputs, or on both.

    Parameters
    ----------
    model : Model
        The network to start from; it is not changed.
    data : Dataset or Tensors
        Images, with or without annotations, whose weight is ``options.label_weight``; or ready network inputs.
    options : FineTuneOptions
        How to train.
    teacher : Model, optional
        A network with the same outputs; see `compress.training.distil`.
    hooks : Hooks, optional
        Functions to call.
    state : StateFile, optional
        Where the training state is kept.
    group : ProcessGroup, optional
        The processes that train together; by default those that were launched together, see
        `compress.training.processes`. Only the main one writes the state.

    Returns
    -------
    FineTuneResult
        The trained network and the log of the run.

    Raises
    ------
    DataError
        If the data are empty, have no annotations to train on, or are not what the network reads.
    NetworkError
        If the teacher has other outputs, or a pattern to freeze matches nothing.
    UsageError
        If there is nothing to learn from, the crop does not fit the stride, the batch can't be shared evenly, or the
        state was written under other conditions.
    FileError
        If there is no state to resume from.
    CompressError
        If loss or gradient become NaN or infinite and rolling back did not help.
    """
    hooks = hooks or Hooks()
    if options.stop_after is not None and hooks.score is None:
        raise UsageError("early stopping needs a score", hint="Give validation data, or no stop_after")
    group = group or join(options.device)

    def notify(event: Event) -> None:
        if hooks.on_event is not None and group.is_main:
            hooks.on_event(event)

    with _seeded(group.device, process_seed((options.seed,), group.number)):
        run = Run(model, training_set(model, data, options, teacher), options, teacher, group)
        if state is not None and state.resume:
            run.restore(read_state(state.path, run.conditions))
            notify(Event("resume", run.step, f"resuming after step {run.step}"))
        elif hooks.score is not None:
            score, _ = run.score(hooks.score)
            notify(Event("score", 0, f"score {score:.3f} before the first step", {"score": score}))
        run.keep()
        path = None if state is None else state.path
        while not run.done:
            try:
                _train_steps(run, hooks, path)
            except Diverged as cause:
                back = run.roll_back(cause, path)
                text = (
                    f"{back.reason} at step {back.step}: rolled back to step {back.to}, "
                    f"learning rate x {back.rate_factor:g}"
                )
                values = {"failed": back.step, "reason": back.reason, "rate_factor": back.rate_factor}
                notify(Event("rollback", back.to, text, values))
        if run.stopped_early and run.step < options.steps:
            notify(Event("early stop", run.step, f"no better score in {options.stop_after} evaluations"))
        return run.result()


def _train_steps(run: Run, hooks: Hooks, state_path: Path | None) -> None:
    """All remaining steps, unless the run stops early."""
    options = run.options
    durations: deque[float] = deque(maxlen=_SPEED_WINDOW)
    began = time.perf_counter()
    for pieces in run.load():
        rate = run.watchdog.rate_factor * learning_rate(run.step, options, run.watched)
        loss, parts = run.train_step(pieces, rate)
        durations.append(time.perf_counter() - began)
        last = run.step == options.steps
        score: tuple[float | None, bool] = (None, False)
        if hooks.score is not None and (last or _due(run.step, options.evaluate_every)):
            score = run.score(hooks.score)
        per_second = options.batch_size * len(durations) / sum(durations)
        entry = StepLog(run.step, options.steps, loss, parts, rate, per_second, *score)
        run.note(entry)
        # Before the state is written: a step reported twice can be taken back, one never reported is lost for good.
        if hooks.on_step is not None and run.group.is_main:
            hooks.on_step(entry)
        written = run.done or _due(run.step, options.checkpoint_every)
        if state_path is not None and written:
            state = run.state()
            if run.group.is_main:
                write_state(state_path, state)
            run.saved = run.step
        if written or _due(run.step, COPY_EVERY):
            run.keep()
        if run.done:
            return
        began = time.perf_counter()


@contextmanager
def _seeded(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for the block and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
