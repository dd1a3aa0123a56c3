"""Rows of `benchmarks/quality.py` as a CSV file, and the table and figure that are made from it."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compress.files import atomic_path, write_text

#: Name of the row that all others are compared to.
ORIGINAL = "original"

COLUMNS = (
    "method", "setting", "steps", "gmacs", "params", "AP", "low", "high", "dAP", "dlow", "dhigh", "heatmaps", "pafs",
    "latency", "llow", "lhigh", "seconds", "note",
)  # fmt: skip

Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    """The rows of a file, none if it does not exist; a missing column of an older file is empty, ``steps`` is 0."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = [{name: row.get(name) or "" for name in COLUMNS} for row in csv.DictReader(file)]
    return [row | {"steps": row["steps"] or "0"} for row in rows]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows at once, each with its difference from the original's AP."""
    original = next((row["AP"] for row in rows if row["method"] == ORIGINAL and row.get("AP")), None)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row.get("AP") and original is not None:
            row = {**row, "dAP": f"{float(row['AP']) - float(original):.4f}"}
        writer.writerow(row)
    write_text(path, buffer.getvalue())


def markdown(rows: Sequence[Row]) -> str:
    """A table with one line for each network: before recovery, and after it where it was measured."""
    steps = sorted({int(row["steps"]) for row in rows} - {0})
    timed = any(row["latency"] for row in rows)
    header = ["method", "setting", "GMAC", "AP", "difference from the original", "heatmap error", "PAF error"]
    header += [f"AP after {count} steps" for count in steps] + (["latency"] if timed else []) + ["note"]
    lines = [header, ["---"] * len(header)]
    by_key = {(row["method"], row["setting"], int(row["steps"])): row for row in rows}
    for method, setting in dict.fromkeys((row["method"], row["setting"]) for row in rows):
        by_steps = {count: by_key.get((method, setting, count)) for count in (0, *steps)}
        row = by_steps[0] or next(other for other in by_steps.values() if other)
        first = by_steps[0] or dict.fromkeys(COLUMNS, "")
        line = [method, setting, row["gmacs"], _with_interval(first, "AP", "low", "high")]
        line += [_with_interval(first, "dAP", "dlow", "dhigh", "+"), first["heatmaps"], first["pafs"]]
        line += [_with_interval(by_steps[count] or {}, "AP", "low", "high") for count in steps]
        line += [_with_interval(first, "latency", "llow", "lhigh")] if timed else []
        lines.append([*line, row["note"].replace("|", "/")])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _with_interval(row: Mapping[str, str], value: str, low: str, high: str, sign: str = "") -> str:
    if not row.get(value):
        return ""
    middle, *ends = (f"{float(row[name]):{sign}.3f}" if row[name] else "?" for name in (value, low, high))
    return f"{middle} [{', '.join(ends)}]"


def draw(rows: Sequence[Row], path: Path) -> None:
    """AP by GMAC as PNG: bars are intervals of the difference from the original; hollow marks are after recovery."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    scored = [row for row in rows if row["gmacs"] and row["AP"]]
    figure = Figure(figsize=(8.5, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    original = next((float(row["AP"]) for row in scored if row["method"] == ORIGINAL), None)
    if original is not None:
        axes.axhline(original, color="0.6", linewidth=1, linestyle="--")
    methods = list(dict.fromkeys(row["method"] for row in scored))
    for number, method in enumerate(methods):
        colour = f"C{number % 10}" if number < 10 else "black"
        for steps in sorted({int(row["steps"]) for row in scored if row["method"] == method}):
            group = [row for row in scored if (row["method"], int(row["steps"])) == (method, steps)]
            points = sorted((float(row["gmacs"]), float(row["AP"]), *_bar(row)) for row in group)
            axes.errorbar(
                [p[0] for p in points],
                [p[1] for p in points],
                yerr=[[p[2] for p in points], [p[3] for p in points]],
                color=colour,
                marker="o",
                markerfacecolor="white" if steps else colour,
                linestyle="--" if steps else "-",
                capsize=3,
                linewidth=1.4,
                label=f"{method}, {steps} steps" if steps else method,
            )
    axes.set_xlabel("GMAC (executed, conv + linear)")
    axes.set_ylabel("OKS AP")
    axes.set_ylim(bottom=-0.01)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _bar(row: Row) -> tuple[float, float]:
    """Lengths of the interval of the difference below and above it."""
    if not row["dlow"]:
        return 0.0, 0.0
    middle = float(row["dAP"])
    return max(0.0, middle - float(row["dlow"])), max(0.0, float(row["dhigh"]) - middle)
