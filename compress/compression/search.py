"""Searching budgets, forms and recovery within a time limit, and keeping the Pareto front: `compress.search`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.compression.budgets import alignment, considered_forms, within_budget
from compress.compression.calibration import CalibrationImages, calibrated_curves, read_images
from compress.compression.problem import BudgetProblem
from compress.compression.scoring import metric_of
from compress.compression.search_options import SearchOptions
from compress.compression.trials import FORMS, Outcome, Search, Trial, order_trials, read_search
from compress.data.arrays import Tensors
from compress.data.sample import Dataset
from compress.data.source import images as open_images
from compress.errors import RankError, UsageError
from compress.files import refuse_existing
from compress.model import Model
from compress.network.output_error import output_errors
from compress.planning.budget import KINDS, Budget
from compress.planning.selection import Selection
from compress.progress import Progress, Silent
from compress.surgery.edits import FactorizeEdit
from compress.training.loop import Hooks, train
from compress.training.options import FineTuneOptions
from compress.training.results import StepLog


@dataclass(frozen=True)
class SearchResult:
    """The outcome of a search, also of one that ran out of time.

    Attributes
    ----------
    folder : Path
        With ``front.json`` and a checkpoint of each point of the front.
    budget : str
        As it is written.
    unit : str
        Of the costs.
    original : dict
        Costs of the original, with the name and value of its score where there are annotations.
    trials : tuple of dict
        Every finished trial: level, forms, verdict, costs, errors, and whether it is on the front.
    left : tuple of str
        Names of the trials that no time was left for.
    seconds : float
        Wall time of this run.
    """

    folder: Path
    budget: str
    unit: str
    original: Mapping[str, Any]
    trials: tuple[dict[str, Any], ...]
    left: tuple[str, ...]
    seconds: float

    @property
    def points(self) -> tuple[dict[str, Any], ...]:
        """Trials that made a network."""
        return tuple(row for row in self.trials if row["verdict"] == "done")

    @property
    def files(self) -> tuple[Path, ...]:
        """``front.json``, and the checkpoints of the front."""
        names = [row["checkpoint"] for row in self.points if row["front"]]
        return (self.folder / "front.json", *(self.folder / name for name in names))


def search(
    model: Model,
    budget: Budget | str,
    images: Any,
    *,
    folder: Path | str,
    validation: Any = None,
    options: SearchOptions | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Try shares of a budget, sets of forms and recovery, and keep the networks that no other dominates.

    Each trial is on disk before the next begins, so an interrupted search can be resumed.

    Parameters
    ----------
    model : Model
        The model; it stays as it was.
    budget : Budget or str
        The most that a network may cost: a budget of MACs, parameters, size or latency.
    images : object
        Images to fit factors to and compare outputs on, as of `compress.images`.
    folder : Path or str
        Where ``front.json`` and the checkpoints of the front are written.
    validation : object, optional
        Annotated data to score on; by default ``images`` where these are annotated.
    options : SearchOptions, optional
        Everything else.
    progress : Progress, optional
        Receives every trial.

    Raises
    ------
    UsageError
        If the budget is not one of cost, there are no images, or a resumed search has other conditions.
    Infeasible
        If not even all forms can meet the whole budget.
    FileError
        If the folder already has a search, or has none to resume.
    """
    started = time.perf_counter()
    options, progress, folder = options or SearchOptions(), progress or Silent(), Path(folder)
    read, trials = _read_budget(budget), order_trials(options.level, options.recover > 0, options.seed)
    if images is None:
        raise UsageError("points are measured on images, and none are given", hint="Give images, or --data")
    if not options.resume:
        refuse_existing(folder / "front.json", options.force)
    opened = open_images(images)
    scored = opened if getattr(opened, "annotated", False) and model.pose is not None else None
    if validation is not None:
        scored = open_images(validation)
    model = model.at_size(options.size)
    conditions = _conditions(model, budget, opened, scored, options)
    runner = TrialRunner(model, read, opened, scored, options, progress)
    if options.resume:
        state = read_search(folder, conditions, trials)
        progress.say(f"{len(state.outcomes)} of {len(trials)} trials were finished before")
    else:
        state = Search(conditions, runner.original(), trials)
    state.write(folder)
    try:
        _run_trials(state, runner, folder, progress)
    except KeyboardInterrupt:
        progress.say(f"stopped after {len(state.outcomes)} of {len(trials)} trials; --resume continues")
        raise
    return SearchResult(
        folder=folder,
        budget=str(read),
        unit=KINDS[read.kind] + (f" on {read.target}" if read.target else ""),
        original=state.original,
        trials=tuple(state.rows()),
        left=tuple(trial.name for trial in state.left),
        seconds=time.perf_counter() - started,
    )


def _read_budget(budget: Budget | str) -> Budget:
    read = Budget.parse(budget)
    if read.kind in ("error", "drop"):
        raise UsageError(
            "a search weighs cost against error, so its budget is one of cost",
            found=str(budget),
            hint="Give macs=, params=, size= or latency=",
        )
    return read


def _conditions(
    model: Model,
    budget: Budget | str,
    images: Dataset | Tensors,
    scored: Dataset | Tensors | None,
    options: SearchOptions,
) -> dict[str, Any]:
    """Everything that decides the outcome of a trial, as plain data."""
    names = ("level", "recover", "learning_rate", "batch_size", "freeze", "calibrate", "rounds", "include", "exclude")
    listed = {name: getattr(options, name) for name in names}
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in listed.items()},
        "budget": str(budget),
        "seed": options.seed,
        "model": options.digest or _digest(model.module),
        "input": list(model.size),
        "data": [images.name, len(images)],
        "scored on": None if scored is None else [scored.name, len(scored)],
    }


def _digest(module: nn.Module) -> str:
    """SHA-256 of all parameters and buffers."""
    hashed = hashlib.sha256()
    for name, value in module.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.detach().cpu().contiguous().numpy().tobytes())
    return hashed.hexdigest()


class TrialRunner:
    """Makes and measures the networks of trials.

    Statistics are gathered when the first trial needs them.

    Parameters
    ----------
    model : Model
        The original, at the size at which costs are counted.
    budget : Budget
        The most that a network may cost.
    images : Dataset or Tensors
        To fit factors to, compare outputs on, and recover with.
    scored : Dataset or None
        Annotated images.
    options : SearchOptions
        Of the search.
    progress : Progress
        Receives every step.
    """

    def __init__(
        self,
        model: Model,
        budget: Budget,
        images: Dataset | Tensors,
        scored: Any,
        options: SearchOptions,
        progress: Progress,
    ) -> None:
        self.model, self.budget, self.images = model, budget, images
        self.scored, self.options, self.progress = scored, options, progress
        self.align = alignment(None, budget)

    @cached_property
    def calibration_images(self) -> CalibrationImages:
        """Images to fit factors to, and those to compare outputs on."""
        return read_images(self.images, self.model, self.options.calibrate, self.progress)

    @cached_property
    def problem(self) -> BudgetProblem:
        """Statistics and curves of the original."""
        selection = Selection(self.options.include, self.options.exclude, pointwise=True)
        calibration, curves = calibrated_curves(
            self.model,
            selection,
            self.calibration_images.fitted,
            self.progress,
            self.align,
            considered_forms(self.budget),
        )
        return BudgetProblem(self.model, curves, calibration, self.options.rounds)

    def original(self) -> dict[str, Any]:
        """Costs and score of the original network."""
        cost, score = self.model.cost, self.score(self.model.module)
        return {
            "macs": cost.macs,
            "params": cost.params,
            "size_bytes": cost.size_bytes,
            "metric": None if score is None else score[0],
            "score": None if score is None else score[1],
        }

    def score(self, module: nn.Module) -> tuple[str, float] | None:
        """Name and value of a network's headline metric, where there are annotations."""
        return None if self.scored is None else metric_of(self.model, module, self.scored, self.progress)

    def attempt(self, trial: Trial) -> tuple[Outcome, Model | None]:
        """Make and measure the network of a trial without recovery.

        Raises
        ------
        Infeasible
            If not even all forms can meet the whole budget; it names the nearest that can be met.
        """
        allowed = FORMS[trial.forms]
        curves = self.problem.curves
        started = time.perf_counter()  # statistics are gathered once and count for no trial
        candidates = {
            name: tuple(x for x in listed if x.method in allowed) for name, listed in curves.candidates.items()
        }
        problem = replace(self.problem, curves=replace(curves, candidates=candidates))
        budget = replace(self.budget, value=self.budget.value * trial.level)
        try:
            done, reached = within_budget(problem, budget, self.progress, align=self.align)
        except RankError:
            if trial == Trial(max(self.options.level), "all"):
                raise
            return Outcome("infeasible", time.perf_counter() - started), None
        if reached.gate is not None and reached.gate.verdict != "faster":
            return Outcome("not_faster", time.perf_counter() - started), None
        edit = FactorizeEdit.from_plan(done.plan, done.biases)
        made = self.model.derive(
            done.module,
            edits=(edit,) if edit.layers else (),
            plan=done.plan,
            command="search",
            budget=str(self.budget),
            trial=trial.name,
        )
        return self._measured(made, reached.reached, started), made

    def recover(self, start: Outcome, path: Path, trial: Trial) -> tuple[Outcome, Model]:
        """Distil the network of an earlier trial from the original, without labels, and measure it."""
        started = time.perf_counter()
        options, pose, (height, width) = self.options, self.model.pose, self.model.size
        student = load(path, options.network).at_size(self.model.size)
        size = None
        if pose is not None:
            size = tuple(max(1, side // pose.stride) * pose.stride for side in (height, width))
        tuning = FineTuneOptions(
            steps=options.recover,
            batch_size=options.batch_size,
            size=size,  # type: ignore[arg-type]
            learning_rate=options.learning_rate,
            freeze=options.freeze,
            freeze_statistics=True,
            label_weight=0.0,
            workers=options.workers,
            seed=options.seed,
        )
        with self.progress.bar(f"recovering {trial.start.name}", options.recover) as advance:

            def on_step(log: StepLog) -> None:
                advance(1, f"loss {log.loss:.4g}")

            done = train(student, self.images, tuning, teacher=self.model, hooks=Hooks(on_step=on_step))
        made = student.derive(done.module, command="search", steps=options.recover, trial=trial.name)
        assert start.cost is not None  # of a point on the front
        return self._measured(made, start.cost, started), made

    def _measured(self, made: Model, price: float, started: float) -> Outcome:
        score, images = self.score(made.module), self.calibration_images.compared
        errors = output_errors(self.model.module, made.module, images, self.model.outputs)
        return Outcome(
            verdict="done",
            seconds=time.perf_counter() - started,
            cost=price,
            macs=made.cost.macs,
            params=made.cost.params,
            size_bytes=made.cost.size_bytes,
            map_error=sum(errors.values()) / len(errors),
            score=None if score is None else score[1],
        )


def _run_trials(state: Search, runner: TrialRunner, folder: Path, progress: Progress) -> None:
    """All trials that are left and fit into the time; each is on disk before the next begins."""
    deadline = time.monotonic() + 60 * runner.options.minutes
    points = folder / "points"
    for trial in state.left:
        if state.outcomes and time.monotonic() + state.expected_seconds(trial) > deadline:
            progress.say(f"time is up: {len(state.left)} trial(s) left; --resume continues")
            return
        made: Model | None = None
        if not trial.tuned:
            outcome, made = runner.attempt(trial)
        elif trial.start.name in state.front:
            outcome, made = runner.recover(state.outcomes[trial.start.name], points / f"{trial.start.name}.pt", trial)
        else:
            outcome = Outcome("beaten", 0.0)
        state.outcomes[trial.name] = outcome
        kept = trial.name in state.front
        if kept and made is not None:
            save(made, points / f"{trial.name}.pt", force=True)
        state.write(folder)
        progress.say(_line(state, trial, outcome, kept))


def _line(state: Search, trial: Trial, outcome: Outcome, kept: bool) -> str:
    text = f"[{len(state.outcomes)}/{len(state.trials)}] {trial.name}: "
    if outcome.verdict != "done":
        return text + outcome.verdict.replace("_", " ")
    score = "" if outcome.score is None else f", {state.original['metric']} {outcome.score:.3f}"
    verdict = "on the front" if kept else "dominated"
    return f"{text}cost {outcome.cost:.4g}, map error {outcome.map_error:.4f}{score}, {verdict}"
