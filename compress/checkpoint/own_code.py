"""Networks of the user's own: importing the class or factory that the user names.

This runs the user's own code. It happens only because the user names the code, never because a file does.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from compress.checkpoint.bare import bare
from compress.errors import CompressError, NetworkError
from compress.network.duplicate import duplicate
from compress.network.inputs import InputSpec, read_example
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.zoo.registry import construct

Factory = Callable[..., nn.Module]

#: A network as the user names it: a registered name, ``package.module:factory``, ``file.py:factory``, the factory or
#: class itself, or a module with the same layers.
Network = str | Factory | nn.Module

_IN_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
_IN_FILE = re.compile(r".+\.py:[^\W\d]\w*(\.[^\W\d]\w*)*")

#: When each file that was run as a module had last been changed.
_CHANGED: dict[str, int] = {}

_HINT = (
    "Give it as package.module:factory, importable from the environment or the current folder, or as file.py:factory; "
    "it runs your own code"
)


def is_own(network: Network | None) -> bool:
    """Whether this names code of the user's own instead of a registered network."""
    return network is not None and (not isinstance(network, str) or NetworkSpec(network).is_custom)


def own_name(network: Network) -> str:
    """What a checkpoint calls a network of the user's own: module and name of the class or factory."""
    if isinstance(network, str):
        return network
    named = type(network) if isinstance(network, nn.Module) or not hasattr(network, "__qualname__") else network
    return f"{named.__module__}:{named.__qualname__}"


def find_factory(network: Network) -> Factory:
    """The user's class or factory, imported where it is given by its name.

    Raises
    ------
    NetworkError
        If it can't be imported or called.
    """
    if isinstance(network, nn.Module):
        return lambda: duplicate(network).cpu()
    return _import_factory(network) if isinstance(network, str) else network


def build_own(spec: NetworkSpec, network: Network | None = None) -> nn.Module:
    """Build a network of the user's own with fresh weights, without wrappers; the random state stays as it was.

    Parameters
    ----------
    spec : NetworkSpec
        Its name, which is imported unless ``network`` is given, and its options.
    network : str, callable or nn.Module, optional
        The class, factory or module itself.

    Raises
    ------
    NetworkError
        If it can't be imported or fails, an option is unknown or missing, or it gives no module.
    """
    network = spec.name if network is None else network
    with torch.random.fork_rng(devices=[]):
        try:
            return bare(construct(find_factory(network), own_name(network), spec.options)).eval()
        except CompressError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise NetworkError(
                f"the network's factory {own_name(network)} failed: {type(error).__name__}: {_first_line(error)}",
                found=dict(spec.options) or None,
                hint="Check its options, or name a factory that needs none",
            ) from error


def declared_pose(factory: Factory) -> PoseSpec | None:
    """The pose specification that a factory declares by an attribute ``pose``, a `PoseSpec` or a dict; else None.

    Raises
    ------
    NetworkError, CheckpointError
        If the attribute is of another type, or a dict holds an unknown key or value.
    """
    pose = _declared(factory, "pose")
    if pose is None or isinstance(pose, PoseSpec):
        return pose
    if isinstance(pose, Mapping):
        return PoseSpec.from_dict(pose)
    raise NetworkError("a factory's attribute pose must be a PoseSpec or a dict", found=type(pose).__name__)


def declared_inputs(factory: Factory) -> tuple[InputSpec, ...] | None:
    """The inputs that a factory declares by an attribute ``example``, as `compress.wrap` takes it; else None."""
    example = _declared(factory, "example")
    return None if example is None else read_example(example)


def _declared(factory: Factory, name: str) -> Any:
    """An attribute of a factory that holds a value; methods and properties of a class declare nothing."""
    value = getattr(factory, name, None)
    return None if callable(value) or isinstance(value, property) else value


def _import_factory(name: str) -> Factory:
    if not (_IN_MODULE.fullmatch(name) or _IN_FILE.fullmatch(name)):
        raise NetworkError("this does not name a factory", found=name, hint=_HINT)
    place, _, path = name.rpartition(":")
    try:
        found: Any = _import_file(Path(place)) if place.endswith(".py") else _import_module(place)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except Exception as error:  # whatever the user's code raises
        raise NetworkError(
            f"the network's factory can't be imported: {type(error).__name__}: {_first_line(error)}",
            found=name,
            hint=_HINT,
        ) from error
    if not callable(found):
        raise NetworkError("the network's factory can't be called", found=name, hint=_HINT)
    factory: Factory = found
    return factory


def _import_module(name: str) -> ModuleType:
    """Import a module; installed packages take precedence over files of the current folder."""
    with _importable(Path.cwd()):
        importlib.invalidate_caches()
        return importlib.import_module(name)


def _import_file(path: Path) -> ModuleType:
    """Run a file as a module of its own, again only after it has changed; its folder can be imported from."""
    path = path.expanduser().resolve()
    if not path.is_file():
        raise NetworkError("there is no such file", found=str(path))
    # By its path alone, so that what a checkpoint names in it (a decoder) is found again after an edit.
    name = f"{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    changed = path.stat().st_mtime_ns
    if name in sys.modules and _CHANGED.get(name) == changed:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # classes look their module up while they are made
    try:
        with _importable(path.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    _CHANGED[name] = changed
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Let modules be imported from a folder where no installed package has their name."""
    before = list(sys.path)
    current = {"", os.getcwd(), str(folder)}
    sys.path[:] = [entry for entry in before if entry not in current] + [str(folder)]
    try:
        yield
    finally:
        sys.path[:] = before


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:300]
