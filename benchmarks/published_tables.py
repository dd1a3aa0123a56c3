"""The papers' tables as data: `benchmarks/published/*.toml`, one file a paper, values as printed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compress.errors import FileError, UsageError, similar

FOLDER = Path(__file__).parent / "published"

#: What a cell says where the paper prints nothing.
EMPTY = "-"

#: Columns that are counted or measured without data, and what they show.
COSTS = {
    "params": "params, M",
    "ops": "operations, G",
    "ms": "ms",
    "fps": "fps",
    "times": "times fewer operations",
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes
    ----------
    label : str
        As the paper names it.
    cells : mapping of str to str
        Printed values by column, `EMPTY` where there is none.
    network, options, input : str, mapping, tuple of int
        The registered network, its options and the height and width it is counted at; an empty name if there is none.
    part : str
        The submodule that the row describes; empty for the whole network.
    without : str
        Why no network here stands beside the row.
    note : str
        Our reading, or why a count differs.
    trained : str
        The trained model whose scores fill the row: the stem of its file, or ``NAME=VALUE`` of its sweep, several
        separated by blanks (``VALUE*`` also where that variable was not swept). If empty, the network as it was
        trained, without factorized layers.
    speed : str
        ``TABLE/NETWORK`` in the file of `paper_speed.py`.
    """

    label: str
    cells: Mapping[str, str]
    network: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    input: tuple[int, ...] = ()
    part: str = ""
    without: str = ""
    note: str = ""
    trained: str = ""
    speed: str = ""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes
    ----------
    name, title, note : str
        Its number in the paper, what it shows, and what to know about it.
    columns : tuple of str
        Keys of `COSTS`, or metrics.
    rows : tuple of Row
        In the paper's order.
    data : str
        The data set of the metrics: ``coco``, ``mpii``, ``lsp`` or ``lip``.
    metrics : mapping of str to str
        ``DATA:METRIC`` of columns that are of another data set or name.
    scale : float
        Factor from shares to printed values.
    convention : str
        How the paper counts operations: a key of `compress.network.conventions.CONVENTIONS`.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    data: str = ""
    note: str = ""
    metrics: Mapping[str, str] = field(default_factory=dict)
    scale: float = 100.0
    convention: str = ""

    def metric(self, column: str) -> tuple[str, str]:
        """Data set and name of a column's metric."""
        if column in self.metrics:
            data, _, name = self.metrics[column].partition(":")
            return data, name
        if self.data == "coco":
            return self.data, column
        headline = "PCK@0.2" if self.data == "lsp" else "mean of 7"
        return self.data, {"Mean": headline, "AUC": "AUC"}.get(column, column.lower())


@dataclass(frozen=True)
class Paper:
    """A paper and its tables."""

    number: str
    name: str
    title: str
    tables: tuple[Table, ...]


def read_paper(path: Path) -> Paper:
    """Read a paper's file.

    Raises
    ------
    FileError
        If a row has another number of cells than its table has columns, or an unknown key.
    """
    with path.open("rb") as file:
        record = tomllib.load(file)
    try:
        tables = tuple(_table(table) for table in record.pop("table"))
        return Paper(**record, tables=tables)
    except (TypeError, KeyError, ValueError) as error:
        raise FileError(f"{path.name} is not a paper's tables: {error}", found=str(path)) from error


def _table(record: dict[str, Any]) -> Table:
    columns = tuple(record.pop("columns").split())
    rows = []
    for row in record.pop("row"):
        cells = row.pop("cells").split()
        if len(cells) != len(columns):
            raise ValueError(f"{record['name']}, {row['label']} has {len(cells)} cells for {len(columns)} columns")
        given = row | {"input": tuple(row.get("input", ()))}
        rows.append(Row(cells=dict(zip(columns, cells, strict=True)), **given))
    return Table(columns=columns, rows=tuple(rows), **record)


def papers(name: str = "all") -> tuple[Paper, ...]:
    """The paper of that number or name, or all of them.

    Raises
    ------
    UsageError
        If there is none.
    """
    known = tuple(read_paper(path) for path in sorted(FOLDER.glob("*.toml")))
    found = tuple(paper for paper in known if name in ("all", paper.number, paper.name))
    if not found:
        names = [word for paper in known for word in (paper.number, paper.name)]
        raise UsageError(f"unknown paper{similar(name, names)}", found=name, hint=f"Known: {', '.join(names)}, all")
    return found
