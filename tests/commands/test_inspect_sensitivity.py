"""`compress inspect --sensitivity`: keypoint sensitivity of layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command

from compress.checkpoint.load import create
from compress.checkpoint.save import save

LAYERS = ("refinement_stages.0.heatmaps.1.0", "refinement_stages.0.trunk.0.trunk.0.0")


@pytest.fixture(scope="module", params=[True, False], ids=["trained", "untrained"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default network."""
    path = tmp_path_factory.mktemp("sensitivity") / f"{'trained' if request.param else 'untrained'}.pt"
    save(create("default", trained=request.param), path)
    return path


def assert_is_a_row(row: dict[str, Any], record: dict[str, Any]) -> None:
    assert row["name"] in LAYERS
    assert row["share"] in record["shares"]
    assert row["macs"][1] < row["macs"][0]
    assert row["params"][1] < row["params"][0]
    assert 0 <= row["loss"] <= 1
    assert 0 <= row["lost_joints"] <= record["joints"]
    assert row["lost_people"] <= record["people"]
    assert list(row["joints"]) == record["joint_names"]
    assert all(found["loss"] is None or 0 <= found["loss"] <= 1 for found in row["joints"].values())
    assert row["output_error"] is not None


def test_each_layer_is_measured_alone_and_the_worst_rank_moves_joints_most(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "plot.png"
    words = [model, "--sensitivity", "--data", "synthetic:1000:4", "--limit", 3, "--height", 192, "--plot", plot]
    words += ["--share", "9/10", "--share", "1/20"]
    words += [word for layer in LAYERS for word in ("--include", layer)]
    code, out, err = run_command(monkeypatch, capsys, "inspect", *words, "--json")
    if model.stem == "untrained":
        assert (code, "finds nobody" in err, plot.exists()) == (1, True, False)
        return
    assert code == 0
    record = json.loads(out)["sensitivity"]
    assert (record["images"], record["shares"], record["height"]) == (3, ["9/10", "1/20"], 192)
    assert record["people"] > 0
    for row in record["rows"]:
        assert_is_a_row(row, record)
    assert {row["name"] for row in record["rows"]} == set(LAYERS)
    heatmaps = [row for row in record["rows"] if row["name"] == LAYERS[0]]
    assert [row["output_error"] for row in heatmaps] == sorted(row["output_error"] for row in heatmaps)
    assert heatmaps[-1]["loss"] > 0.05
    assert plot.read_bytes().startswith(b"\x89PNG")
    code, _, err = run_command(monkeypatch, capsys, "inspect", *words)
    assert code == 1
    assert "--force" in err
    code, out, _ = run_command(monkeypatch, capsys, "inspect", *words, "--force")
    assert code == 0
    assert "OKS loss" in out
    assert all(layer in out for layer in LAYERS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "synthetic:0:4"], "--sensitivity"),
        (["--plot", "x.png"], "--sensitivity"),
        (["--sensitivity"], "--data"),
        (["--sensitivity", "--data", "synthetic:0:4", "--plot", "x.svg"], ".png"),
        (["--sensitivity", "--data", "synthetic:0:4", "--share", "3/2"], "3/2"),
        (["--sensitivity", "--data", "synthetic:0:4", "--include", "trnuk*"], "trnuk"),
        (["--sensitivity", "--data", "synthetic:0:4", "--limit", "0"], "--limit"),
    ],
)
def test_options_that_make_no_sense_are_one_clear_error(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run_command(monkeypatch, capsys, "inspect", model, *words)
    assert code in (1, 2)
    assert message in err or (model.stem == "untrained" and "finds nobody" in err)
    assert list(tmp_path.iterdir()) == []
