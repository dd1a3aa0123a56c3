"""Every error a user can meet.

Each says what is wrong, the value that was found and the way out, in one message. Anything else that
escapes the program is a bug of ours and keeps its traceback.
"""

from __future__ import annotations


class CompressError(Exception):
    """Something the user can mend.

    Parameters
    ----------
    what : str
        What is wrong, one sentence without the final full stop.
    found : object, optional
        The offending value, shown by its ``repr``.
    way_out : str, optional
        What the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, *, found: object = None, way_out: str = "") -> None:
        self.what = what
        self.found = found
        self.way_out = way_out
        message = what
        if found is not None:
            message += f" (found: {found!r})"
        if way_out:
            message += f". {way_out}"
        super().__init__(message)


class UsageError(CompressError):
    """A command was called wrongly: an option, a number or a combination that can't mean anything."""

    exit_code = 2


class FileError(CompressError):
    """A file is missing, truncated, empty, of another kind, or already there."""


class CheckpointError(CompressError):
    """A checkpoint can't be read, or does not fit the network it is meant for."""


class PlanError(CompressError):
    """A plan can't be read, or was made for another network."""


class RankError(CompressError):
    """A rank, ratio or rank policy that no layer can have."""


class DataError(CompressError):
    """A data set that is not what it should be."""


class NetworkError(CompressError):
    """An unknown network, or options that its builder does not know."""


class RuntimeAbsent(CompressError):
    """A runtime, device or precision that this machine does not have."""


class ParityError(CompressError):
    """An exported file that does not reproduce the network it was made from."""
