"""Output on a terminal: tables and lines on stdout, progress on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

#: Seconds after which progress is written to a log file.
_LOGGED_AFTER_S = 5.0

#: Width of tables where stdout is a file or a pipe; at the 80 columns of rich names would be folded.
_WIDTH_OF_FILES = 180


def console() -> Console:
    """Where results are printed."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=_WIDTH_OF_FILES)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> None:
    """Print a title and a table; the first ``left`` columns hold words, the others numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell).replace("[", "\\[") for cell in row))
    out = console()
    out.print(title, markup=False, soft_wrap=True)
    out.print(table)


def print_lines(*lines: str) -> None:
    """Print lines as they are, however long."""
    out = console()
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def millions(count: float) -> str:
    """``4.092 M``."""
    return f"{count / 1e6:.3f} M"


def giga(count: float) -> str:
    """``7.656 G``; small numbers in millions."""
    return f"{count / 1e9:.3f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"


def share(before: float, after: float) -> str:
    """What is left of a number, such as ``0.412``."""
    return f"{after / before:.3f}" if before else "-"


class TerminalProgress:
    """Bars and lines on a terminal; plain lines where stderr is a file."""

    def __init__(self, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet, highlight=False)

    def say(self, message: str) -> None:
        """Print a line."""
        self._console.print(message, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Show a bar (a spinner where the total is unknown) until the block ends."""
        if not self._console.is_terminal:
            yield self._tenths(description, total)
            return
        columns = [SpinnerColumn(), TextColumn("{task.description}"), BarColumn()]
        if total is not None:
            columns += [MofNCompleteColumn(), TimeRemainingColumn()]
        columns.append(TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task(description, total=total, note="")
            yield lambda done, note="": progress.update(task, advance=done, note=note)

    def _tenths(self, description: str, total: int | None) -> Callable[..., None]:
        """For a log file: a line after each tenth of work that takes more than a few seconds."""
        done, shown, began = 0, 0, time.monotonic()

        def advance(step: int, note: str = "") -> None:
            nonlocal done, shown
            done += step
            if total and done * 10 // total > shown and time.monotonic() - began > _LOGGED_AFTER_S:
                shown = done * 10 // total
                self.say(f"{description}: {done}/{total}  {note}".rstrip())

        return advance
