"""Networks of the user's own: named by module or file, by a class or factory, or by a module."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.checkpoint.own_code import build_own, declared_inputs, declared_pose, find_factory, own_name
from compress.errors import CheckpointError, NetworkError
from compress.network.inputs import InputSpec
from compress.network.source import NetworkSpec
from compress.pose.spec import PoseSpec

CUSTOM = """
import torch
from compress.pose.spec import PoseSpec

def plain(width=4):
    return torch.nn.Conv2d(3, width, 3)

def posed():
    return plain()

posed.pose = PoseSpec(height=128, stride=4)
posed.example = (1, 3, 128, 96)

def by_dict():
    return plain()

by_dict.pose = {"height": 128, "stride": 4}

def misdeclared():
    return plain()

misdeclared.pose = [128, 4]

def misspelt():
    return plain()

misspelt.pose = {"hieght": 128}

class Methods(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)

    def pose(self):
        return self

    @property
    def example(self):
        return self

def failing():
    raise KeyError("size")

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


def test_custom_factories_are_imported_from_the_current_folder(custom: str) -> None:
    before = list(sys.path)
    module = build_own(NetworkSpec(f"{custom}:plain", {"width": 7}))
    assert isinstance(module, nn.Conv2d)
    assert module.out_channels == 7
    assert isinstance(build_own(NetworkSpec(f"{custom}:Zoo.linear")), nn.Linear)
    assert isinstance(build_own(NetworkSpec(f"{custom}:anything", {"width": 3})), nn.Conv2d)
    assert sys.path == before


def test_a_factory_may_declare_its_pose_specification_and_example(custom: str) -> None:
    declared = PoseSpec(height=128, stride=4)
    assert declared_pose(find_factory(f"{custom}:posed")) == declared
    assert declared_pose(find_factory(f"{custom}:by_dict")) == declared
    assert declared_pose(find_factory(f"{custom}:plain")) is None
    assert declared_inputs(find_factory(f"{custom}:posed")) == (InputSpec((1, 3, 128, 96)),)
    methods = find_factory(f"{custom}:Methods")
    assert declared_inputs(methods) is declared_pose(methods) is None
    with pytest.raises(NetworkError, match=r"must be a PoseSpec or a dict.*list"):
        declared_pose(find_factory(f"{custom}:misdeclared"))
    with pytest.raises(CheckpointError, match="unknown key in a pose specification"):
        declared_pose(find_factory(f"{custom}:misspelt"))


def test_naming_a_custom_network_imports_nothing(custom: str) -> None:
    assert NetworkSpec(f"{custom}:plain").is_custom
    assert custom not in sys.modules


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("{m}:plain", {"depth": 2}, r"unknown option.*depth.*Known: width"),
        ("{m}:demanding", {}, r"needs options.*width.*without arguments: def make"),
        ("{m}:wrong", {}, r"did not return a torch.nn.Module.*str"),
        ("{m}:failing", {}, r"failing failed: KeyError: 'size'"),
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
        build_own(NetworkSpec(factory.format(m=custom), options))
    assert sys.path == before


def test_a_file_is_named_by_its_path_and_may_import_its_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deep folder"
    folder.mkdir()
    (folder / "sizes_of_a_neighbour.py").write_text("WIDTH = 5\n")
    (folder / "net.py").write_text(
        "import torch\nfrom sizes_of_a_neighbour import WIDTH\ndef make(more=0):\n"
        "    return torch.nn.Linear(2, WIDTH + more)\n"
    )
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    module = build_own(NetworkSpec("deep folder/net.py:make", {"more": 1}))
    assert isinstance(module, nn.Linear)
    assert module.out_features == 6
    assert isinstance(build_own(NetworkSpec(f"{folder / 'net.py'}:make")), nn.Linear)
    assert sys.path == before
    with pytest.raises(NetworkError, match=r"there is no such file.*gone\.py"):
        build_own(NetworkSpec("deep folder/gone.py:make"))
    sys.modules.pop("sizes_of_a_neighbour", None)


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "changing.py"
    for width, moment in ((3, 1), (4, 2)):
        path.write_text(f"import torch\ndef make():\n    return torch.nn.Linear(2, {width})\n")
        os.utime(path, ns=(moment, moment))
        module = build_own(NetworkSpec(f"{path}:make"))
        assert module.get_parameter("weight").shape == (width, 2)


def test_installed_packages_win_over_files_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "colorsys.py").write_text("def rgb_to_hsv():\n    raise RuntimeError('the wrong file')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    factory = find_factory("colorsys:rgb_to_hsv")
    assert factory.__code__.co_argcount == 3  # type: ignore[attr-defined]


def test_a_class_a_factory_and_a_module_name_themselves() -> None:
    assert own_name(nn.Linear) == "torch.nn.modules.linear:Linear"
    assert own_name(nn.Linear(1, 1)) == "torch.nn.modules.linear:Linear"
    assert own_name("a.b:c") == "a.b:c"
    assert NetworkSpec(own_name(lambda: nn.Linear(1, 1))).is_custom
    given = nn.Linear(2, 3)
    built = build_own(NetworkSpec("x:y"), given)
    assert built is not given
    assert torch.equal(built.get_parameter("weight"), given.weight)
    assert json.dumps(own_name(Methods)) == f'"{__name__}:Methods"'


class Methods(nn.Linear):
    """A class of a test module."""
