"""Every script in `examples/` runs from start to end."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_every_script_has_a_test() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {
        "own_network", "checkpoint_from_a_zoo", "latency_budget", "custom_decoder",
    }  # fmt: skip


def test_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load("own_network", monkeypatch).main(tmp_path)
    assert (tmp_path / "small.pt").is_file()
    before, after = capsys.readouterr().out.split(" million multiply-adds")[0].splitlines()[-1].split(" -> ")
    assert float(after) <= 0.6 * float(before)


@pytest.mark.slow
def test_a_checkpoint_from_a_zoo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load("checkpoint_from_a_zoo", monkeypatch).main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"half.pt", "half.onnx"} or (tmp_path / "half.pt").is_file()
    assert "original" in capsys.readouterr().out


@pytest.mark.slow
def test_a_latency_budget(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load("latency_budget", monkeypatch).main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines if " ms on " in line][-2:] == ["original", "compressed"]


def test_a_custom_decoder(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    load("custom_decoder", monkeypatch).main()
    first, second = (line for line in capsys.readouterr().out.splitlines() if "multiply-adds" in line)
    assert float(second.split()[0]) < float(first.split()[0])
    assert "AP" in first
