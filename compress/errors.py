"""Every error a user can meet.

Each states the cause, the value that was found, and a hint for fixing it, in one message. Any other exception that
escapes the program is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CompressError(Exception):
    """Something the user can fix.

    Parameters
    ----------
    cause : str
        What is wrong, one sentence without the final full stop.
    found : object, optional
        The offending value, shown by its ``repr``.
    hint : str, optional
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, cause: str, *, found: object = None, hint: str = "") -> None:
        self.cause = cause
        self.found = found
        self.hint = hint
        message = cause
        if found is not None:
            message += f" (found: {found!r})"
        if hint:
            message += f". {hint}"
        super().__init__(message)


class UsageError(CompressError):
    """An option, a number or a combination of them that is not valid."""

    exit_code = 2


class FileError(CompressError):
    """A file is missing, truncated, empty, of another kind, or already exists."""


class CheckpointError(CompressError):
    """A checkpoint can't be read, or does not fit its network."""


class PlanError(CompressError):
    """A plan can't be read, or was made for another network."""


class RankError(CompressError):
    """A rank, ratio or rank policy that no layer can have."""


class Infeasible(RankError):
    """A budget that no plan can meet.

    Parameters
    ----------
    cause, found, hint
        As of `CompressError`.
    nearest : str
        The nearest budget that can be met, as it is written: ``"macs=0.41"``.
    """

    def __init__(self, cause: str, *, found: object = None, hint: str = "", nearest: str) -> None:
        super().__init__(cause, found=found, hint=hint)
        self.nearest = nearest


class DataError(CompressError):
    """A data set that can't be read or used."""


class NetworkError(CompressError):
    """An unknown network, options that its builder does not accept, or a network that can't be run."""


class RuntimeAbsent(CompressError):
    """A runtime, device or precision that this machine does not have."""


class ParityError(CompressError):
    """An exported file that does not reproduce the network it was made from."""


def similar(name: str, known: Iterable[str]) -> str:
    """Names close to a misspelt one, as ``" (similar: a, b)"``; empty if there are none."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" (similar: {', '.join(close)})" if close else ""
