"""A recipe: a pipeline of commands in a TOML file. Unknown keys are errors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compress.commands.base import CommandOptions, check_options
from compress.commands.fields import DataText, NetworkText
from compress.commands.registry import get_command
from compress.errors import DataError, FileError, UsageError, similar
from compress.files import expanded, read_text

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True)
class Step:
    """One stage of a recipe with its checked options."""

    stage: str
    options: CommandOptions


@dataclass(frozen=True)
class Recipe:
    """A pipeline.

    Attributes
    ----------
    title : str
        What it does, in one line.
    folder : Path
        Where its files go. Relative paths in the options of stages are relative to it, those of data sets too.
    steps : tuple of Step
        Stages in order.
    """

    title: str
    folder: Path
    steps: tuple[Step, ...]


def load_recipe(path: Path, *, folder: Path | None = None, variables: Mapping[str, str] | None = None) -> Recipe:
    """Read a recipe and check the options of all stages before anything runs.

    Parameters
    ----------
    path : Path
        A TOML file with ``title``, ``folder``, an optional table ``[variables]`` and ``[[stage]]`` tables, each with
        ``run`` and the options of that command. ``${name}`` stands for a variable, inside variables too; a value that
        is only ``"${name}"`` becomes the variable's value with its type, such as a list.
    folder : Path, optional
        Replaces the recipe's own folder.
    variables : mapping, optional
        Replace variables of the recipe. Paths in them are relative to the current folder.

    Raises
    ------
    FileError
        If the file can't be read as TOML.
    UsageError
        If a key, stage, option or variable is unknown or missing.
    DataError
        If the name of a data set can't be read.
    """
    path = expanded(path)
    try:
        record = tomllib.loads(read_text(path, "recipe"))
    except tomllib.TOMLDecodeError as error:
        raise FileError(f"the recipe is not valid TOML: {error}", found=str(path)) from error
    return build_recipe(record, path.stem, folder=folder, variables=variables)


def build_recipe(
    record: Mapping[str, Any],
    name: str,
    *,
    folder: Path | None = None,
    variables: Mapping[str, str] | None = None,
) -> Recipe:
    """The recipe of tables that are read already.

    Parameters
    ----------
    record : mapping
        What the TOML file holds.
    name : str
        Name of the recipe, for its title and folder where it has none.
    folder, variables
        As of `load_recipe`; errors too.
    """
    unknown = set(record) - {"title", "folder", "variables", "stage"}
    if unknown:
        raise UsageError(
            "unknown key in the recipe", found=sorted(unknown), hint="Known: title, folder, variables, stage"
        )
    known = _variables(record, variables or {})
    home = expanded(folder or Path(record.get("folder", f"runs/{name}")))
    tables = record.get("stage", [])
    if not isinstance(tables, list) or not tables:
        raise UsageError("the recipe has no [[stage]]", found=name)
    steps = tuple(_step(number, table, known, home) for number, table in enumerate(tables, 1))
    return Recipe(str(record.get("title", name)), home, steps)


def _variables(record: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The recipe's variables, those replaced that are given."""
    variables = dict(record.get("variables", {}))
    unknown = sorted(set(given) - set(variables))
    if unknown:
        raise UsageError(
            f"the recipe has no such variable{similar(unknown[0], variables)}",
            found=unknown,
            hint=f"Known: {', '.join(variables) or 'none'}",
        )
    return variables | {name: _from_here(value) for name, value in given.items()}


def _from_here(value: str) -> str:
    """A value from the command line; paths in it are relative to the current folder, not to the recipe's."""
    path = expanded(Path(value))
    if path.exists():
        return str(path.resolve())
    try:
        return DataText(value).placed(Path.cwd())
    except DataError:
        return value


def _step(number: int, table: Any, variables: Mapping[str, Any], home: Path) -> Step:
    """A stage with its options checked and its paths placed."""
    where = f"stage {number}"
    values = _fill(dict(table), variables)
    name = values.pop("run", None)
    if not isinstance(name, str):
        raise UsageError(f"{where} does not say what to run", hint='Give run = "factorize", for example')
    return Step(name, _place(check_options(get_command(name).options, values, f"{where} ({name})"), home))


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
    return _PLACEHOLDER.sub(lambda match: _inside(_look_up(match[1], variables)), value)


def _inside(value: Any) -> str:
    """A variable's value within a text, as TOML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _look_up(name: str, variables: Mapping[str, Any]) -> Any:
    """Value of a variable, with the variables in it replaced; it can't refer to itself."""
    value = variables.get(name)
    if value is None or value in ("", []):
        raise UsageError(f"the recipe's variable {name} has no value", hint=f"Pass --set {name}=VALUE")
    return _fill(value, {other: inner for other, inner in variables.items() if other != name})


def _place(options: CommandOptions, home: Path) -> CommandOptions:
    """The options with relative paths taken from the recipe's folder; outputs may be replaced."""
    placed = {name: _placed(getattr(options, name), home) for name in type(options).model_fields}
    if "force" in placed:
        placed["force"] = True
    # Only what changes is set: options that were not given keep being known as such.
    changed = {name: value for name, value in placed.items() if value != getattr(options, name)}
    return options.model_copy(update=changed)


def _placed(value: Any, home: Path) -> Any:
    if isinstance(value, Path):
        return home / value
    if isinstance(value, (DataText, NetworkText)):
        return value.placed(home)
    if isinstance(value, tuple):
        return tuple(_placed(item, home) for item in value)
    return value
