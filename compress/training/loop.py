"""Training, fine-tuning and distillation of pose networks: one loop, from one CPU process to many GPUs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from compress.data.sample import Dataset
from compress.errors import FileError, UsageError
from compress.pose.spec import PoseSpec
from compress.training.options import FineTuneOptions, learning_rate
from compress.training.processes import Processes, join
from compress.training.results import Event, FineTuneResult, StepLog
from compress.training.run import Run, process_seed
from compress.training.state import read_state, write_state
from compress.training.watchdog import KEPT_EVERY, Diverged

__all__ = ["Event", "FineTuneOptions", "FineTuneResult", "StepLog", "finetune"]

#: Steps over which the speed is averaged.
_SPEED_WINDOW = 20

_Score = Callable[[nn.Module], float]


def finetune(
    module: nn.Module,
    data: Dataset,
    options: FineTuneOptions,
    *,
    pose: PoseSpec,
    teacher: nn.Module | None = None,
    evaluate: _Score | None = None,
    on_step: Callable[[StepLog], None] | None = None,
    on_event: Callable[[Event], None] | None = None,
    state_path: Path | None = None,
    resume: bool = False,
    device: str | torch.device = "cpu",
    processes: Processes | None = None,
) -> FineTuneResult:
    """Train a network on annotations, on a teacher's outputs, or on both.

    Parameters
    ----------
    module : Module
        The network to start from; stays as it is.
    data : Dataset
        Images, with or without annotations. With annotations, ``options.label_weight`` says how much they count.
    options : FineTuneOptions
        How to train.
    pose : PoseSpec
        What the network expects and gives.
    teacher : Module, optional
        A network with the same maps; see `compress.training.distil`.
    evaluate : callable, optional
        Gives a network in eval mode a score; more is better. Called before the first step, every
        ``options.evaluate_every`` steps and at the end; in each process, and the result has to be the same in all.
    on_step : callable, optional
        Told of every step, after its evaluation and before the training state is written; in the main process alone.
    on_event : callable, optional
        Told of what happens beside the steps; in the main process alone.
    state_path : Path, optional
        Where the training state is kept. An older one there is replaced.
    resume : bool
        Go on from that state, with any number of processes. On the same device and with the same number of processes
        the weights become those of a run that was never stopped.
    device : str or device
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; unused if ``processes`` are given.
    processes : Processes, optional
        Who trains together; by default the processes that were launched together, see `compress.training.processes`.
        Only the main one writes the state.

    Returns
    -------
    FineTuneResult
        The trained network and how it came about.

    Raises
    ------
    DataError
        If there is neither an annotation to train on nor a teacher.
    NetworkError
        If the teacher has other maps, or a pattern to freeze matches nothing.
    UsageError
        If the crop does not fit the stride, the batch can't be shared evenly, or the state was made under other
        conditions.
    FileError
        If there is no state to resume from.
    CompressError
        If loss or gradient are no numbers any more, and going back and slower did not help.
    """
    if resume and state_path is None:
        raise FileError("there is no training state to resume from", hint="Name the file, or start without --resume")
    if options.stop_after is not None and evaluate is None:
        raise UsageError("to stop early there must be a score", hint="Give validation data, or no stop_after")
    processes = processes or join(device)

    def tell(event: Event) -> None:
        if on_event is not None and processes.is_main:
            on_event(event)

    with _own_randomness(processes.device, process_seed((options.seed,), processes.number)):
        run = Run(module, data, options, pose, teacher, processes)
        if resume and state_path is not None:
            run.restore(read_state(state_path, run.conditions))
            tell(Event("resume", run.step, f"going on after step {run.step}"))
        elif evaluate is not None:
            score, _ = run.score(evaluate)
            tell(Event("score", 0, f"score {score:.3f} before the first step", {"score": score}))
        run.keep()
        while not run.done:
            try:
                _train(run, evaluate, on_step if processes.is_main else None, state_path)
            except Diverged as trouble:
                back = run.roll_back(trouble, state_path)
                text = (
                    f"{back.reason} at step {back.step}: back to step {back.to}, learning rate x {back.rate_factor:g}"
                )
                values = {"failed": back.step, "reason": back.reason, "rate_factor": back.rate_factor}
                tell(Event("rollback", back.to, text, values))
        if run.stopped_early and run.step < options.steps:
            text = f"no better score in {options.stop_after} evaluations"
            tell(Event("early stop", run.step, text))
        return run.result()


def _train(
    run: Run, evaluate: _Score | None, on_step: Callable[[StepLog], None] | None, state_path: Path | None
) -> None:
    """All steps that are left, unless the run stops early."""
    options = run.options
    speed: deque[float] = deque(maxlen=_SPEED_WINDOW)
    began = time.perf_counter()
    for pieces in run.load():
        rate = run.watchdog.rate_factor * learning_rate(run.step, options, run.scores)
        loss, parts = run.train_step(pieces, rate)
        speed.append(time.perf_counter() - began)
        last = run.step == options.steps
        score: tuple[float | None, bool] = (None, False)
        if evaluate is not None and (last or _due(run.step, options.evaluate_every)):
            score = run.score(evaluate)
        per_second = options.batch_size * len(speed) / sum(speed)
        entry = StepLog(run.step, options.steps, loss, parts, rate, per_second, *score)
        run.log.append(entry)
        # Before the state is on disk: what was told twice can be taken back, what was never told is missing for good.
        if on_step is not None:
            on_step(entry)
        written = run.done or _due(run.step, options.checkpoint_every)
        if state_path is not None and written:
            state = run.state()
            if run.processes.is_main:
                write_state(state_path, state)
            run.saved = run.step
        if written or _due(run.step, KEPT_EVERY):
            run.keep()
        if run.done:
            return
        began = time.perf_counter()


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators for the block and put them back after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
