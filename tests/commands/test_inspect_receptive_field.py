"""`compress inspect --receptive-field`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from command_line import run_command

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.compression.receptive_field import measure_receptive_field
from compress.errors import NetworkError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("field") / "default.pt"
    save(create("default"), path)
    return path


@pytest.mark.parametrize("method", ["gradient", "occlusion"])
def test_the_field_is_measured_and_drawn(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    plot = tmp_path / "field.png"
    words: list[Any] = [model, "--input", "96x128", "--receptive-field", "--field-method", method, "--limit", "1"]
    code, out, _ = run_command(monkeypatch, capsys, "inspect", *words, "--joint", "right_hip", "--plot", plot, "--json")
    assert code == 0
    field = json.loads(out)["receptive_field"]
    assert (field["method"], field["output"], field["inputs"]) == (method, "heatmaps", 1)
    assert field["channel"] == create("default").pose.joints.joints.index("right_hip")  # type: ignore[union-attr]
    assert field["cell"] == ([6, 8] if method == "gradient" else None)
    assert 0 < field["share"] <= 1
    assert field["support"][0] <= 96
    assert field["effective"] ** 2 == pytest.approx(field["share"] * 96 * 128)
    picture = cv2.imread(str(plot))
    assert picture is not None
    green = picture.astype(int)[..., 1] - picture[..., 2]
    assert green.max() > 60  # something is strongly marked
    assert (green == 0).any()
    code, _, err = run_command(monkeypatch, capsys, "inspect", *words, "--plot", plot)
    assert (code, "--force" in err) == (1, True)


def test_images_can_be_looked_at(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words: list[Any] = [model, "--receptive-field", "--data", "synthetic:0:2", "--plot", tmp_path / "f.png"]
    code, out, _ = run_command(monkeypatch, capsys, "inspect", *words)
    assert code == 0
    assert "receptive field by gradient over" in out
    assert (tmp_path / "f.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--receptive-field", "--sensitivity", "--data", "synthetic:0:2"], "one at a time"),
        (["--joint", "nose"], "--receptive-field"),
        (["--receptive-field", "--joint", "noes"], "nose"),
        (["--receptive-field", "--plot", "x.svg"], ".png"),
        (["--receptive-field", "--field-method", "sight"], "occlusion"),
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
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_context_module_enlarges_the_field() -> None:
    """The finding of the paper's figures 7 and 8, already of random weights."""
    sizes = []
    for context in ("none", "u_shaped"):
        net = create("context-cpm", {"stages": 2, "context": context}).at_size((256, 256))
        sizes.append(measure_receptive_field(net, count=1).field.size.effective)
    assert sizes[1] > 1.1 * sizes[0]
    with pytest.raises(NetworkError, match="no heatmap of this joint"):
        measure_receptive_field(net, joint="tail")
