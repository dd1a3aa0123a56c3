"""A recipe: a pipeline of commands as TOML. Unknown keys are errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.commands.base import StageOptions, check_options
from compress.commands.registry import get_stage
from compress.errors import FileError, UsageError
from compress.files import read_bytes

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe with its checked options."""

    stage: str
    options: StageOptions


@dataclass(frozen=True)
class Recipe:
    """A pipeline.

    Attributes
    ----------
    title : str
        What it does, one line.
    folder : Path
        Where its files go; relative paths of the stages lie in it.
    steps : tuple of Step
        Stages in order.
    """

    title: str
    folder: Path
    steps: tuple[Step, ...]


def load_recipe(path: Path, *, folder: Path | None = None, variables: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe and check every option of every stage before anything runs.

    Parameters
    ----------
    path : Path
        A TOML file with ``title``, ``folder``, an optional table ``[variables]`` and ``[[stage]]`` tables, each with
        ``run`` and the options of that command. ``${name}`` stands for a variable, in variables too; a value that is
        nothing but ``"${name}"`` is the variable as it is, a list for example.
    folder : Path, optional
        Replaces the recipe's own folder.
    variables : mapping, optional
        Replace variables of the recipe.

    Raises
    ------
    FileError
        If the file can't be read as TOML.
    UsageError
        If a key, stage, option or variable is unknown or missing.
    """
    text = read_bytes(path, "recipe").decode("utf-8", errors="replace")
    try:
        record = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"the recipe is not TOML: {error}", found=str(path)) from error
    unknown = set(record) - {"title", "folder", "variables", "stage"}
    if unknown:
        raise UsageError(
            "unknown key in the recipe", found=sorted(unknown), hint="Known: title, folder, variables, stage"
        )
    known = dict(record.get("variables", {}))
    strange = set(variables or {}) - set(known)
    if strange:
        raise UsageError(
            "the recipe has no such variable", found=sorted(strange), hint=f"Known: {', '.join(known) or 'none'}"
        )
    # A path given on the command line is meant from the current folder, not from the recipe's.
    known |= {k: str(Path(v).resolve()) if Path(v).exists() else v for k, v in (variables or {}).items()}
    home = folder or Path(record.get("folder", f"runs/{path.stem}"))
    tables = record.get("stage", [])
    if not isinstance(tables, list) or not tables:
        raise UsageError("the recipe has no [[stage]]", found=str(path))
    steps = []
    for number, table in enumerate(tables, 1):
        values = _fill(dict(table), known)
        name = values.pop("run", None)
        if not isinstance(name, str):
            raise UsageError(f"stage {number} does not say what to run", hint='Give run = "factorize", for example')
        model = get_stage(name).options
        options = check_options(model, values, f"stage {number} ({name})")
        steps.append(Step(name, _place(options, home)))
    return Recipe(str(record.get("title", path.stem)), home, tuple(steps))


def _fill(value: Any, variables: Mapping[str, Any]) -> Any:
    """Replace ``${name}`` in every string."""
    if isinstance(value, dict):
        return {key: _fill(inner, variables) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, variables) for inner in value]
    if not isinstance(value, str):
        return value
    whole = _PLACEHOLDER.fullmatch(value)
    if whole:
        return _look_up(whole[1], variables)
    return _PLACEHOLDER.sub(lambda match: str(_look_up(match[1], variables)), value)


def _look_up(name: str, variables: Mapping[str, Any]) -> Any:
    """A variable with those inside it filled in; it is out of sight there, so that none can hold itself."""
    value = variables.get(name)
    if value is None or value in ("", []):
        raise UsageError(f"the recipe's variable {name} has no value", hint=f"Pass --set {name}=VALUE")
    return _fill(value, {other: inner for other, inner in variables.items() if other != name})


def _place(options: StageOptions, home: Path) -> StageOptions:
    """The options with relative paths laid into the recipe's folder."""
    moved: dict[str, Any] = {"force": True} if "force" in type(options).model_fields else {}
    for name in type(options).model_fields:
        value = getattr(options, name)
        if isinstance(value, Path):
            moved[name] = home / value
        elif isinstance(value, tuple) and value and all(isinstance(item, Path) for item in value):
            moved[name] = tuple(home / item for item in value)
    return options.model_copy(update=moved)
