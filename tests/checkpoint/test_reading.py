"""Objects of other programs beside the weights: they are left out, and no code of theirs runs."""

from __future__ import annotations

import argparse
import collections
import datetime
import os
import pathlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress.checkpoint.load import create, load
from compress.errors import CheckpointError


class Settings(dict):  # type: ignore[type-arg]
    """A dict of another program, with attributes."""


class History:
    """A record of another program."""

    def __init__(self) -> None:
        self.values = np.ones(3)
        self.recent = collections.deque([1, 2])
        self.groups = collections.defaultdict(list, {"a": [1]})


def settings() -> Settings:
    made = Settings(lr=0.1)
    made.name = "base"  # type: ignore[attr-defined]
    return made


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return dict(create("lightweight-openpose", {"refinements": 0}).module.state_dict())


BESIDE: dict[str, Any] = {
    "score": np.float64(0.7),
    "epoch": np.int64(3),
    "text": np.str_("x"),
    "sigmas": {"deep": [np.ones(17, np.float32)]},
    "objects": np.array(["a", None], dtype=object),
    "arguments": argparse.Namespace(lr=0.1),
    "path": pathlib.PurePosixPath("/data"),
    "time": datetime.datetime(2026, 1, 1),
    "settings": settings(),
    "history": History(),
    "queue": collections.deque([1, 2]),
    "set": frozenset([1]),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", BESIDE)
def test_weights_load_whatever_values_lie_beside_them(
    what: str, legacy: bool, state: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"meta": BESIDE[what], "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    found = load(path).module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


class Marks:
    """Leaves a mark if it is unpickled by a reader that looks its class up."""

    unpickled = False

    def __reduce__(self) -> tuple[Any, ...]:
        return _leave_mark, ()


def _leave_mark() -> None:
    Marks.unpickled = True


def test_objects_that_would_run_code_are_left_out_without_running_it(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"meta": Marks(), "state_dict": state}, path)
    load(path)
    assert not Marks.unpickled
    torch.load(path, weights_only=False)
    assert Marks.unpickled, "the file would have run code"


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.args


@pytest.mark.parametrize("call", [Calls(os.getenv, "HOME"), Calls(print, "x"), Calls(eval, "1"), Calls(os.getcwd)])
@pytest.mark.parametrize("legacy", [False, True])
def test_functions_of_python_itself_are_refused(
    call: Calls, legacy: bool, state: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"meta": call, "state_dict": state}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="contains pickled code, which is never run"):
        load(path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("wrap", [lambda x: {"state_dict": x}, lambda x: {"state_dict": {"w": x}}, lambda x: x])
def test_objects_in_the_place_of_weights_are_refused_by_name(wrap: Any, tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(wrap(History()), path)
    with pytest.raises(CheckpointError, match=r"contains pickled code.*History.*save the weights alone"):
        load(path)
