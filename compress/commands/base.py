"""What all commands share: options that refuse unknown keys, and a result that can be printed and stored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from dataclasses import field as record_field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from compress.commands.fields import extras
from compress.errors import UsageError
from compress.files import expanded
from compress.progress import Progress


class CommandOptions(BaseModel):
    """Options of a command, the same on the command line and in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _accept_old_names(cls, values: Any) -> Any:
        """Rename options that are given by an earlier name."""
        renamed = dict(values)
        for name, field in cls.model_fields.items():
            old = extras(field).get("old")
            if old in renamed:
                if name in renamed:
                    raise ValueError(f"{old} is the old name of {name}; give one of them")
                renamed[name] = renamed.pop(old)
        return renamed

    @field_validator("*", mode="after")
    @classmethod
    def _expand_home(cls, value: Any) -> Any:
        """Replace ``~`` in paths."""
        if isinstance(value, Path):
            return expanded(value)
        if isinstance(value, tuple) and value and all(isinstance(item, Path) for item in value):
            return tuple(expanded(item) for item in value)
        return value

    def can_resume(self) -> bool:
        """Whether an interrupted run of this command can be continued by ``resume``."""
        return False


@dataclass(frozen=True)
class Result(ABC):
    """What a command did.

    The fields of a subclass, as plain data, are what ``--json`` prints. A field with a default of None is left out
    where it is None.

    Attributes
    ----------
    written : tuple of Path
        Files that were written; not part of the JSON.
    """

    written: tuple[Path, ...] = record_field(default=(), kw_only=True)

    @property
    def record(self) -> dict[str, Any]:
        """Plain data: dicts, lists, texts, numbers and None."""
        named = {entry.name: (getattr(self, entry.name), entry.default) for entry in fields(self)}
        del named["written"]
        return {name: plain(value) for name, (value, default) in named.items() if not (value is None is default)}

    @property
    @abstractmethod
    def summary(self) -> str:
        """The result in one line, for the log of a recipe."""

    @abstractmethod
    def show(self) -> None:
        """Print the result for people."""


def plain(value: Any) -> Any:
    """Records as dicts, tuples as lists and paths as text, for JSON."""
    if hasattr(type(value), "__dataclass_fields__"):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


@dataclass(frozen=True)
class Command:
    """A command, which is also what a stage of a recipe runs.

    Attributes
    ----------
    options : type
        The options it takes.
    run : callable
        ``run(options, progress) -> Result``.
    example : str
        A line to copy.
    """

    options: type[CommandOptions]
    run: Callable[[Any, Progress], Result]
    example: str


def check_options(model: type[CommandOptions], values: dict[str, Any], where: str) -> CommandOptions:
    """Check the options of a command.

    Raises
    ------
    UsageError
        If keys are unknown or missing or values are invalid; names each of them.
    """
    try:
        return model(**values)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"]) or "options"
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                problems.append(f"{name} is unknown (known: {', '.join(model.model_fields)})")
            elif problem["type"] == "missing":
                problems.append(f"{name} is missing")
            elif problem["loc"]:
                problems.append(f"{name}: {message} (found: {problem['input']!r})")
            else:
                problems.append(message)
        raise UsageError(f"{where}: " + "; ".join(problems)) from None
