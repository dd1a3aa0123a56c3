"""What all stages share: options that refuse unknown keys, a result, and a way to tell of progress."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from compress.errors import UsageError


def option(default: Any, help: str, *, flag: str | None = None, positional: bool = False, output: bool = False) -> Any:
    """A field of stage options with what the command line needs to know of it.

    Parameters
    ----------
    default : object
        Default value; ``...`` makes it required.
    help : str
        One line for ``--help``.
    flag : str, optional
        A short flag such as ``-o``.
    positional : bool
        Whether the command line takes it without a flag.
    output : bool
        Whether it names a file or folder that the stage writes; all other paths are read.
    """
    return Field(
        default, description=help, json_schema_extra={"flag": flag, "positional": positional, "output": output}
    )


class StageOptions(BaseModel):
    """Options of a stage, alike on the command line and in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def can_resume(self) -> bool:
        """Whether an interrupted run of this stage left something to go on from (by ``resume``)."""
        return False


def _read_size(value: Any) -> Any:
    if isinstance(value, str):
        match = re.fullmatch(r"(\d+)[x×](\d+)", value.strip())
        if not match:
            raise ValueError("give a size as HEIGHTxWIDTH, for example 256x456")
        value = (int(match[1]), int(match[2]))
    if isinstance(value, (tuple, list)) and any(not isinstance(n, int) or n < 8 for n in value):
        raise ValueError("height and width must be at least 8 pixels")
    return value


def _read_range(value: Any) -> Any:
    return tuple(value.split(",")) if isinstance(value, str) else value


#: Height and width in pixels, written ``256x456``.
Size = Annotated[tuple[int, int], BeforeValidator(_read_size)]

#: A smallest and a largest value, written ``0.7,1.4``.
Range = Annotated[tuple[float, float], BeforeValidator(_read_range)]


def check_options(model: type[StageOptions], values: dict[str, Any], where: str) -> StageOptions:
    """Options of that kind, or a `UsageError` that names every key that is wrong, its value and what is known."""
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


@dataclass(frozen=True)
class StageResult:
    """What a stage did.

    Attributes
    ----------
    record : dict
        Plain data: the object that ``--json`` prints.
    files : tuple of Path
        Files it wrote.
    """

    record: dict[str, Any]
    files: tuple[Path, ...] = field(default=())
