"""Options as texts: home folders, sizes, networks and old names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compress.commands.base import CommandOptions, check_options
from compress.commands.factorize import FactorizeOptions
from compress.commands.fields import NetworkText
from compress.commands.options import DataOptions, TimingOptions, open_dataset
from compress.commands.registry import SUMMARIES, get_command
from compress.errors import FileError, UsageError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def options(kind: type[CommandOptions], /, **values: Any) -> Any:
    return check_options(kind, values, "test")


def test_home_folders_are_expanded_in_every_path(home: Path) -> None:
    found = options(FactorizeOptions, model="~/a.pt", output="~/b.pt", save_plan="x/~", annotations="~/c.json")
    assert (found.model, found.output, found.annotations) == (home / "a.pt", home / "b.pt", home / "c.json")
    assert found.save_plan == Path("x/~")
    assert options(get_command("benchmark").options, models=["~/a.pt", "b.pt"]).models == (home / "a.pt", Path("b.pt"))
    with pytest.raises(FileError, match="no such home folder"):
        options(FactorizeOptions, model="~nobody-of-this-name/a.pt")


def test_home_folders_are_expanded_in_data_too(home: Path) -> None:
    (home / "photos").mkdir()
    (home / "photos" / "1.png").write_bytes(b"read later")
    assert len(open_dataset(options(DataOptions, data="images:~/photos"))) == 1


def test_variables_of_the_shell_stay_text() -> None:
    assert options(FactorizeOptions, model="$HOME/a.pt").model == Path("$HOME/a.pt")


def test_the_file_of_a_network_is_placed_and_a_module_is_not() -> None:
    own = NetworkText("nets/pose.py:Net")
    assert own.file == Path("nets/pose.py")
    assert own.placed(Path("/recipe")) == "/recipe/nets/pose.py:Net"
    for text in ("default", "package.module:factory"):
        assert NetworkText(text).file is None
        assert NetworkText(text).placed(Path("/recipe")) == text


def test_every_command_that_takes_a_network_says_that_its_code_runs() -> None:
    # `compress networks` explains registered networks, and runs nothing else.
    helps = [get_command(name).options.model_fields.get("network") for name in SUMMARIES if name != "networks"]
    described = [field.description or "" for field in helps if field is not None]
    assert len(described) >= 9
    assert all("file.py:factory" in text and "runs that code" in text for text in described)


def test_an_old_name_stands_for_the_new_one() -> None:
    assert options(TimingOptions, budget=5).max_seconds == 5
    assert options(FactorizeOptions, model="a.pt", rounds=3).fit_groups == 3
    with pytest.raises(UsageError, match="budget is the old name of max_seconds"):
        options(TimingOptions, budget=5, max_seconds=6)


def test_all_wrong_options_are_named_at_once() -> None:
    with pytest.raises(UsageError, match=r"ration is unknown.*") as caught:
        options(FactorizeOptions, ration="1/3", calibrate="many", input="12")
    for part in ("test:", "model is missing", "calibrate", "'many'", "HEIGHTxWIDTH"):
        assert part in str(caught.value)
