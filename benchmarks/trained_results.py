"""Scores of trained runs, from the sweep.json and report.json files below a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from published_tables import Row

from compress.checkpoint.load import load
from compress.errors import FileError
from compress.network.source import NetworkSpec
from compress.zoo.registry import resolve

#: How names of data sets begin, by the name in the papers' files.
DATA = {"coco": "person_keypoints", "mpii": "mpii:", "lsp": "lsp:", "lip": "lip:"}

#: Options that change how a network is counted, and nothing it computes.
COUNTED = {"down"}


@dataclass(frozen=True)
class Trained:
    """A trained model and one of its scores.

    Attributes
    ----------
    label : str
        Stem of its file.
    network, options, edits : str, mapping, int
        What it is, and how many structural edits it has.
    input : tuple of int
        Height and width of its images; empty if unknown.
    variables : mapping of str to str
        Variables of the sweep that made it.
    data : str
        Name of the data set.
    metrics : mapping of str to float
        Shares from 0 to 1.
    """

    label: str
    network: str
    options: Mapping[str, Any]
    edits: int
    input: tuple[int, ...]
    variables: Mapping[str, str]
    data: str
    metrics: Mapping[str, float]


def read_results(folder: Path) -> tuple[Trained, ...]:
    """All scores below a folder, those of sweeps first.

    Raises
    ------
    FileError
        If there are none, or a file can't be read.
    """
    found = [entry for path in sorted(folder.rglob("sweep.json")) for entry in _sweep(_read(path))]
    found += [entry for path in sorted(folder.rglob("report.json")) for entry in _report(path, _read(path))]
    if not found:
        raise FileError("there are no scores in sweep.json or report.json files", found=str(folder))
    return tuple(found)


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise FileError(f"{path.name} can't be read: {error}", found=str(path)) from error


def _sweep(record: dict[str, Any]) -> Iterator[Trained]:
    for run in record["runs"]:
        for model in run["models"]:
            for score in model["scores"]:
                yield Trained(
                    model["label"], model["network"], model["options"], model["edits"], tuple(model["input"]),
                    run["variables"], score["data"], score["metrics"],
                )  # fmt: skip


def _report(path: Path, record: dict[str, Any]) -> Iterator[Trained]:
    """Models whose files lie beside the report's folder, as recipes put them: the report does not name the network."""
    for entry in record["models"]:
        file = path.parent.parent / entry["file"]
        if entry.get("metrics") and file.suffix in (".pt", ".safetensors") and file.is_file():
            model = load(file)
            size = re.search(r"(\d+)x(\d+)$", record["conditions"].get("MACs", ""))
            shape = tuple(map(int, size.groups())) if size else ()
            data = str(record["conditions"].get("data", ""))
            yield Trained(
                file.stem, model.name, model.source.options, len(model.edits), shape, {}, data, entry["metrics"]
            )


def find_score(trained: Sequence[Trained], row: Row, data: str, metric: str) -> float | None:
    """The metric of the first model that a row describes; None if there is none."""
    factorized = row.trained and "=" not in row.trained
    ignored = COUNTED | {"ratio"} if factorized else COUNTED  # trained whole, and factorized afterwards
    options = resolve(NetworkSpec(row.network, dict(row.options))).options
    wanted = {name: value for name, value in options.items() if name not in ignored}
    for entry in trained:
        scored = entry.data.startswith(DATA.get(data, data)) and metric in entry.metrics
        if not scored or entry.network != row.network or entry.input not in ((), row.input):
            continue
        options = resolve(NetworkSpec(entry.network, dict(entry.options))).options  # with those added since
        same = all(options[name] == wanted[name] for name in wanted)
        made = entry.label == row.trained if factorized else entry.edits == 0 and _swept(row.trained, entry.variables)
        if same and made:
            return entry.metrics[metric]
    return None


def _swept(trained: str, variables: Mapping[str, str]) -> bool:
    """Whether the swept variables are those of a row."""
    for text in trained.split():
        name, _, value = text.partition("=")
        wanted, usual = value.removesuffix("*"), value.endswith("*")
        if not _same(variables.get(name, wanted if usual else ""), wanted):
            return False
    return True


def _same(text: str, wanted: str) -> bool:
    """Whether two texts are equal, as numbers if they are."""
    try:
        return float(text) == float(wanted)
    except ValueError:
        return text == wanted
