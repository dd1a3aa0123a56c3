"""Rows of `benchmarks/paper_speed.py`: the CSV file, and Markdown tables beside the papers' values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from paper_values import TABLES, Table, printed_beside, printed_ratio

from compress.errors import FileError
from compress.files import write_text


@dataclass(frozen=True)
class Row:
    """One candidate's numbers, as they are written.

    ``vs_first`` is the speed-up over the group's first candidate, ``vs_same`` over the first network on the same
    runtime, or, from image to people, over the baseline in OpenVINO BF16 with our decoder if that was timed. Both come
    with the ends of their 95 % intervals; they are empty where there is nothing to compare.
    """

    table: str
    width: int
    height: int
    people: str
    network: str
    runtime: str
    decoder: str
    params: int
    macs: int
    latency_ms: str
    low_ms: str
    high_ms: str
    p90_ms: str
    p99_ms: str
    device_ms: str
    decode_ms: str
    fps: str
    rounds: int
    threads: int
    vs_same: str
    vs_same_low: str
    vs_same_high: str
    vs_first: str
    vs_first_low: str
    vs_first_high: str

    @property
    def key(self) -> tuple[str, str, str]:
        """Identifies the candidate."""
        return self.network, self.runtime, self.decoder

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width


#: Note on the table from image to people.
PEOPLE_NOTE = (
    "Times are those of one image. Rows whose decoder ends in `overlapped` are means over a stream of images, several "
    "of them processed at once as in `compress predict`; all others finish one image before the next."
)

COLUMNS = tuple(f.name for f in fields(Row))
_WHOLE = ("width", "height", "params", "macs", "rounds", "threads")


def write_csv(path: Path, rows: Sequence[Row], machine: Mapping[str, Any], command: str) -> None:
    """Write machine and command in lines that begin with #, then the rows."""
    text = io.StringIO()
    text.write(f"# machine: {json.dumps(machine)}\n# command: {command}\n")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_text(path, text.getvalue())


def read_csv(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Read the machine and the rows of a file of `write_csv`."""
    try:
        first, _, *lines = path.read_text(encoding="utf-8").splitlines()
        machine = json.loads(first.removeprefix("# machine: "))
        read = list(csv.DictReader(lines))
        rows = [Row(**line | {name: int(line[name]) for name in _WHOLE}) for line in read]
        return dict(machine), rows
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FileError(
            "the file is not a table of paper_speed.py, so it can't be continued",
            found=str(path),
            hint="Name another file",
        ) from error


def check_machine(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Refuse to mix machines or versions in one file."""
    differing = [name for name in now if name not in ("memory_gb", "threads") and before.get(name) != now[name]]
    if differing:
        raise FileError(
            f"the rows in this file are from another machine or other versions ({', '.join(differing)})",
            found=str(path),
            hint="Name another file",
        )


def markdown(rows: Sequence[Row], machine: Mapping[str, Any], command: str, absent: Sequence[str]) -> str:
    """All rows as tables, each size beside the paper's values."""
    lines = [
        "# The papers' speed tables, measured",
        "",
        f"`{command}`",
        "",
        f"{machine['cpu']} ({', '.join(machine['instruction_sets']) or 'vector extensions unknown'}), "
        f"{machine['cores']} cores; GPU: {machine['gpu']}; torch {machine['torch']}, OpenVINO {machine['openvino']}, "
        f"onnxruntime {machine['onnxruntime']}. Random weights, batch 1, interleaved; medians with 95 % bootstrap "
        "intervals. A ratio is the speed-up of a row, from the same rounds; one whose interval contains 1 is in "
        "brackets. MACs are executed multiply-adds of convolution and linear layers.",
    ]
    if absent:
        lines += ["", *(f"Not present: {name}." for name in absent)]
    tables = {table.name: table for table in TABLES}
    for name, group in groupby(sorted(rows, key=lambda row: _order(row, list(tables))), key=lambda row: row.table):
        table = tables.get(name)
        lines += ["", f"## {table.title if table else 'From an image to people'}"]
        if note := table.note if table else PEOPLE_NOTE:
            lines += ["", note]
        for (_, size, people), part in groupby(group, key=lambda row: (row.table, row.size, row.people)):
            listed = list(part)
            title = f"{size[1]}x{size[0]}" + (f", people: {people}" if people else "")
            lines += ["", f"### {title}", "", *(_printed(table, listed) if table else _people(listed))]
    return "\n".join(lines) + "\n"


def _order(row: Row, tables: Sequence[str]) -> tuple[Any, ...]:
    place = tables.index(row.table) if row.table in tables else len(tables)
    return place, row.height * row.width, int(row.people or 0)


def _printed(table: Table, rows: Sequence[Row]) -> Iterator[str]:
    reference = rows[0].network
    yield (
        f"| network | runtime | threads | GMAC | ms | fps | to {reference}, same runtime | to the first row | paper "
        "| paper's ratio |"
    )
    yield f"|{'---|' * 10}"
    for row in rows:
        beside = printed_beside(table, row.network, row.size, "cpu" if "-cpu" in row.runtime else "cuda")
        ratios = [printed_ratio(table, reference, value) for value in beside]
        yield _line(
            row.network,
            row.runtime,
            str(row.threads),
            f"{row.macs / 1e9:.3g}",
            _time(row),
            row.fps,
            _ratio(row.vs_same, row.vs_same_low, row.vs_same_high),
            _ratio(row.vs_first, row.vs_first_low, row.vs_first_high),
            "; ".join(f"{value.ms:.4g} ms ({value.where})" for value in beside) or "-",
            "; ".join(f"{value:.3g}" for value in ratios if value is not None) or "-",
        )


def _people(rows: Sequence[Row]) -> Iterator[str]:
    first = rows[0]
    yield (
        f"| network | runtime | threads | decoder | ms | of it decoding | fps | to {first.network}, {first.runtime}, "
        f"{first.decoder} | to {first.network} in OpenVINO BF16 |"
    )
    yield f"|{'---|' * 9}"
    for row in rows:
        yield _line(
            row.network,
            row.runtime,
            str(row.threads),
            row.decoder,
            _time(row),
            row.decode_ms,
            row.fps,
            _ratio(row.vs_first, row.vs_first_low, row.vs_first_high),
            _ratio(row.vs_same, row.vs_same_low, row.vs_same_high),
        )


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _time(row: Row) -> str:
    on_device = f"; on the GPU {row.device_ms}" if row.device_ms else ""
    return f"{row.latency_ms} ({row.low_ms} to {row.high_ms}){on_device}"


def _ratio(value: str, low: str, high: str) -> str:
    if not value:
        return "1"
    text = f"{value} ({low} to {high})"
    return f"[{text}]" if float(low) <= 1 <= float(high) else text
