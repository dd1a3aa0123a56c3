"""Files written by the first edition: they load, and networks give bit-equal maps.

`version1/` was written by the last commit of that edition from random weights whose batch normalisation has seen noise:
a plain network, one factorized at 1/3, one with CBAM inserted after that, one multiplied out and folded; a plan, and an
ONNX file. ``maps.safetensors`` holds what each network gave for one image of noise.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from compress.checkpoint.load import load
from compress.planning.plan import Plan
from compress.runtime.opening import open_runner

FOLDER = Path(__file__).parent / "version1"
CHECKPOINTS = ("plain.pt", "plain-safe.safetensors", "factorized.pt", "attentive.pt", "folded.pt")


@pytest.fixture(scope="module")
def maps() -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(FOLDER / "maps.safetensors")


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(11))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_of_version_1_gives_the_maps_it_gave(
    name: str, maps: dict[str, torch.Tensor], image: torch.Tensor
) -> None:
    model = load(FOLDER / name)
    with torch.no_grad():
        found = model.run(image)
    assert list(found) == ["heatmaps", "pafs"]
    for output, value in found.items():
        torch.testing.assert_close(value, maps[f"{Path(name).stem}.{output}"], rtol=0, atol=1e-6)


def test_a_plan_of_version_1_is_read() -> None:
    plan = Plan.from_json((FOLDER / "plan.json").read_text())
    assert plan.network == "default"
    assert plan.changed


def test_the_plan_of_a_version_1_checkpoint_is_its_last_factorization() -> None:
    written = Plan.from_json((FOLDER / "plan.json").read_text())
    plan = load(FOLDER / "factorized.pt").plan
    assert plan is not None
    # The history does not hold the size at which MACs were counted.
    assert replace(plan, input_size=written.input_size) == written
    assert load(FOLDER / "attentive.pt").plan == plan
    assert load(FOLDER / "plain.pt").plan is None


def test_an_onnx_file_of_version_1_runs(maps: dict[str, torch.Tensor], image: torch.Tensor) -> None:
    runner = open_runner(FOLDER / "plain.onnx")
    found = runner.run(image.numpy())
    runner.close()
    for output, value in found.items():
        np.testing.assert_allclose(value, maps[f"plain.{output}"].numpy(), atol=1e-4)
