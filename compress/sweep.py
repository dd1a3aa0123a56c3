"""Run a recipe once for every combination of some of its variables' values, and put the results side by side."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compress.commands.base import plain
from compress.errors import CompressError, UsageError
from compress.files import write_text
from compress.pipeline import StepReport, run_recipe
from compress.progress import Progress
from compress.recipe import Recipe, load_recipe

#: Files that a sweep writes into its folder.
JSON_NAME, CSV_NAME = "sweep.json", "sweep.csv"


@dataclass(frozen=True)
class SweptScore:
    """Keypoint metrics of a model.

    Attributes
    ----------
    data : str
        Name of the data set.
    images : int or None
        Number of images; None if the report does not say.
    metrics : mapping of str to float
        The headline first.
    """

    data: str
    images: int | None
    metrics: Mapping[str, float]

    @property
    def headline(self) -> tuple[str, float]:
        """Name and value of the main metric."""
        return next(iter(self.metrics.items()))


@dataclass(frozen=True)
class SweptModel:
    """A model that a combination ends with.

    Attributes
    ----------
    label : str
        Stem of its file.
    network : str
        Name of the network before its first edit; empty for an exported file.
    options : mapping
        All options of that network.
    edits : int
        Structural edits since, such as factorized layers.
    input : tuple of int
        Height and width at which operations are counted; empty if unknown.
    params, macs, flops : int or None
        Parameters, executed multiply-adds of convolution and linear layers, and twice that; None if unknown.
    scores : tuple of SweptScore
        From the recipe's evaluate stages; without any, from its report.
    latency : mapping of str to float
        Median milliseconds by runtime, from the recipe's report.
    """

    label: str
    network: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    edits: int = 0
    input: tuple[int, ...] = ()
    params: int | None = None
    macs: int | None = None
    flops: int | None = None
    scores: tuple[SweptScore, ...] = ()
    latency: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepRun:
    """One combination.

    Attributes
    ----------
    name : str
        Name of its subfolder, such as ``attention=esa_7+depth=50``.
    variables : mapping of str to str
        The values of the variables that are swept.
    models : tuple of SweptModel
        What it ended with; empty if it failed.
    ran, skipped : int
        Stages that were run, and that were finished before.
    error : str
        Why it failed; empty if it did not.
    """

    name: str
    variables: Mapping[str, str]
    models: tuple[SweptModel, ...] = ()
    ran: int = 0
    skipped: int = 0
    error: str = ""


@dataclass(frozen=True)
class Sweep:
    """All combinations.

    Attributes
    ----------
    title : str
        Of the recipe.
    folder : Path
        Where the subfolders, ``sweep.json`` and ``sweep.csv`` are.
    over : mapping of str to tuple of str
        The swept variables and their values.
    runs : tuple of SweepRun
        The combinations, the last variable changing fastest.
    """

    title: str
    folder: Path
    over: Mapping[str, tuple[str, ...]]
    runs: tuple[SweepRun, ...]

    @property
    def failed(self) -> tuple[SweepRun, ...]:
        """The combinations that failed."""
        return tuple(run for run in self.runs if run.error)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        record: dict[str, Any] = plain(self)
        return record

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Column names, and a row for each score of each model; a combination that failed has a row with its error."""
        runtimes = list(dict.fromkeys(name for run in self.runs for model in run.models for name in model.latency))
        columns = [*self.over, "model", "params", "MACs", "FLOPs", "metric", "value", "data"]
        rows = []
        for run in self.runs:
            start = [run.variables[name] for name in self.over]
            if run.error:
                rows.append([*start, *[""] * (7 + len(runtimes)), run.error])
            for model in run.models:
                costs = [_text(value) for value in (model.params, model.macs, model.flops)]
                latency = [f"{model.latency[name]:.3f}" if name in model.latency else "" for name in runtimes]
                for score in model.scores or (None,):
                    shown = (
                        ["", "", ""] if score is None else [score.headline[0], f"{score.headline[1]:.4f}", score.data]
                    )
                    rows.append([*start, model.label, *costs, *shown, *latency, ""])
        return [*columns, *(f"{name} ms" for name in runtimes), "error"], rows

    def save(self) -> tuple[Path, ...]:
        """Write ``sweep.json`` and ``sweep.csv``, replacing those of an earlier sweep."""
        text = io.StringIO()
        columns, rows = self.table()
        csv.writer(text, lineterminator="\n").writerows([columns, *rows])
        files = self.folder / JSON_NAME, self.folder / CSV_NAME
        write_text(files[0], json.dumps(self.to_dict(), indent=1))
        write_text(files[1], text.getvalue())
        return files


def _text(value: int | None) -> str:
    return "" if value is None else str(value)


def parse_over(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """``["depth=50,101"]`` as ``{"depth": ("50", "101")}``.

    Values with commas are given as a JSON list of texts: ``options=["a,b", "c"]``.

    Raises
    ------
    UsageError
        If a text is not ``NAME=VALUE,VALUE``, or names a variable or a value for the second time.
    """
    over: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, sign, listed = text.partition("=")
        values = _values(listed)
        if not sign or not name or not values or "" in values:
            raise UsageError("variables to sweep are written NAME=VALUE,VALUE", found=text)
        if name in over or len(set(values)) < len(values):
            raise UsageError("a variable or value is given twice", found=text, hint="Name each once")
        over[name] = values
    if not over:
        raise UsageError("no variable is given to sweep over", hint="Give --over NAME=VALUE,VALUE")
    return over


def _values(listed: str) -> tuple[str, ...]:
    if listed.startswith("["):
        try:
            return tuple(value if isinstance(value, str) else json.dumps(value) for value in json.loads(listed))
        except json.JSONDecodeError:
            pass
    return tuple(value.strip() for value in listed.split(","))


def combinations(over: Mapping[str, Sequence[str]]) -> dict[str, dict[str, str]]:
    """The Cartesian product: names of subfolders, and the variables of each, the last variable changing fastest.

    Raises
    ------
    UsageError
        If two combinations would have the same subfolder.
    """
    named: dict[str, dict[str, str]] = {}
    for values in itertools.product(*over.values()):
        variables = dict(zip(over, values, strict=True))
        name = "+".join(f"{key}={re.sub(r'[^A-Za-z0-9_.=-]', '-', value)}" for key, value in variables.items())
        if name in named:
            raise UsageError("two combinations would have the same subfolder", found=name)
        named[name] = variables
    return named


def load_sweep(
    path: Path,
    over: Mapping[str, Sequence[str]],
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[Path, dict[str, Recipe]]:
    """Read a recipe once for each combination; the options of all stages of all of them are checked.

    Parameters
    ----------
    path : Path
        The recipe.
    over : mapping
        Variables of the recipe and the values that each takes.
    folder : Path, optional
        Holds the subfolders; the recipe's own folder by default.
    variables : mapping, optional
        Other variables, the same in all combinations.

    Returns
    -------
    folder : Path
        Where the subfolders are.
    recipes : dict of str to Recipe
        By name of the subfolder.

    Raises
    ------
    UsageError
        If a variable is unknown or given in both ways, or a value is none that its option takes.
    FileError
        If the recipe can't be read.
    """
    fixed = dict(variables or {})
    both = sorted(set(fixed) & set(over))
    if both:
        raise UsageError("a variable is both set and swept over", found=both)
    recipes = {}
    home = folder
    for name, swept in combinations(over).items():
        if home is None:
            home = load_recipe(path, variables=fixed | swept).folder
        recipes[name] = load_recipe(path, folder=home / name, variables=fixed | swept)
    return home or Path(), recipes


def run_sweep(
    home: Path,
    recipes: Mapping[str, Recipe],
    over: Mapping[str, Sequence[str]],
    progress: Progress,
    *,
    force: bool = False,
) -> Sweep:
    """Run a recipe once for each combination; one that fails is noted, and the others go on.

    Parameters
    ----------
    home, recipes : Path and dict
        What `load_sweep` gives.
    over : mapping
        Variables and values, as given to `load_sweep`.
    progress : Progress
        Receives messages and progress of the stages.
    force : bool
        Run every stage, finished or not.

    Returns
    -------
    Sweep
        Saved already, after each combination.
    """
    runs: list[SweepRun] = []
    named = combinations(over)
    title = next(iter(recipes.values())).title
    for number, (name, recipe) in enumerate(recipes.items(), 1):
        progress.say(f"[{number}/{len(recipes)}] {name}")
        runs.append(_run(name, named[name], recipe, progress, force=force))
        sweep = Sweep(title, home, {key: tuple(values) for key, values in over.items()}, tuple(runs))
        sweep.save()
    return sweep


def _run(name: str, variables: dict[str, str], recipe: Recipe, progress: Progress, *, force: bool) -> SweepRun:
    """Run one combination and collect its models."""
    try:
        reports = run_recipe(recipe, progress, force=force)
        models = swept_models(recipe, reports)
    except CompressError as error:
        progress.say(f"{name} failed: {error}")
        return SweepRun(name, variables, error=str(error))
    except Exception as error:  # a bug must not end a sweep of days; its traceback is kept
        write_text(recipe.folder / "traceback.txt", traceback.format_exc())
        progress.say(f"{name} failed: {error!r}; see {recipe.folder / 'traceback.txt'}")
        return SweepRun(name, variables, error=repr(error))
    skipped = sum(report.skipped for report in reports)
    return SweepRun(name, variables, models, len(reports) - skipped, skipped)


def swept_models(recipe: Recipe, reports: Sequence[StepReport]) -> tuple[SweptModel, ...]:
    """The models of a finished recipe.

    These are the models of its last report and those that its evaluate stages score; without either the last model that
    is written.

    Parameters
    ----------
    recipe : Recipe
        What was run.
    reports : sequence of StepReport
        What its stages did.
    """
    paths: dict[str, Path] = {}
    scores: dict[str, list[SweptScore]] = {}
    size = None
    for step, report in zip(recipe.steps, reports, strict=True):
        if report.stage == "evaluate":
            path = Path(report.record["model"])
            paths[path.stem] = path
            score = SweptScore(report.record["data"], report.record["images"], report.record["metrics"])
            scores.setdefault(path.stem, []).append(score)
        elif report.stage == "report":
            options = step.options.model_dump()
            size = options["input"]
            paths |= {path.stem: path for path in (options["original"], *options["variants"])}
    if not paths:
        written = [path for report in reports for path in report.files if path.suffix in (".pt", ".safetensors")]
        paths = {path.stem: path for path in written[-1:]}
    reported = _reported(reports)
    return tuple(_model(path, size, scores.get(stem, []), reported.get(stem, {})) for stem, path in paths.items())


def _reported(reports: Sequence[StepReport]) -> dict[str, dict[str, Any]]:
    """The models of the last report.json by the stems of their files, each with the name of the data."""
    files = [path for report in reports for path in report.files if path.name == "report.json"]
    if not files:
        return {}
    record = json.loads(files[-1].read_text(encoding="utf-8"))
    data = str(record["conditions"].get("data", ""))
    return {Path(model["file"]).stem: model | {"data": data} for model in record["models"]}


def _model(
    path: Path, size: tuple[int, int] | None, scores: Sequence[SweptScore], reported: Mapping[str, Any]
) -> SweptModel:
    """What is known of a model's file, its scores, and its entry in the report."""
    latency = {name: float(row["latency_ms"]) for name, row in reported.get("latency", {}).items()}
    if not scores and reported.get("metrics"):
        scores = [SweptScore(reported["data"], None, reported["metrics"])]
    measured = SweptModel(path.stem, macs=reported.get("macs"), scores=tuple(scores), latency=latency)
    if path.suffix in (".onnx", ".xml"):
        return measured
    from compress.checkpoint.load import load  # with torch, which wrong options need not wait for

    model = load(path).at_size(size)
    return replace(
        measured,
        network=model.name,
        options=dict(model.source.options),
        edits=len(model.edits),
        input=model.size,
        params=model.cost.params,
        macs=model.cost.macs,
        flops=model.cost.flops,
    )
