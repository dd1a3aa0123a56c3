"""The trials of a search, their outcomes, and the file that keeps both."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from compress.errors import FileError, UsageError
from compress.files import read_bytes, write_text
from compress.forms import registry
from compress.planning.pareto import pareto_front
from compress.planning.plan import KEEP

FORMAT = "compress-search"
VERSION = 1

#: Forms that a trial may use. A 1x1 convolution or linear layer has only one.
FORMS = {
    "all": (KEEP, *registry.FORMS),
    "no_spatial": (KEEP, *(name for name, form in registry.FORMS.items() if not form.spatial)),
    "tucker2": (KEEP, *(name for name, form in registry.FORMS.items() if form.usual)),
}

#: Outcomes of a trial.
VERDICTS = {
    "done": "a network was made and measured",
    "infeasible": "these forms can't meet this budget",
    "not_faster": "measured no faster than the original",
    "beaten": "not tried: the network that it would start from is not on the front",
}

_POINT = re.compile(r"\d[\d.e-]*-(all|no_spatial|tucker2)(-tuned)?\.pt")


@dataclass(frozen=True)
class Trial:
    """One combination of budget, forms and recovery.

    Attributes
    ----------
    level : float
        Share of the budget that ranks are chosen for.
    forms : str
        A key of `FORMS`.
    tuned : bool
        Whether the network is then distilled from the original; it starts from the trial that is not tuned.
    """

    level: float
    forms: str
    tuned: bool = False

    @property
    def name(self) -> str:
        """Name of the trial and of its checkpoint."""
        return f"{self.level:g}-{self.forms}" + ("-tuned" if self.tuned else "")

    @property
    def start(self) -> Trial:
        """The trial that a tuned one starts from."""
        return Trial(self.level, self.forms)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a trial; the numbers are those of the network that was made, else None.

    Attributes
    ----------
    verdict : str
        A key of `VERDICTS`.
    seconds : float
        Wall time.
    cost : float or None
        In the unit of the budget.
    macs, params, size_bytes : int or None
        As of `compress.network.cost`.
    map_error : float or None
        Relative squared error of the final outputs, mean over them.
    score : float or None
        Accuracy, where there are annotations.
    """

    verdict: str
    seconds: float
    cost: float | None = None
    macs: int | None = None
    params: int | None = None
    size_bytes: int | None = None
    map_error: float | None = None
    score: float | None = None

    @property
    def quantities(self) -> tuple[float, ...]:
        """Cost, map error and, if it was measured, negative accuracy: the quantities of the front, less is better."""
        assert self.cost is not None  # of every network that was made
        assert self.map_error is not None
        return (self.cost, self.map_error, *(() if self.score is None else (-self.score,)))


@dataclass
class Search:
    """The state of a search.

    Attributes
    ----------
    conditions : mapping
        Everything that decides the outcomes, as plain data: a search is resumed under the same conditions only.
    original : dict
        Costs, and the score where there are annotations, of the network that is compressed.
    trials : tuple of Trial
        All of them in their order.
    outcomes : dict of str to Outcome
        By name of the trial.
    """

    conditions: Mapping[str, Any]
    original: dict[str, Any]
    trials: tuple[Trial, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def left(self) -> tuple[Trial, ...]:
        """Trials that are left."""
        return tuple(trial for trial in self.trials if trial.name not in self.outcomes)

    @property
    def front(self) -> tuple[str, ...]:
        """Names of the trials on the Pareto front, the cheapest first."""
        done = [name for name, outcome in self.outcomes.items() if outcome.verdict == "done"]
        return tuple(done[i] for i in pareto_front([self.outcomes[name].quantities for name in done]))

    def expected_seconds(self, trial: Trial) -> float:
        """Expected time of a trial: that of the longest one of its kind."""
        kind = [x.name for x in self.trials if x.tuned == trial.tuned and x.name in self.outcomes]
        return max((self.outcomes[name].seconds for name in kind), default=0.0)

    def rows(self) -> list[dict[str, Any]]:
        """All finished trials in their order, as plain data."""
        front = self.front
        return [
            {
                "name": trial.name,
                **asdict(trial),
                **asdict(self.outcomes[trial.name]),
                "front": trial.name in front,
                "checkpoint": f"points/{trial.name}.pt" if trial.name in front else None,
            }
            for trial in self.trials
            if trial.name in self.outcomes
        ]

    def write(self, folder: Path) -> None:
        """Write ``front.json`` atomically, then remove the checkpoints of dominated points."""
        record = {
            "format": FORMAT,
            "version": VERSION,
            "conditions": dict(self.conditions),
            "original": self.original,
            "trials": self.rows(),
            "left": [trial.name for trial in self.left],
        }
        write_text(folder / "front.json", json.dumps(record, indent=1, allow_nan=False))
        kept = {f"{name}.pt" for name in self.front}
        for path in (folder / "points").glob("*.pt"):
            if path.name not in kept and _POINT.fullmatch(path.name):
                path.unlink()


def order_trials(levels: Sequence[float], tuned: bool, seed: int) -> tuple[Trial, ...]:
    """All trials: first the whole budget with all forms, then the others in a random order, then the tuned ones.

    Raises
    ------
    UsageError
        If a level is not a share, or there are none.
    """
    if not levels or not all(0 < level <= 1 for level in levels):
        raise UsageError("levels are shares of the budget, above 0 and at most 1", found=list(levels))
    plain = [Trial(level, forms) for level in sorted(set(levels), reverse=True) for forms in FORMS]
    rest = plain[1:]
    random.Random(seed).shuffle(rest)
    ordered = [plain[0], *rest]
    return (*ordered, *(Trial(trial.level, trial.forms, True) for trial in ordered if tuned))


def read_search(folder: Path, conditions: Mapping[str, Any], trials: tuple[Trial, ...]) -> Search:
    """Read what `Search.write` wrote, to resume it.

    Parameters
    ----------
    folder : Path
        Folder of the search.
    conditions : mapping
        Those of the present request.
    trials : tuple of Trial
        All trials under these conditions.

    Raises
    ------
    FileError
        If there is no search, or its file can't be read.
    UsageError
        If it was started under other conditions.
    """
    path = folder / "front.json"
    content = read_bytes(path, "search to resume")
    try:
        record = json.loads(content)
        if record["format"] != FORMAT or record["version"] != VERSION:
            raise ValueError(f"unsupported kind or version: {record['format']!r}, {record['version']!r}")
        started, original = dict(record["conditions"]), dict(record["original"])
        keys = {x.name for x in fields(Outcome)}
        found = {row["name"]: Outcome(**{key: row[key] for key in keys}) for row in record["trials"]}
        if not all(_sound(outcome, original["score"]) for outcome in found.values()):
            raise ValueError("a trial's outcome is inconsistent")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise FileError(
            f"the search can't be read ({error})", found=str(path), hint="Start over with --force"
        ) from error
    other = sorted(key for key in {*started, *conditions} if started.get(key) != conditions.get(key))
    if other:
        raise UsageError(
            f"the search was started under other conditions ({', '.join(other)})",
            found={key: [started.get(key), conditions.get(key)] for key in other},
            hint="Repeat the same request, or start over with --force or in another folder",
        )
    return Search(conditions, original, trials, {x.name: found[x.name] for x in trials if x.name in found})


def _sound(outcome: Outcome, original_score: float | None) -> bool:
    numbers = [outcome.seconds]
    if outcome.verdict == "done":
        scores = [] if original_score is None else [outcome.score]
        numbers += [outcome.cost, outcome.map_error, *scores]  # type: ignore[list-item]
    return outcome.verdict in VERDICTS and all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers)
