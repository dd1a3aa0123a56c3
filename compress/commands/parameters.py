"""From the options of a command to the parameters of its command line."""

from __future__ import annotations

import types
import typing
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from compress.commands.base import CommandOptions
from compress.commands.fields import extras


def parameters_of(model: type[CommandOptions]) -> list[click.Parameter]:
    """Arguments and options of a command, in the order of the fields, arguments first."""
    parameters = [_parameter(name, field) for name, field in model.model_fields.items()]
    parameters += [_old_option(field) for field in model.model_fields.values() if extras(field).get("old")]
    return sorted(parameters, key=lambda parameter: isinstance(parameter, click.Option))


def _parameter(name: str, field: FieldInfo) -> click.Parameter:
    extra = extras(field)
    required = field.default is PydanticUndefined
    kind, many = _click_type(field)
    if extra.get("positional"):
        nargs = -1 if many else 1
        return click.Argument([name], type=kind, required=required, nargs=nargs)
    flags = [f"--{name.replace('_', '-')}"]
    if extra.get("flag"):
        flags.insert(0, extra["flag"])
    help = (field.description or "") + _show_default(field.default)
    if field.annotation is bool:
        if field.default is True:
            flags[-1] += f"/--no-{name.replace('_', '-')}"
        return click.Option([*flags, name], is_flag=True, default=field.default, help=help)
    return click.Option([*flags, name], type=kind, required=required, multiple=many, default=None, help=help)


def _old_option(field: FieldInfo) -> click.Parameter:
    """The option by its earlier name, which ``--help`` does not show."""
    name, (kind, many) = extras(field)["old"], _click_type(field)
    return click.Option([f"--{name.replace('_', '-')}", name], type=kind, multiple=many, default=None, hidden=True)


def _show_default(default: Any) -> str:
    if default is PydanticUndefined or default is None or default == () or isinstance(default, bool):
        return ""
    shown = ", ".join(map(str, default)) if isinstance(default, tuple) else default
    return f" [default: {shown}]"


def _click_type(field: FieldInfo) -> tuple[click.ParamType[Any] | type, bool]:
    """The click type of a field's values, and whether there can be several."""
    annotation: Any = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        annotation = next(a for a in get_args(annotation) if a is not type(None))
    if get_origin(annotation) is typing.Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return click.Choice([str(choice) for choice in get_args(annotation)]), False
    if get_origin(annotation) is tuple:
        parts = get_args(annotation)
        if parts[-1] is not Ellipsis:  # a size or a range, written as one word
            return click.STRING, False
        return _one_type(parts[0]), True
    return _one_type(annotation), False


def _one_type(annotation: Any) -> click.ParamType[Any] | type:
    if annotation is Path:
        return click.Path(path_type=Path)
    return annotation if annotation in (int, float) else click.STRING


def given(values: dict[str, Any]) -> dict[str, Any]:
    """The values that a user gave; the others keep the default of the command."""
    return {name: value for name, value in values.items() if value is not None and value != ()}
