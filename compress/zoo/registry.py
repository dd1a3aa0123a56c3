"""The networks that can be built by name."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from compress.errors import NetworkError
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec


@dataclass(frozen=True)
class NetworkEntry:
    """What the registry knows of a network.

    Attributes
    ----------
    name : str
        The name a user types.
    build : callable
        Returns the module, freshly initialised; its keyword arguments are the network's options. The module's
        ``forward`` takes images (N, 3, H, W) and returns a list with one dict of named maps for each supervised
        stage; the last holds the final maps.
    pose : PoseSpec
        What the network expects and gives.
    input_size : (int, int)
        Height and width at which costs are counted unless told otherwise.
    summary : str
        One line for people.
    source : str
        The paper or release it comes from.
    weights : Path or None
        A checkpoint that ships with the package.
    """

    name: str
    build: Callable[..., nn.Module]
    pose: PoseSpec
    input_size: tuple[int, int]
    summary: str
    source: str
    weights: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their default values."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}


_ENTRIES: dict[str, NetworkEntry] = {}

_CUSTOM_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def register(entry: NetworkEntry) -> None:
    """Add a network; a name can be taken once."""
    if entry.name in _ENTRIES:
        raise ValueError(f"the network {entry.name!r} is registered already")
    _ENTRIES[entry.name] = entry


def entries() -> tuple[NetworkEntry, ...]:
    """All registered networks in the order of registration."""
    _load()
    return tuple(_ENTRIES.values())


def get_entry(name: str) -> NetworkEntry:
    """The network of that name.

    Raises
    ------
    NetworkError
        If there is none; lists the known names.
    """
    _load()
    try:
        return _ENTRIES[name]
    except KeyError:
        raise NetworkError(
            "unknown network",
            found=name,
            hint=f"Known: {', '.join(_ENTRIES)}; your own: --network package.module:factory",
        ) from None


def resolve(spec: NetworkSpec) -> NetworkSpec:
    """The same network with every option written out, so that a file outlives a change of the defaults."""
    return spec if spec.is_custom else replace(spec, options={**get_entry(spec.name).options, **spec.options})


def pose_spec(name: str) -> PoseSpec:
    """What the network of that name expects and gives.

    A custom factory says so by an attribute ``pose``; without one, the conventions of `PoseSpec`'s defaults apply.

    Raises
    ------
    NetworkError
        If the network is unknown, or a custom factory can't be imported.
    """
    if not NetworkSpec(name).is_custom:
        return get_entry(name).pose
    pose = getattr(_import_factory(name), "pose", None)
    return pose if isinstance(pose, PoseSpec) else PoseSpec()


def build(spec: NetworkSpec) -> nn.Module:
    """Build the network of a specification with fresh weights.

    Raises
    ------
    NetworkError
        If the name or an option is unknown, an option is missing, or a custom factory can't be imported.
    """
    factory = _import_factory(spec.name) if spec.is_custom else get_entry(spec.name).build
    known = inspect.signature(factory).parameters
    unknown = sorted(set(spec.options) - set(known))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise NetworkError(
            f"unknown option of the network {spec.name}",
            found=", ".join(unknown),
            hint=f"Known: {', '.join(known) or 'none'}",
        )
    named = (p for p in known.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    missing = [p.name for p in named if p.default is p.empty and p.name not in spec.options]
    if missing:
        raise NetworkError(
            f"the network {spec.name} needs options that are not given",
            found=", ".join(missing),
            hint="Give them, or name a factory that needs none",
        )
    module = factory(**spec.options)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{spec.name} did not return a torch.nn.Module", found=type(module).__name__)
    return module


def _import_factory(name: str) -> Callable[..., nn.Module]:
    hint = "Give it as package.module:factory, importable from the current folder or the environment"
    if not _CUSTOM_NAME.fullmatch(name):
        raise NetworkError("this does not name a factory", found=name, hint=hint)
    module_name, _, path = name.partition(":")
    try:
        with _current_folder_importable():
            found: Any = importlib.import_module(module_name)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise NetworkError(f"the network's factory can't be imported: {error}", found=name, hint=hint) from error
    if not callable(found):
        raise NetworkError("the network's factory can't be called", found=name, hint=hint)
    return found


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    """An installed command has its own folder on the path, not the user's."""
    folder = os.getcwd()
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _load() -> None:
    """Import the files that register networks; late, so that importing the registry alone stays cheap."""
    for module in (
        "lightweight_openpose", "openpose", "attention_cpm", "context_cpm",
        "simple_baseline", "hrnet", "lite_hrnet", "repose",
    ):  # fmt: skip
        importlib.import_module(f"compress.zoo.{module}")
