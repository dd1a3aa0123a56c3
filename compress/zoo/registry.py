"""The networks that can be built by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from compress.errors import NetworkError, similar
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
    former : mapping
        Values of options that files from before these options existed mean, where the default is another.
    """

    name: str
    build: Callable[..., nn.Module]
    pose: PoseSpec
    input_size: tuple[int, int]
    summary: str
    source: str
    weights: Path | None = None
    former: Mapping[str, Any] = field(default_factory=dict)

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their default values."""
        return {name: p.default for name, p in inspect.signature(self.build).parameters.items()}


_ENTRIES: dict[str, NetworkEntry] = {}

#: The files that register networks.
_MODULES = (
    "lightweight_openpose", "openpose", "attention_cpm", "context_cpm",
    "simple_baseline", "hrnet", "lite_hrnet", "repose", "hourglass", "mobilenet_v2",
)  # fmt: skip


def register(entry: NetworkEntry) -> None:
    """Add a network; a name can be taken once."""
    if entry.name in _ENTRIES:
        raise ValueError(f"the network {entry.name!r} is registered already")
    _ENTRIES[entry.name] = entry


def entries() -> tuple[NetworkEntry, ...]:
    """All registered networks in the order of `_MODULES`, whichever of them was imported first."""
    _load()
    order = {f"compress.zoo.{module}": index for index, module in enumerate(_MODULES)}
    return tuple(sorted(_ENTRIES.values(), key=lambda entry: order.get(entry.build.__module__, len(order))))


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
            f"unknown network{similar(name, _ENTRIES)}",
            found=name,
            hint=f"Known: {', '.join(_ENTRIES)}; your own: --network package.module:factory or file.py:factory",
        ) from None


def resolve(spec: NetworkSpec) -> NetworkSpec:
    """The same network with every option written out, so that a file outlives a change of the defaults."""
    return spec if spec.is_custom else replace(spec, options={**get_entry(spec.name).options, **spec.options})


def recorded(spec: NetworkSpec) -> NetworkSpec:
    """The network that a file names, with the former values of options that the file is older than."""
    _load()
    entry = _ENTRIES.get(spec.name)
    return spec if entry is None else replace(spec, options={**entry.former, **spec.options})


def pose_spec(name: str) -> PoseSpec:
    """What the registered network of that name expects and gives.

    Raises
    ------
    NetworkError
        If there is none.
    """
    return get_entry(name).pose


def build(spec: NetworkSpec) -> nn.Module:
    """Build a registered network with fresh weights.

    Raises
    ------
    NetworkError
        If the name or an option is unknown, or an option is missing.
    """
    return construct(get_entry(spec.name).build, spec.name, spec.options)


def construct(factory: Callable[..., object], name: str, options: Mapping[str, Any]) -> nn.Module:
    """Call a factory, its options checked first.

    Raises
    ------
    NetworkError
        If an option is unknown or missing, or the factory returns no module.
    """
    try:
        known = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        known = MappingProxyType({"options": inspect.Parameter("options", inspect.Parameter.VAR_KEYWORD)})
    unknown = sorted(set(options) - set(known))
    if unknown and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
        raise NetworkError(
            f"unknown option of the network {name}",
            found=", ".join(unknown),
            hint=f"Known: {', '.join(known) or 'none'}",
        )
    named = (p for p in known.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    missing = [p.name for p in named if p.default is p.empty and p.name not in options]
    if missing:
        raise NetworkError(
            f"the network {name} needs options that are not given",
            found=", ".join(missing),
            hint="Give them, or name a factory without arguments: def make(): return Net(...)",
        )
    module = factory(**options)
    if not isinstance(module, nn.Module):
        raise NetworkError(f"{name} did not return a torch.nn.Module", found=type(module).__name__)
    return module


def _load() -> None:
    """Import the files that register networks; late, so that importing the registry alone is cheap."""
    for module in _MODULES:
        importlib.import_module(f"compress.zoo.{module}")
