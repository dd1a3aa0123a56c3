"""The registry, and networks of the user's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.errors import NetworkError
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec
from compress.zoo.registry import build, entries, get_entry, pose_spec, register, resolve

CUSTOM = """
import torch
from compress.pose.spec import PoseSpec

def plain(width=4):
    return torch.nn.Conv2d(3, width, 3)

def posed():
    return plain()

posed.pose = PoseSpec(height=128, stride=4)

def demanding(width):
    return plain(width)

def anything(**options):
    return plain(options.get("width", 1))

def wrong():
    return "a network"

class Zoo:
    linear = staticmethod(lambda: torch.nn.Linear(2, 2))

number = 3
"""


@pytest.fixture
def custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current folder, which is not on the path."""
    name = "networks_of_a_user"
    (tmp_path / f"{name}.py").write_text(CUSTOM)
    (tmp_path / "broken_networks.py").write_text("def (")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    for module in (name, "broken_networks"):
        sys.modules.pop(module, None)


def test_every_entry_builds_and_says_what_it_is() -> None:
    assert next(entry.name for entry in entries()) == "default"
    for entry in entries():
        with torch.device("meta"):
            assert isinstance(build(NetworkSpec(entry.name)), nn.Module)
        assert get_entry(entry.name) is entry
        assert entry.summary
        assert entry.source
        assert entry.weights is None or entry.weights.is_file()
        assert pose_spec(entry.name) == entry.pose
        # Pixels of 0 to 255 become numbers around 0, whatever the convention.
        black, white = (
            [(pixel - m) * s for m, s in zip(entry.pose.mean, entry.pose.scale, strict=True)] for pixel in (0, 255)
        )
        assert all(-3 < low < 0 < high < 3 for low, high in zip(black, white, strict=True))
        assert entry.pose.size[0] % entry.pose.stride == 0


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="registered already"):
        register(get_entry("default"))


def test_unknown_network_lists_the_known_ones() -> None:
    with pytest.raises(
        NetworkError, match=r"default, lightweight-openpose, human-pose-estimation-0001.*package\.module"
    ):
        build(NetworkSpec("openpose"))


def test_resolve_writes_every_option_out() -> None:
    assert resolve(NetworkSpec("lightweight-openpose")).options == {"refinements": 1}
    assert resolve(NetworkSpec("default", {"width": 32})).options["width"] == 32
    assert resolve(NetworkSpec("default", {"width": 32})).options["blocks"] == 3
    assert resolve(NetworkSpec("a.b:c", {"x": 1})) == NetworkSpec("a.b:c", {"x": 1})


def test_custom_factories_are_imported_from_the_current_folder(custom: str) -> None:
    before = list(sys.path)
    module = build(NetworkSpec(f"{custom}:plain", {"width": 7}))
    assert isinstance(module, nn.Conv2d)
    assert module.out_channels == 7
    assert isinstance(build(NetworkSpec(f"{custom}:Zoo.linear")), nn.Linear)
    assert isinstance(build(NetworkSpec(f"{custom}:anything", {"width": 3})), nn.Conv2d)
    assert sys.path == before


def test_custom_factory_may_say_what_it_expects(custom: str) -> None:
    assert pose_spec(f"{custom}:posed") == PoseSpec(height=128, stride=4)
    assert pose_spec(f"{custom}:plain") == PoseSpec()


def test_naming_a_custom_network_imports_nothing(custom: str) -> None:
    assert NetworkSpec(f"{custom}:plain").is_custom
    assert custom not in sys.modules


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("{m}:plain", {"depth": 2}, r"unknown option.*depth.*Known: width"),
        ("{m}:demanding", {}, r"needs options.*width"),
        ("{m}:wrong", {}, r"did not return a torch.nn.Module.*str"),
        ("{m}:number", {}, r"can't be called"),
        ("{m}:absent", {}, r"can't be imported.*absent"),
        ("no_such_module_at_all:plain", {}, r"can't be imported.*no_such_module_at_all"),
        ("broken_networks:plain", {}, r"can't be imported"),
        ("{m}:", {}, r"does not name a factory"),
        (":plain", {}, r"does not name a factory"),
        (".{m}:plain", {}, r"does not name a factory"),
        ("{m}:plain:plain", {}, r"does not name a factory"),
        ("os; import os:system", {}, r"does not name a factory"),
    ],
)
def test_bad_custom_networks_are_refused(custom: str, factory: str, options: dict[str, int], message: str) -> None:
    before = list(sys.path)
    with pytest.raises(NetworkError, match=message):
        build(NetworkSpec(factory.format(m=custom), options))
    assert sys.path == before
