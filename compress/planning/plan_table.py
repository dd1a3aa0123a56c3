"""A plan as a table: plain text for a terminal, HTML for a notebook."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compress.planning.plan import LayerPlan, Plan

#: Columns, and whether their values are numbers, which are aligned to the right.
COLUMNS = {
    "layer": False,
    "form": False,
    "ranks": True,
    "params before": True,
    "params after": True,
    "MACs before": True,
    "MACs after": True,
    "error": True,
    "reason": False,
}


def plan_text(plan: Plan) -> str:
    """The plan as aligned columns: one line a layer, then the totals."""
    rows = [tuple(COLUMNS), *_rows(plan)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = []
    for row in rows:
        cells = zip(row, widths, COLUMNS.values(), strict=True)
        lines.append("  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in cells))
    rule = "-" * max(len(line.rstrip()) for line in lines)
    height, width = plan.input_size
    title = f"Plan for {plan.network} at {height}x{width}: {len(plan.changed)} of {len(plan.layers)} layers replaced"
    lines = [line.rstrip() for line in lines]
    return "\n".join((title, lines[0], rule, *lines[1:-1], rule, lines[-1]))


def plan_html(plan: Plan) -> str:
    """The plan as an HTML table; layers that are kept are grey."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    rows = _rows(plan)
    styles = [' style="opacity: 0.6"' if not layer.ranks else "" for layer in plan.layers]
    body = "".join(f"<tr{style}>{_cells(row, 'td')}</tr>" for row, style in zip(rows, styles, strict=False))
    height, width = plan.input_size
    caption = f"Plan for {escape(plan.network)} at {height}×{width}"
    return (
        f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"<tfoot><tr>{_cells(rows[-1], 'th')}</tr></tfoot></table>"
    )


def _cells(row: Sequence[str], tag: str) -> str:
    aligned = zip(row, COLUMNS.values(), strict=True)
    return "".join(
        f'<{tag} style="text-align: {"right" if right else "left"}">{escape(cell)}</{tag}>' for cell, right in aligned
    )


def _rows(plan: Plan) -> list[tuple[str, ...]]:
    """The cells of each layer, and at the end the totals."""
    params, macs = plan.params, plan.macs
    shares = [f"{after / before:.1%}" if before else "-" for before, after in (params, macs)]
    total = (
        "total", "", "", f"{params[0]:,}", f"{params[1]:,}", f"{macs[0]:,}", f"{macs[1]:,}", "",
        f"{shares[0]} of the parameters, {shares[1]} of the MACs",
    )  # fmt: skip
    return [*map(_row, plan.layers), total]


def _row(layer: LayerPlan) -> tuple[str, ...]:
    return (
        layer.name or "(network)",
        layer.method,
        ", ".join(map(str, layer.ranks)),
        f"{layer.params[0]:,}",
        f"{layer.params[1]:,}",
        f"{layer.macs[0]:,}",
        f"{layer.macs[1]:,}",
        "" if layer.error is None else f"{layer.error:.3f}",
        layer.reason,
    )
