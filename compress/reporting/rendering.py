"""A report as text: one self-contained HTML page, Markdown, CSV and JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from compress.planning.plan import REASONS
from compress.reporting import figures, tables

if TYPE_CHECKING:
    import pandas as pd

    from compress.reporting.facts import ModelFacts
    from compress.reporting.report import Report


def runtimes(models: Sequence[ModelFacts]) -> list[str]:
    """All runtimes on which a model was timed, in order."""
    return list(dict.fromkeys(name for model in models for name in model.latency))


def verdict(models: Sequence[ModelFacts]) -> list[str]:
    """One sentence for each compressed model: what it saves, what it costs, and whether it is measurably faster."""
    original = models[0]
    sentences = []
    for model in models[1:]:
        parts = []
        for part, whole, name in (
            (model.params, original.params, "parameters"), (model.macs, original.macs, "MACs"),
        ):  # fmt: skip
            if part is not None and whole:
                parts.append(f"{part / whole:.0%} of the {name}")
        if model.accuracy is not None and original.accuracy is not None:
            parts.append(
                f"{model.metric} {model.accuracy:.3f} against {original.accuracy:.3f} "
                f"({model.accuracy - original.accuracy:+.3f})"
            )
        if model.output_error is not None:
            parts.append(f"relative squared error of the outputs {model.output_error:.2e}")
        for runtime, timed in model.latency.items():
            if timed.speedup:
                speedup = timed.speedup
                parts.append(
                    f"{runtime}: {speedup.verdict}, x{speedup.median:.2f} ({speedup.low:.2f} to {speedup.high:.2f})"
                )
        costs, rest = parts[:2], parts[2:]
        sentences.append(f"{model.label}: " + "; ".join([", ".join(costs), *rest]) + ".")
    return sentences


def render(report: Report) -> dict[str, str]:
    """The texts of ``report.html``, ``report.md``, ``report.csv`` and ``report.json`` by these names."""
    summary = tables.summary(report.models)
    latency = tables.latency(report.models)
    layers = [(m, tables.layers(m)) for m in report.models if m.layers and not m.tuned]
    pictures: dict[str, bytes | None] = {
        "Accuracy against cost": figures.trade_off(report.models, runtimes(report.models)),
        "Kernel errors": figures.kernel_errors(report.models),
        **{f"Training of {name}": png for name, png in report.curves},
    }
    return {
        "report.html": _html(report, summary, latency, layers, pictures),
        "report.md": _markdown(report, summary, latency, layers),
        "report.csv": summary.to_csv(index=False),
        "report.json": json.dumps(report.to_dict(), indent=2) + "\n",
    }


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
        operations=tables.OPERATIONS,
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
