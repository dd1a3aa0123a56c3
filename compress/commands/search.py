"""`compress search`: try ranks, forms and recovery within a time limit, and keep the Pareto front."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.commands.base import Command, Result
from compress.commands.fields import DataText, option
from compress.commands.options import (
    DataOptions,
    ModelOptions,
    SizeOptions,
    load_model,
    open_dataset,
    open_validation,
)
from compress.progress import Progress

if TYPE_CHECKING:
    from compress.compression.search import SearchResult as Searched


class SearchOptions(ModelOptions, SizeOptions, DataOptions):
    """Options of `compress search`."""

    budget: str = option(
        ..., "Most that a point may cost: macs=0.5, params=, size=, latency=0.6@openvino-cpu", flag="-b"
    )
    output: Path = option(
        ..., "Folder for front.json, front.png and a checkpoint of each point", flag="-o", output=True
    )
    minutes: float = option(20.0, "Start no trial that is expected to end later than this; --resume continues")
    level: tuple[float, ...] = option((1.0, 0.85, 0.7), "Shares of the budget to try; repeat for more")
    recover: int = option(0, "Try points of the front again after N steps of distillation from the original")
    learning_rate: float = option(1e-4, "With --recover: highest learning rate of Adam")
    batch_size: int = option(8, "With --recover: images per step")
    freeze: tuple[str, ...] = option((), "With --recover: modules that are not trained; repeat for more")
    workers: int = option(2, "With --recover: processes that load images")
    validation: DataText | None = option(
        None, "Annotated data (as for --data) that points are scored on (default: --data where it is annotated)"
    )
    calibrate: int = option(64, "Images of --data that factors are fitted to")
    fit_groups: int = option(12, "Groups of layers that are fitted one after the other", old="rounds")
    include: tuple[str, ...] = option((), "Only layers of this name or pattern; repeat for more")
    exclude: tuple[str, ...] = option((), "Leave out layers of this name or pattern; repeat for more")
    seed: int = option(0, "Seed of the order of trials and of recovery")
    resume: bool = option(False, "Continue the search in the output folder; finished trials are not repeated")
    force: bool = option(False, "Start over where the output folder has a search")

    def can_resume(self) -> bool:
        """Whether an interrupted search left its front."""
        return (self.output / "front.json").exists()


@dataclass(frozen=True)
class SearchResult(Result):
    """The finished trials, and the points to choose from."""

    output: str
    network: str
    input: tuple[int, int]
    budget: str
    unit: str
    original: dict[str, Any]
    trials: tuple[dict[str, Any], ...]
    left: tuple[str, ...]
    seconds: float

    @property
    def summary(self) -> str:
        """Number of points and trials."""
        kept = sum(row["front"] for row in self.trials)
        left = f", {len(self.left)} left for --resume" if self.left else ""
        return f"{self.output}: {kept} point(s) on the front, {len(self.trials)} tried{left}"

    def show(self) -> None:
        """Print the Pareto front beside the original."""
        from compress.commands.terminal import print_lines, print_table

        metric = self.original["metric"]
        points = sorted((row for row in self.trials if row["front"]), key=lambda row: row["cost"])
        print_table(
            f"{self.network} at {'x'.join(map(str, self.input))}, {self.budget}: the Pareto front",
            ["checkpoint", "forms", f"cost ({self.unit})", "params", "MACs", "MACs kept", "map error", "recovered",
             *([] if metric is None else [metric])],
            [_original_row(self.original), *(_point_row(row, self.original) for row in points)],
            left=2,
        )  # fmt: skip
        print_lines(self.summary)


def _original_row(original: dict[str, Any]) -> list[str]:
    from compress.commands.terminal import giga, millions

    cells = ["original", "-", "-", millions(original["params"]), giga(original["macs"]), "1.000", "0", "-"]
    return cells + _score_cell(original["score"])


def _point_row(row: dict[str, Any], original: dict[str, Any]) -> list[str]:
    from compress.commands.terminal import giga, millions, share

    return [
        row["checkpoint"],
        row["forms"],
        f"{row['cost']:.4g}",
        millions(row["params"]),
        giga(row["macs"]),
        share(original["macs"], row["macs"]),
        f"{row['map_error']:.4f}",
        "yes" if row["tuned"] else "no",
        *_score_cell(row["score"]),
    ]


def _score_cell(score: float | None) -> list[str]:
    return [] if score is None else [f"{score:.3f}"]


def run(options: SearchOptions, progress: Progress) -> SearchResult:
    """Search until all trials are done or the time is up."""
    from compress.compression.search import search
    from compress.compression.search_options import SearchOptions as Conditions
    from compress.files import read_bytes

    same = (
        "minutes", "level", "recover", "learning_rate", "batch_size", "freeze", "workers", "calibrate", "include",
        "exclude", "seed", "resume", "force", "network",
    )  # fmt: skip
    conditions = Conditions(
        **{name: getattr(options, name) for name in same},
        rounds=options.fit_groups,
        size=options.input,
        digest=hashlib.sha256(read_bytes(options.model, "checkpoint")).hexdigest(),
    )
    model = load_model(options)
    done = search(
        model,
        options.budget,
        open_dataset(options) if options.has_data else None,
        folder=options.output,
        validation=open_validation(options.validation, options),
        options=conditions,
        progress=progress,
    )
    return SearchResult(
        output=str(done.folder),
        network=model.name,
        input=model.at_size(options.input).size,
        budget=done.budget,
        unit=done.unit,
        original=dict(done.original),
        trials=done.trials,
        left=done.left,
        seconds=done.seconds,
        written=(*done.files, *_draw_front(done)),
    )


def _draw_front(done: Searched) -> tuple[Path, ...]:
    """Write the figure of the front, if there is any point."""
    from compress.files import atomic_path
    from compress.reporting.figures import search_front

    if not done.points:
        return ()
    path = done.folder / "front.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(search_front(done.points, done.unit, done.original["metric"]))
    return (path,)


COMMAND = Command(SearchOptions, run, "compress search model.pt --budget macs=0.5 --data images:DIR -o searched")
