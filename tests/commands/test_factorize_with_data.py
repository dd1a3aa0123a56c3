"""`compress factorize` with images: budgets, warnings and refusals."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from compress.checkpoint.load import create, load
from compress.checkpoint.save import save
from compress.cli import main
from compress.network.cost import cost

SMALL = ("--input", "64x96", "--calibrate", "3")
DRAWN = ("--data", "synthetic:0:3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "default.pt"
    save(create("default"), path)
    return path


def run(*arguments: str | Path) -> tuple[int, str]:
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["compress", "factorize", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main()
        return 0, out.getvalue()
    except SystemExit as stop:
        return int(stop.code or 0), out.getvalue() + err.getvalue()
    finally:
        sys.argv = argv


def record(model: Path, output: Path, *arguments: str) -> dict[str, Any]:
    code, text = run(model, *arguments, *SMALL, "-o", output, "--json")
    assert code == 0, text
    result: dict[str, Any] = json.loads(text)
    return result


def test_a_budget_with_data_is_met_and_reported(model: Path, tmp_path: Path) -> None:
    found = record(model, tmp_path / "small.pt", "--budget", "macs=0.6", *DRAWN)
    before, after = found["macs"]
    assert after <= 0.6 * before
    assert cost(load(tmp_path / "small.pt").module, (64, 96)).macs == after
    assert found["budget"]["reached"] == pytest.approx(after)
    changed = [layer for layer in found["layers"] if layer["method"] != "keep"]
    assert changed
    assert all(layer["output_error"] is not None and layer["error"] is not None for layer in changed)
    assert any("only 3 images" in notice for notice in found["notices"])
    assert 0 < found["map_error"]["heatmaps"] < 1
    assert any("map error measured on the images that factors were fitted to" in x for x in found["notices"])
    assert cost(create("default").module, (64, 96)).macs == before


def test_the_prior_bounds_ranks_from_below(model: Path, tmp_path: Path) -> None:
    plain = record(model, tmp_path / "a.pt", "--budget", "params=0.7", *DRAWN)
    bounded = record(model, tmp_path / "b.pt", "--budget", "params=0.7", "--prior", "vbmf", *DRAWN)
    assert bounded["params"][1] <= 0.7 * bounded["params"][0]
    assert plain["params"][1] <= 0.7 * plain["params"][0]


def test_factors_fitted_to_data_lose_less_on_them_than_weights_alone(model: Path, tmp_path: Path) -> None:
    found = record(model, tmp_path / "a.pt", "--ratio", "1/3", *DRAWN)
    assert found["map_error"]["heatmaps"] < 0.5
    plain = record(model, tmp_path / "b.pt", "--ratio", "1/3")
    assert "map_error" not in plain
    assert plain["macs"] == found["macs"]


def test_images_can_be_used_for_the_reconstruction_only(model: Path, tmp_path: Path) -> None:
    fitted = record(model, tmp_path / "a.pt", "--ratio", "1/2", *DRAWN)
    plain = record(model, tmp_path / "b.pt", "--ratio", "1/2", *DRAWN, "--factors", "weights")
    trained = record(model, tmp_path / "c.pt", "--ratio", "1/2", *DRAWN, "--factors", "weights", "--reconstruct", "20")
    assert all(layer["output_error"] is None for layer in plain["layers"])
    assert not any("fitted" in notice for notice in plain["notices"])
    assert sum(fitted["map_error"].values()) < sum(plain["map_error"].values())
    assert sum(trained["map_error"].values()) < sum(plain["map_error"].values())


def test_blocks_are_reconstructed_on_request(model: Path, tmp_path: Path) -> None:
    found = record(model, tmp_path / "a.pt", "--ratio", "1/3", *DRAWN, "--reconstruct", "5")
    (notice,) = [text for text in found["notices"] if "reconstructed" in text]
    before, after = (float(word) for word in notice.split("left out ")[1].split(" -> "))
    assert after <= before
    assert found["macs"][1] < found["macs"][0]
    assert load(tmp_path / "a.pt").edits
    code, text = run(model, "--ratio", "1/3", "--reconstruct", "5", "-o", tmp_path / "b.pt")
    assert code != 0
    assert "--data" in text


def test_a_budget_without_data_says_what_that_means(model: Path, tmp_path: Path) -> None:
    found = record(model, tmp_path / "small.pt", "--budget", "macs=0.6")
    assert any("weights alone" in notice for notice in found["notices"])
    assert found["macs"][1] <= 0.6 * found["macs"][0]


def test_clamped_vbmf_ranks_lie_between_the_shares(model: Path, tmp_path: Path) -> None:
    found = record(model, tmp_path / "small.pt", "--rank", "vbmf", "--clamp", "1/4,1/3")
    module = create("default").module
    ranks = [(layer["name"], layer["ranks"]) for layer in found["layers"] if layer["method"] == "tucker2"]
    assert ranks
    for name, (r3, r4) in ranks:
        outputs, inputs = module.get_submodule(name).get_parameter("weight").shape[:2]
        assert inputs // 4 <= r3 <= -(-inputs // 3)
        assert outputs // 4 <= r4 <= -(-outputs // 3)


def test_images_without_people_get_a_warning(model: Path, tmp_path: Path) -> None:
    for number, grey in enumerate((0, 255)):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64, 96, 3), grey, np.uint8))
    found = record(model, tmp_path / "small.pt", "--budget", "macs=0.7", "--data", f"images:{tmp_path}")
    assert any("detects nobody" in notice for notice in found["notices"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--budget", "macs=0"), "between 0 and 1|above 0|must be"),
        (("--budget", "macs=1.5"), "1.5"),
        (("--budget", "speed=0.5"), "macs"),
        (("--budget", "latency=0.5@toaster"), "openvino-cpu"),
        (("--budget", "latency=0.5@torch-cuda"), "cuda|CUDA"),
        (("--budget", "macs=0.0001"), "nearest"),
        (("--budget", "macs=0.5", "--ratio", "1/3"), "choose one"),
        (("--prior", "vbmf", "--ratio", "1/3"), "belong to --budget"),
    ],
)
def test_impossible_requests_are_refused_and_nothing_is_written(
    model: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    code, text = run(model, *arguments, *DRAWN, *SMALL, "-o", tmp_path / "small.pt")
    assert code != 0
    assert any(part in text for part in message.split("|")), text
    assert not list(tmp_path.iterdir())


def test_images_that_are_all_the_same_are_refused(model: Path, tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((64, 96, 3), 90, np.uint8))
    code, text = run(model, "--budget", "macs=0.7", "--data", f"images:{tmp_path}", *SMALL, "-o", tmp_path / "x.pt")
    assert code != 0
    assert "different" in text
    assert not (tmp_path / "x.pt").exists()
