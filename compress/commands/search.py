"""Try ranks, block forms and recovery within a time limit; keep what no other beats."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from compress.checkpoint.load import load
from compress.checkpoint.save import save
from compress.commands.base import StageResult, option
from compress.commands.options import DataOptions, ModelOptions, SizeOptions, counting_size, load_model, open_dataset
from compress.commands.registry import Stage
from compress.compression.budgets import within_cost
from compress.compression.calibration import calibration_images, curves_of
from compress.compression.latency import within_latency
from compress.compression.trials import FORMS, Outcome, Search, Trial, order_trials, read_search
from compress.compression.work import Work
from compress.data.sample import Dataset
from compress.data.source import open_data
from compress.errors import RankError, UsageError
from compress.evaluation.score import evaluate
from compress.files import atomic_path, refuse_existing
from compress.measure.machine import vector_channels
from compress.model import Model
from compress.network.cost import cost
from compress.network.layers import list_layers
from compress.network.output_error import map_errors
from compress.planning.budget import KINDS, Budget
from compress.planning.selection import Selection
from compress.progress import Progress
from compress.reporting.figures import search_front
from compress.runtime.torch_runner import TorchRunner
from compress.surgery.edits import FactorizeEdit
from compress.training.loop import FineTuneOptions, StepLog, finetune

#: Images on which final maps are compared, beyond those that factors are fitted to where there are so many.
COMPARED = 24


class SearchOptions(ModelOptions, SizeOptions, DataOptions):
    """Options of `compress search`."""

    budget: str = option(
        ..., "The most that a point may cost: macs=0.5, params=, size=, latency=0.6@openvino-cpu", flag="-b"
    )
    output: Path = option(
        ..., "Folder for front.json, front.png and a checkpoint of each point", flag="-o", output=True
    )
    minutes: float = option(20.0, "Begin no trial that would end later than this; --resume goes on")
    level: tuple[float, ...] = option((1.0, 0.85, 0.7), "Shares of the budget to try; repeat for more")
    recover: int = option(0, "Try points of the front again after so many steps of distillation from the original")
    learning_rate: float = option(1e-4, "With --recover: highest learning rate of Adam")
    batch_size: int = option(8, "With --recover: images a step")
    freeze: tuple[str, ...] = option((), "With --recover: modules that stay as they are; repeat for more")
    workers: int = option(2, "With --recover: processes that load images")
    validation: str | None = option(
        None, "Annotated data (as for --data) that points are scored on (default: --data where it is annotated)"
    )
    calibrate: int = option(64, "Images of --data that factors are fitted to")
    rounds: int = option(12, "Groups of layers that are fitted one after the other")
    include: tuple[str, ...] = option((), "Only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "Leave out layers of this name or pattern; repeat for more")
    seed: int = option(0, "Seed of the order of trials and of recovery")
    resume: bool = option(False, "Go on with the search in the output folder; finished trials are not repeated")
    force: bool = option(False, "Begin anew where the output folder has a search")

    def can_resume(self) -> bool:
        """Whether an interrupted search left its front."""
        return (self.output / "front.json").exists()


def _conditions(
    options: SearchOptions, size: tuple[int, int], dataset: Dataset, scored: Dataset | None
) -> dict[str, Any]:
    """All that decides what a trial gives, as plain data."""
    chosen = ("level", "recover", "learning_rate", "batch_size", "freeze", "calibrate", "rounds", "include", "exclude")
    with options.model.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    listed = {name: getattr(options, name) for name in (*chosen, "budget", "seed")}
    return {
        **{name: list(value) if isinstance(value, tuple) else value for name, value in listed.items()},
        "model": digest,
        "input": list(size),
        "data": [dataset.name, len(dataset)],
        "scored on": None if scored is None else [scored.name, len(scored)],
    }


class Bench:
    """A network and its images: makes and measures what trials name.

    Statistics are gathered when the first trial asks for them.

    Parameters
    ----------
    options : SearchOptions
        What is asked for.
    checkpoint : Model
        Of the network.
    size : (int, int)
        Input size for costs.
    dataset : Dataset
        Images to fit factors to.
    scored : Dataset or None
        Annotated images.
    progress : Progress
        Told of every step.
    """

    def __init__(
        self,
        options: SearchOptions,
        checkpoint: Model,
        size: tuple[int, int],
        dataset: Dataset,
        scored: Dataset | None,
        progress: Progress,
    ) -> None:
        self.options, self.checkpoint, self.size = options, checkpoint, size
        self.dataset, self.scored, self.progress = dataset, scored, progress
        self.budget = Budget.parse(options.budget)
        self.step = vector_channels() if self.budget.kind == "latency" else 1

    @cached_property
    def module(self) -> nn.Module:
        """The original network."""
        return self.checkpoint.module

    @cached_property
    def images(self) -> list[Tensor]:
        """Images to fit factors to, and those to compare final maps on after them."""
        count = self.options.calibrate
        return calibration_images(
            self.dataset, self.checkpoint.pose, self.size[0], count + COMPARED if count > 1 else count
        )

    @cached_property
    def work(self) -> Work:
        """Statistics and curves of the original."""
        options, layers = self.options, list_layers(self.module, self.size)
        selection = Selection(options.include, options.exclude, pointwise=True)
        images = self.images[: options.calibrate]
        calibration, curves = curves_of(self.module, layers, selection, images, self.progress, align=self.step)
        return Work(self.module, self.checkpoint.source.name, self.size, curves, calibration, options.rounds)

    def original(self) -> dict[str, Any]:
        """Costs and score of the original network."""
        found, score = cost(self.module, self.size), self.score(self.module)
        return {
            "macs": found.macs,
            "params": found.params,
            "size_bytes": found.size_bytes,
            "metric": None if score is None else score[0],
            "score": None if score is None else score[1],
        }

    def score(self, module: nn.Module) -> tuple[str, float] | None:
        """Name and value of a network's headline metric, where there are annotations."""
        if self.scored is None:
            return None
        with self.progress.bar("scoring", len(self.scored)) as advance:
            runner = TorchRunner(module, self.checkpoint.pose)
            found = evaluate(self.scored, runner, height=self.size[0], progress=lambda *_: advance(1))
        return found.score.headline

    def attempt(self, trial: Trial) -> tuple[Outcome, Model | None]:
        """Make and measure the network of a trial without recovery.

        Raises
        ------
        RankError
            If not even all forms can meet the budget in full; it names the nearest that can be met.
        """
        allowed = FORMS[trial.forms]
        listed = self.work.curves.candidates
        began = time.perf_counter()  # statistics are gathered once and count for no trial
        curves = replace(
            self.work.curves,
            candidates={name: tuple(x for x in found if x.method in allowed) for name, found in listed.items()},
        )
        work, asked = replace(self.work, curves=curves), replace(self.budget, value=self.budget.value * trial.level)
        try:
            if self.budget.kind == "latency":
                done, record = within_latency(work, asked, self.checkpoint, self.step, self.progress)
                if record["gate"]["verdict"] != "faster":
                    return Outcome("not_faster", time.perf_counter() - began), None
            else:
                done, record = within_cost(work, asked, self.progress)
        except RankError:
            if trial == Trial(max(self.options.level), "all"):
                raise
            return Outcome("infeasible", time.perf_counter() - began), None
        edit = FactorizeEdit.from_plan(done.plan, done.biases)
        made = self.checkpoint.derive(
            done.module,
            edits=(edit,) if edit.layers else (),
            command="search",
            budget=str(self.budget),
            trial=trial.name,
        )
        return self._measured(done.module, record["reached"], began), made

    def recover(self, start: Outcome, path: Path, trial: Trial) -> tuple[Outcome, Model]:
        """Distil the network of an earlier trial from the original, without labels, and measure it."""
        began = time.perf_counter()
        options, pose = self.options, self.checkpoint.pose
        checkpoint = load(path, self.options.network)
        tuning = FineTuneOptions(
            steps=options.recover,
            batch_size=options.batch_size,
            size=(max(1, self.size[0] // pose.stride) * pose.stride, max(1, self.size[1] // pose.stride) * pose.stride),
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

            done = finetune(
                checkpoint.module, self.dataset, tuning, pose=pose, teacher=self.module, on_step=on_step
            )  # fmt: skip
        made = checkpoint.derive(done.module, command="search", steps=options.recover, trial=trial.name)
        assert start.cost is not None  # of a point on the front
        return self._measured(done.module, start.cost, began), made

    def _measured(self, module: nn.Module, price: float, began: float) -> Outcome:
        found, score = cost(module, self.size), self.score(module)
        compared = self.images[self.options.calibrate :] or self.images[:COMPARED]
        errors = map_errors(self.module, module, compared)
        return Outcome(
            verdict="done",
            seconds=time.perf_counter() - began,
            cost=price,
            macs=found.macs,
            params=found.params,
            size_bytes=found.size_bytes,
            map_error=sum(errors.values()) / len(errors),
            score=None if score is None else score[1],
        )


def _try_all(search: Search, bench: Bench, folder: Path, minutes: float, progress: Progress) -> None:
    """All trials that are left and fit into the time; each is on disk before the next begins."""
    deadline = time.monotonic() + 60 * minutes
    points = folder / "points"
    for trial in search.left:
        if search.outcomes and time.monotonic() + search.expected_seconds(trial) > deadline:
            progress.say(f"time is up: {len(search.left)} trial(s) left; --resume goes on")
            return
        made: Model | None = None
        if not trial.tuned:
            outcome, made = bench.attempt(trial)
        elif trial.start.name in search.front:
            begun = search.outcomes[trial.start.name]
            outcome, made = bench.recover(begun, points / f"{trial.start.name}.pt", trial)
        else:
            outcome = Outcome("beaten", 0.0)
        search.outcomes[trial.name] = outcome
        kept = trial.name in search.front
        if kept and made is not None:
            save(made, points / f"{trial.name}.pt", force=True)
        search.write(folder)
        progress.say(_line(search, trial, outcome, kept))


def _line(search: Search, trial: Trial, outcome: Outcome, kept: bool) -> str:
    text = f"[{len(search.outcomes)}/{len(search.trials)}] {trial.name}: "
    if outcome.verdict != "done":
        return text + outcome.verdict.replace("_", " ")
    score = "" if outcome.score is None else f", {search.original['metric']} {outcome.score:.3f}"
    return f"{text}cost {outcome.cost:.4g}, map error {outcome.map_error:.4f}{score}, {'kept' if kept else 'beaten'}"


def _read_budget(options: SearchOptions) -> Budget:
    budget = Budget.parse(options.budget)
    if budget.kind in ("error", "drop"):
        raise UsageError(
            "a search weighs cost against error, so its budget is one of cost",
            found=options.budget,
            hint="Give macs=, params=, size= or latency=",
        )
    if not options.has_data:
        raise UsageError("points are measured on images, and none are named", hint="Give --data")
    if not options.minutes > 0:
        raise UsageError("--minutes must be above 0", found=options.minutes)
    if options.recover < 0:
        raise UsageError("--recover must be 0 or more steps", found=options.recover)
    return budget


def run(options: SearchOptions, progress: Progress) -> StageResult:
    """Search until all trials are done or the time is up, and tell of the front."""
    budget = _read_budget(options)
    trials = order_trials(options.level, options.recover > 0, options.seed)
    folder, began = options.output, time.perf_counter()
    if not options.resume:
        refuse_existing(folder / "front.json", options.force)
    checkpoint = load_model(options)
    size = counting_size(checkpoint, options.input)
    dataset = open_dataset(options)
    scored: Dataset | None = dataset if dataset.annotated else None
    if options.validation is not None:
        scored = open_data(options.validation, split=options.split)
    conditions = _conditions(options, size, dataset, scored)
    bench = Bench(options, checkpoint, size, dataset, scored, progress)
    if options.resume:
        search = read_search(folder, conditions, trials)
        progress.say(f"{len(search.outcomes)} of {len(trials)} trials were finished before")
    else:
        search = Search(conditions, bench.original(), trials)
    search.write(folder)
    try:
        _try_all(search, bench, folder, options.minutes, progress)
    except KeyboardInterrupt:
        progress.say(f"stopped after {len(search.outcomes)} of {len(trials)} trials; --resume goes on")
        raise
    unit = KINDS[budget.kind] + (f" on {budget.target}" if budget.target else "")
    rows = search.rows()
    made = [row for row in rows if row["verdict"] == "done"]
    files = [folder / "front.json", *(folder / row["checkpoint"] for row in made if row["front"])]
    if made:
        files.append(folder / "front.png")
        with atomic_path(files[-1]) as temporary:
            temporary.write_bytes(search_front(made, unit, search.original["metric"]))
    record = {
        "output": str(folder),
        "network": checkpoint.source.name,
        "input": list(size),
        "budget": str(budget),
        "unit": unit,
        "original": search.original,
        "trials": rows,
        "left": [trial.name for trial in search.left],
        "seconds": time.perf_counter() - began,
    }
    return StageResult(record, tuple(files))


STAGE = Stage(SearchOptions, run, "compress search model.pt --budget macs=0.5 --data images:DIR -o searched")
