"""What the options of commands are made of: their declaration, and the types of texts that name files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, GetCoreSchemaHandler
from pydantic.fields import FieldInfo
from pydantic_core import CoreSchema, core_schema

from compress.errors import UsageError
from compress.files import expanded


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    positional: bool = False,
    output: bool = False,
    old: str | None = None,
) -> Any:
    """Declare an option of a command, for the command line and for recipes.

    Parameters
    ----------
    default : object
        Default value; ``...`` makes the option required.
    help : str
        One line for ``--help``.
    flag : str, optional
        A short flag such as ``-o``.
    positional : bool
        Whether the command line takes it without a flag.
    output : bool
        Whether it names a file or folder that the command writes; all other paths are read.
    old : str, optional
        An earlier name of the option, which is still accepted.
    """
    extra: dict[str, Any] = {"flag": flag, "positional": positional, "output": output, "old": old}
    return Field(default, description=help, json_schema_extra=extra)


def extras(field: FieldInfo) -> dict[str, Any]:
    """What `option` notes of a field besides its default and help."""
    return field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}


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


def _one_or_more(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


#: Height and width in pixels, written ``256x456``.
Size = Annotated[tuple[int, int], BeforeValidator(_read_size)]

#: A smallest and a largest value, written ``0.7,1.4``.
Range = Annotated[tuple[float, float], BeforeValidator(_read_range)]


class _PathText(str):
    """A text with paths inside that recipes place in their folder and whose files they watch for changes."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


class DataText(_PathText):
    """A data set as it is named on the command line, such as ``coco:DIR,SPLIT``."""

    def placed(self, base: Path) -> Self:
        """The same data set, its relative paths taken from a folder.

        A data set that is not in that folder, but is in the current one, is taken from there.
        """
        from compress.data.spec import DataSpec

        spec = DataSpec.parse(self)
        there, here = spec.placed(base), spec.placed(Path.cwd())
        if here.paths and not any(path.exists() for path in there.paths) and all(path.exists() for path in here.paths):
            return type(self)(here)
        return type(self)(there)

    def reads(self, split: str | None = None) -> tuple[Path, ...]:
        """Files and folders that the data set is read from; ``split`` is used where the text names none."""
        from compress.data.spec import DataSpec

        spec = DataSpec.parse(self) if split is None else DataSpec.parse(self, split=split)
        return spec.paths


class NetworkText(_PathText):
    """A network by its registered name, as ``package.module:factory`` or as ``file.py:factory``."""

    @property
    def file(self) -> Path | None:
        """The Python file that is named, if one is."""
        name, colon, _ = self.rpartition(":")
        return expanded(Path(name)) if colon and name.endswith(".py") else None

    def placed(self, base: Path) -> Self:
        """The same network, the path of its file taken from a folder."""
        return self if self.file is None else type(self)(f"{base / self.file}:{self.rpartition(':')[2]}")


#: One text or several.
Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_more)]

#: One data set or several that are joined.
DataTexts = Annotated[tuple[DataText, ...], BeforeValidator(_one_or_more)]


def parse_pairs(pairs: tuple[str, ...], what: str) -> Mapping[str, str]:
    """``("a=1",)`` as ``{"a": "1"}``; ``what`` names a pair in the error."""
    named = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise UsageError(f"{what} is written NAME=VALUE", found=pair)
        named[name] = value
    return named
