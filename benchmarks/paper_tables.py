"""Every table of the papers, the published values beside ours: `python benchmarks/paper_tables.py all -o FILE.md`.

Parameters and operations are counted without values. Frames per second are those of `paper_speed.py`. Accuracy needs
the papers' data: `--results DIR` fills it from the sweep.json and report.json files of trained runs below that folder;
a cell stays empty where there is none.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import paper_table
from published_tables import COSTS, EMPTY, Paper, Row, Table, papers
from trained_results import Trained, find_score, read_results

from compress.errors import CompressError
from compress.files import write_text
from compress.network.conventions import CONVENTIONS
from compress.network.layers import count_flops
from compress.zoo.counts import NetworkCounts, count_networks, count_reduction
from compress.zoo.published import PUBLISHED, REDUCTIONS, Published, Reduction
from compress.zoo.registry import get_entry

SPEED = Path(__file__).parent / "results" / "paper-speed-cpu.csv"

#: Runtimes whose frames per second are shown.
RUNTIMES = ("torch-cpu", "openvino-cpu")

#: Frames and milliseconds beside the paper's own are those of this runtime.
BESIDE = "openvino-cpu"

#: Deviations up to this need no reason: printed values are rounded.
ROUNDING = 0.011


@dataclass(frozen=True)
class Ours:
    """What stands beside the papers' values."""

    counts: Mapping[tuple[str, str, str], NetworkCounts]
    speed: Mapping[tuple[str, tuple[int, int], str], float]
    machine: str
    trained: Sequence[Trained] = ()


def as_published(paper: Paper, table: Table, row: Row) -> Published:
    """The row in the form in which networks are counted.

    The reason for a deviation is that of the same network in `compress.zoo.published`.
    """
    size = row.input[0], row.input[1]
    same = [
        line
        for line in PUBLISHED
        if (line.network, line.input_size, dict(line.options), line.part)
        == (row.network, size, dict(row.options), row.part)
    ]
    return Published(
        row.network,
        size,
        row.options,
        _number(row.cells.get("params", EMPTY)),
        _number(row.cells.get("ops", EMPTY)),
        table.convention or "mac",
        f"{paper.title}, {table.name}",
        next((line.reason for line in same if line.reason), ""),
        row.part,
    )


def _number(text: str) -> float | None:
    return None if text == EMPTY else float(text.rstrip("+"))


def count_rows(chosen: Sequence[Paper]) -> dict[tuple[str, str, str], NetworkCounts]:
    """Counts of all rows with a network, by paper, table and label."""
    keys, lines = [], []
    for paper in chosen:
        for table in paper.tables:
            for row in table.rows:
                if row.network:
                    keys.append((paper.number, table.name, row.label))
                    lines.append((get_entry(row.network), as_published(paper, table, row)))
    order = sorted(range(len(lines)), key=lambda i: repr((lines[i][1].network, sorted(lines[i][1].options.items()))))
    counted = count_networks([lines[i] for i in order])
    return {keys[i]: counts for i, counts in zip(order, counted, strict=True)}


def read_speed(path: Path) -> tuple[dict[tuple[str, tuple[int, int], str], float], str]:
    """Milliseconds by (table/network, (height, width), runtime), and the machine."""
    machine, rows = paper_table.read_csv(path)
    found = {(f"{r.table}/{r.network}", r.size, r.runtime): float(r.latency_ms) for r in rows if not r.people}
    return (
        found,
        f"{machine['cpu']}, {machine['cores']} cores, torch {machine['torch']}, OpenVINO {machine['openvino']}",
    )


def markdown(chosen: Sequence[Paper], ours: Ours, command: str) -> str:
    """All tables of the papers."""
    lines = [
        "# The papers' tables",
        "",
        f"`{command}`",
        "",
        'Two lines for a row: "paper" as printed, "ours" counted or measured here. FLOPs are 2 x MACs, the executed '
        "multiply-adds of convolution and linear layers; operations are counted as the paper counts them. Cells of "
        "ours are empty where they need the paper's training data. Rows without a network here have no second line; "
        f"the reason is below the table. Times: {ours.machine}, batch 1, FP32, random weights; those in the paper's "
        f"own columns are of {BESIDE}, whatever the paper's device.",
    ]
    for paper in chosen:
        lines += ["", f"## {paper.number}: {paper.title}"]
        for table in paper.tables:
            lines += ["", f"### {table.name}: {table.title}", ""]
            if table.note:
                lines += [table.note, ""]
            lines += _table(paper, table, ours)
    return "\n".join(lines) + "\n"


def _table(paper: Paper, table: Table, ours: Ours) -> Iterator[str]:
    extra = [] if "params" in table.columns else [COSTS["params"]]
    extra += ["FLOPs, G"]
    extra += [f"fps, {runtime}" for runtime in RUNTIMES if any(row.speed for row in table.rows)]
    heads = [_head(table, column) for column in table.columns]
    yield _line("row", "", *heads, *extra)
    yield f"|{'---|' * (2 + len(heads) + len(extra))}"
    notes = []
    absent: dict[str, list[str]] = {}
    for row in table.rows:
        yield _line(
            row.label, "paper", *(row.cells[column].replace(EMPTY, "") for column in table.columns), *[""] * len(extra)
        )
        if not row.network:
            absent.setdefault(row.without, []).append(row.label)
            continue
        counts = ours.counts[paper.number, table.name, row.label]
        cells = [_cell(table, row, column, counts, ours) for column in table.columns]
        more = [] if "params" in table.columns else [f"{counts.params / 1e6:.3f}"]
        more += [_three(count_flops(counts.macs) / 1e9)]
        if len(extra) > len(more):
            more += [_fps(row, runtime, ours) for runtime in RUNTIMES]
        yield _line("", f"ours, {_name(row)}", *cells, *more)
        if note := row_note(row, counts):
            notes.append(note)
    notes += [f"- Not here: {'; '.join(labels)}: {reason}." for reason, labels in absent.items()]
    if notes:
        yield from ("", *notes)


def _head(table: Table, column: str) -> str:
    if column == "ops":
        convention = CONVENTIONS[table.convention]
        return f"operations, {convention.unit} ({convention.name})"
    return COSTS.get(column, column)


def _name(row: Row) -> str:
    words = [row.network, *(f"{key}={value}" for key, value in row.options.items())]
    return "`" + " ".join(words) + "`" + (f" {row.part}" if row.part else "")


def _cell(table: Table, row: Row, column: str, counts: NetworkCounts, ours: Ours) -> str:
    """What is known here of one cell."""
    if column == "params":
        return f"{counts.params / 1e6:.3f}"
    if column == "ops":
        counted = counts.published.counted if counts.published else None
        return "" if counted is None else _three(counted)
    if column in ("ms", "fps"):
        ms = ours.speed.get((row.speed, (row.input[0], row.input[1]), BESIDE))
        return "" if ms is None else _three(ms if column == "ms" else 1000 / ms)
    if column == "times":
        return f"{count_reduction(reduction_of(row)):.2f}"
    value = find_score(ours.trained, row, *table.metric(column))
    return "" if value is None else f"{value * table.scale:.{2 if table.scale > 1 else 3}f}"


def reduction_of(row: Row) -> Reduction:
    """The published saving that a row describes."""
    (found,) = (line for line in REDUCTIONS if (line.network, line.part) == (row.network, row.part))
    return found


def _fps(row: Row, runtime: str, ours: Ours) -> str:
    ms = ours.speed.get((row.speed, (row.input[0], row.input[1]), runtime))
    return "" if ms is None else _three(1000 / ms)


def unexplained(row: Row, counts: NetworkCounts) -> bool:
    """Whether a count deviates by more than rounding and no reason is given."""
    reason = row.note or (counts.published.reason if counts.published else "")
    return not reason and bool(_deviations(row, counts))


def _deviations(row: Row, counts: NetworkCounts) -> list[str]:
    """Deviations of more than the last printed digit, and than `ROUNDING`."""
    published = counts.published
    if published is None:
        return []
    pairs = [
        ("params", row.cells.get("params", EMPTY), counts.params / 1e6),
        ("operations", row.cells.get("ops", EMPTY), published.counted),
    ]
    found = []
    for what, printed, counted in pairs:
        if printed == EMPTY or counted is None:
            continue
        difference, unit = counted - float(printed), 10.0 ** -len(printed.partition(".")[2])
        if abs(difference) > 0.5 * unit + 1e-9 and abs(difference / float(printed)) > ROUNDING:
            found.append(f"{what} {difference / float(printed):+.1%}")
    return found


def row_note(row: Row, counts: NetworkCounts) -> str:
    """The line below the table for a row with a network; empty if there is nothing to say."""
    deviations = ", ".join(_deviations(row, counts))
    reason = counts.published.reason if deviations and counts.published else ""
    words = ": ".join(part for part in (deviations, reason) if part)
    saving = reduction_of(row).reason if "times" in row.cells else ""
    words = "; ".join(part for part in (words, saving, row.note) if part)
    return f"- {row.label}: {words}." if words else ""


def _three(value: float) -> str:
    """Three digits, without an exponent."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the papers' tables, published values beside ours.")
    parser.add_argument("name", help="a paper's number, 000 to 004, its name, or all")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file to write; it is printed in any case")
    parser.add_argument("--results", type=Path, help="folder with sweep.json or report.json files of trained runs")
    parser.add_argument("--speed", type=Path, default=SPEED, help="file of paper_speed.py [default: %(default)s]")
    options = parser.parse_args(arguments)
    try:
        chosen = papers(options.name)
        speed, machine = read_speed(options.speed)
        trained = read_results(options.results) if options.results else ()
        command = f"python benchmarks/paper_tables.py {options.name}"
        text = markdown(chosen, Ours(count_rows(chosen), speed, machine, trained), command)
        if options.output:
            write_text(options.output, text)
    except CompressError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
