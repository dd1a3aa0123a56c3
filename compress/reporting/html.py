"""A report as one self-contained HTML file, Markdown, CSV and JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.files import refuse_existing, write_text
from compress.planning.plan import REASONS
from compress.reporting import figures, tables
from compress.reporting.tables import ModelFacts

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Report:
    """Everything a report shows.

    Attributes
    ----------
    title : str
        Heading.
    command : str
        The command that makes this report again.
    conditions : dict
        Machine, data, input size, conventions: what the numbers hold for.
    models : tuple of ModelFacts
        The original first.
    scenes : tuple of (str, bytes)
        Name and PNG of poses drawn side by side.
    absent : tuple of str
        Runtimes and devices that were asked for and are not there.
    curves : tuple of (str, bytes)
        Name and PNG of the training curve of each model that has one.
    """

    title: str
    command: str
    conditions: dict[str, str]
    models: tuple[ModelFacts, ...]
    scenes: tuple[tuple[str, bytes], ...] = ()
    absent: tuple[str, ...] = field(default=())
    curves: tuple[tuple[str, bytes], ...] = ()


def runtimes(models: Sequence[ModelFacts]) -> list[str]:
    """Labels of all runtimes that were timed, in order."""
    return list(dict.fromkeys(name for model in models for name in model.latency))


def verdict(models: Sequence[ModelFacts]) -> list[str]:
    """One sentence a model: what it saves, what it costs, and whether it is truly faster."""
    original = models[0]
    sentences = []
    for model in models[1:]:
        parts = [
            f"{model.label}: {model.params / original.params:.0%} of the parameters, "
            f"{model.macs / original.macs:.0%} of the MACs"
        ]
        if model.accuracy is not None and original.accuracy is not None:
            parts.append(
                f"{model.metric} {model.accuracy:.3f} against {original.accuracy:.3f} "
                f"({model.accuracy - original.accuracy:+.3f})"
            )
        for runtime, found in model.latency.items():
            if found["speedup"]:
                middle, low, high = found["speedup"]
                parts.append(f"{runtime}: {found['verdict']}, x{middle:.2f} ({low:.2f} to {high:.2f})")
        sentences.append("; ".join(parts) + ".")
    return sentences


def write_report(report: Report, folder: Path, *, force: bool = False) -> tuple[Path, ...]:
    """Write ``report.html``, ``report.md``, ``report.csv`` and ``report.json`` into a folder.

    Returns
    -------
    tuple of Path
        The files, the HTML first.

    Raises
    ------
    FileError
        If one of them exists and ``force`` is false.
    """
    summary = tables.summary(report.models)
    latency = tables.latency(report.models)
    layers = [(m, tables.layers(m)) for m in report.models if m.layers and not m.tuned]
    pictures: dict[str, bytes | None] = {
        "Accuracy against cost": figures.trade_off(report.models, runtimes(report.models)),
        "Kernel errors": figures.kernel_errors(report.models),
        **{f"Training of {name}": png for name, png in report.curves},
    }
    record: dict[str, Any] = {
        "title": report.title,
        "command": report.command,
        "conditions": report.conditions,
        "absent": list(report.absent),
        "models": [asdict(model) for model in report.models],
    }
    files = {
        "report.html": _html(report, summary, latency, layers, pictures),
        "report.md": _markdown(report, summary, latency, layers),
        "report.csv": summary.to_csv(index=False),
        "report.json": json.dumps(record, indent=2) + "\n",
    }
    for name in files:  # all or nothing: no half of a report may stand beside the half of an older one
        refuse_existing(folder / name, force)
    for name, text in files.items():
        write_text(folder / name, text)
    return tuple(folder / name for name in files)


def _html(
    report: Report,
    summary: pd.DataFrame,
    latency: pd.DataFrame,
    layers: list[tuple[ModelFacts, pd.DataFrame]],
    pictures: dict[str, bytes | None],
) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("compress.reporting"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html").render(
        report=report,
        verdict=verdict(report.models),
        summary=_cells(summary),
        latency=_cells(latency),
        layers=[(model.label, _cells(table)) for model, table in layers],
        reasons=REASONS,
        pictures={name: _inline(png) for name, png in pictures.items() if png is not None},
        scenes=[(name, _inline(png)) for name, png in report.scenes],
    )


def _cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    columns = [str(column) for column in table.columns]
    rows = [[tables.show(value, name) for value, name in zip(row, columns, strict=True)] for row in table.to_numpy()]
    return columns, rows


def _inline(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _markdown(
    report: Report, summary: pd.DataFrame, latency: pd.DataFrame, layers: list[tuple[ModelFacts, pd.DataFrame]]
) -> str:
    lines = [f"# {report.title}", "", *(f"- {sentence}" for sentence in verdict(report.models)), ""]
    lines += ["## Models", "", tables.markdown(summary), ""]
    if len(latency):
        lines += ["## Latency", "", tables.markdown(latency), ""]
    lines += [f"- not present: {absent}" for absent in report.absent]
    for model, table in layers:
        lines += ["", f"## Layers of {model.label}", "", tables.markdown(table), ""]
    lines += ["", "## Conditions", "", *(f"- {name}: {value}" for name, value in report.conditions.items())]
    lines += ["", "Made by:", "", "```", report.command, "```", ""]
    return "\n".join(lines)
