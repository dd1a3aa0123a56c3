"""How long work tells of its progress; the command line draws it, a library call may ignore it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Progress(Protocol):
    """Receives messages and progress bars of long work."""

    def say(self, message: str) -> None:
        """Print a line that stays."""

    def bar(self, description: str, total: int | None) -> Any:
        """A context manager that yields ``advance(done: int, note: str = "")``."""


class Silent:
    """Progress that is not shown."""

    def say(self, message: str) -> None:
        """Ignore the message."""

    @contextmanager
    def bar(self, description: str, total: int | None) -> Iterator[Callable[..., None]]:
        """Ignore every step."""
        yield lambda done, note="": None
