"""Tables and lines for people, on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table


def console() -> Console:
    """Where records are printed."""
    # Where stdout is a file or a pipe, rich would fold tables at 80 columns; names must stay whole.
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=180)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> None:
    """A title and a table; the first ``left`` columns hold words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    out = console()
    out.print(title, markup=False, soft_wrap=True)
    out.print(table)


def print_lines(lines: Iterable[str]) -> None:
    """Lines as they are, however long."""
    out = console()
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)
