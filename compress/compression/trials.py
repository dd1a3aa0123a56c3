"""The trials of a search: which there are, what came of them, and the file that keeps both."""

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
from compress.planning.pareto import pareto_front
from compress.planning.plan import METHODS

FORMAT = "compress-search"
VERSION = 1

#: Block forms that a trial may use. A 1x1 convolution or linear layer has one form alone.
FORMS = {
    "all": tuple(METHODS),
    "no_spatial": ("keep", "tucker2", "svd", "tucker1_in", "tucker1_out"),
    "tucker2": ("keep", "tucker2", "svd"),
}

#: What can come of a trial.
VERDICTS = {
    "done": "a network was made and measured",
    "infeasible": "these forms can't meet so small a budget",
    "not_faster": "measured no faster than the original",
    "beaten": "not tried: what it would start from is not on the front",
}

_POINT = re.compile(r"\d[\d.e-]*-(all|no_spatial|tucker2)(-tuned)?\.pt")


@dataclass(frozen=True)
class Trial:
    """One combination to try.

    Attributes
    ----------
    level : float
        Share of the budget that ranks are chosen for.
    forms : str
        A key of `FORMS`.
    tuned : bool
        Whether the network is then distilled from the original; it starts from the trial without.
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
    """What came of a trial; the numbers are those of a network that was made, else None.

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
        Relative squared error of the final maps, mean over their kinds.
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
        """What the front is about: cost, map error and, where it was measured, accuracy lost; less is better."""
        assert self.cost is not None  # of every network that was made
        assert self.map_error is not None
        return (self.cost, self.map_error, *(() if self.score is None else (-self.score,)))


@dataclass
class Search:
    """A search as far as it has come.

    Attributes
    ----------
    conditions : mapping
        What it was asked for, as plain data: a search goes on under the same conditions alone.
    original : dict
        Costs, and the score where there are annotations, of the network that is compressed.
    trials : tuple of Trial
        All of them in their order.
    outcomes : dict of str to Outcome
        Of those that were tried, by name.
    """

    conditions: Mapping[str, Any]
    original: dict[str, Any]
    trials: tuple[Trial, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def left(self) -> tuple[Trial, ...]:
        """Trials that were not tried yet."""
        return tuple(trial for trial in self.trials if trial.name not in self.outcomes)

    @property
    def front(self) -> tuple[str, ...]:
        """Names of the trials that no other beats, the cheapest first."""
        done = [name for name, outcome in self.outcomes.items() if outcome.verdict == "done"]
        return tuple(done[i] for i in pareto_front([self.outcomes[name].quantities for name in done]))

    def expected_seconds(self, trial: Trial) -> float:
        """How long a trial may take: as the longest of its kind did."""
        kind = [x.name for x in self.trials if x.tuned == trial.tuned and x.name in self.outcomes]
        return max((self.outcomes[name].seconds for name in kind), default=0.0)

    def rows(self) -> list[dict[str, Any]]:
        """All trials that were tried, in their order, as plain data."""
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
        """Write ``front.json`` in one step, then remove the checkpoints of points that are beaten."""
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
    """All trials: the whole budget with all forms, the others in an order drawn by the seed, then the tuned ones.

    Raises
    ------
    UsageError
        If a level is none, or there are none.
    """
    if not levels or not all(0 < level <= 1 for level in levels):
        raise UsageError("levels are shares of the budget, above 0 and at most 1", found=list(levels))
    plain = [Trial(level, forms) for level in sorted(set(levels), reverse=True) for forms in FORMS]
    rest = plain[1:]
    random.Random(seed).shuffle(rest)
    ordered = [plain[0], *rest]
    return (*ordered, *(Trial(trial.level, trial.forms, True) for trial in ordered if tuned))


def read_search(folder: Path, conditions: Mapping[str, Any], trials: tuple[Trial, ...]) -> Search:
    """Read what `Search.write` wrote, to go on.

    Parameters
    ----------
    folder : Path
        Folder of the search.
    conditions : mapping
        What is asked for now.
    trials : tuple of Trial
        All trials under these conditions.

    Raises
    ------
    FileError
        If there is no search, or its file can't be read.
    UsageError
        If it was begun under other conditions.
    """
    path = folder / "front.json"
    content = read_bytes(path, "search to go on with")
    try:
        record = json.loads(content)
        if record["format"] != FORMAT or record["version"] != VERSION:
            raise ValueError(f"it is of another kind or version: {record['format']!r}, {record['version']!r}")
        began, original = dict(record["conditions"]), dict(record["original"])
        keys = {x.name for x in fields(Outcome)}
        found = {row["name"]: Outcome(**{key: row[key] for key in keys}) for row in record["trials"]}
        if not all(_sound(outcome, original["score"]) for outcome in found.values()):
            raise ValueError("a trial's outcome makes no sense")
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise FileError(f"the search can't be read ({error})", found=str(path), hint="Begin anew: --force") from error
    other = sorted(key for key in {*began, *conditions} if began.get(key) != conditions.get(key))
    if other:
        raise UsageError(
            f"the search was begun under other conditions ({', '.join(other)})",
            found={key: [began.get(key), conditions.get(key)] for key in other},
            hint="Ask for the same again, or begin anew with --force or in another folder",
        )
    return Search(conditions, original, trials, {x.name: found[x.name] for x in trials if x.name in found})


def _sound(outcome: Outcome, original_score: float | None) -> bool:
    numbers = [outcome.seconds]
    if outcome.verdict == "done":
        scores = [] if original_score is None else [outcome.score]
        numbers += [outcome.cost, outcome.map_error, *scores]  # type: ignore[list-item]
    return outcome.verdict in VERDICTS and all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers)
