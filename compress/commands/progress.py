"""Progress on the terminal, on stderr, so that stdout stays for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

#: Seconds of work from which a log file is told of progress.
_LOGGED_AFTER_S = 5.0


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
        """For a log file: a line after each tenth of the work that takes more than a few seconds."""
        done, shown, began = 0, 0, time.monotonic()

        def advance(step: int, note: str = "") -> None:
            nonlocal done, shown
            done += step
            if total and done * 10 // total > shown and time.monotonic() - began > _LOGGED_AFTER_S:
                shown = done * 10 // total
                self.say(f"{description}: {done}/{total}  {note}".rstrip())

        return advance
