"""The commands on a real pretrained network with real images."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from compress.checkpoint.load import load
from compress.data.images import read_image
from compress.planning.plan import LayerPlan, Plan
from compress.planning.policies import Ratio, Vbmf, make_plan
from compress.planning.selection import Selection
from compress.pose.prepare import prepare
from compress.surgery.factorize import factorize

pytestmark = pytest.mark.real

NAME = "human-pose-estimation-0001"


@pytest.fixture(scope="module")
def weights(assets: Path) -> Path:
    return assets / "weights" / NAME / f"{NAME}.pth"


def call(*words: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "compress", *map(str, words), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_inspect_knows_the_network_by_its_keys(weights: Path) -> None:
    record = call("inspect", weights, "--input", "256x456")
    assert record["network"] == NAME
    assert record["params"] == 4_099_058
    assert record["macs"] == pytest.approx(7.686e9, rel=1e-3)
    targets = [layer for layer in record["layers"] if layer["reason"] is None]
    assert len(targets) == 14
    assert all(0 < rank < 128 for layer in targets for rank in layer["vbmf_ranks"])


def test_full_ranks_reproduce_the_network(weights: Path, assets: Path) -> None:
    model = load(weights)
    module = model.module
    assert model.pose is not None
    chosen = make_plan(module, Ratio("1/2"), Selection(), network=NAME, input_size=(256, 456))
    full = tuple(
        LayerPlan(x.name, "tucker2", (module.get_parameter(f"{x.name}.weight").shape[1::-1]), "plan", x.params, x.macs)
        for x in chosen.changed
    )
    assert len(full) == 14
    image = read_image(sorted((assets / "images" / "coco" / "val2017").glob("*.jpg"))[0])
    batch = torch.from_numpy(prepare(image, model.pose, 256).array)[None]
    with torch.inference_mode():
        wanted = module(batch)
        found = factorize(module, Plan(NAME, (256, 456), full)).module(batch)
    for ours, theirs in zip(found, wanted, strict=True):
        for name, value in theirs.items():
            assert (ours[name] - value).abs().max() <= 1e-4


@pytest.mark.parametrize(("policy", "macs"), [(Ratio("1/2"), 5.28), (Ratio("1/3"), 4.63), (Vbmf(), 4.19)])
def test_the_papers_policies_cost_what_they_should(weights: Path, policy: Any, macs: float) -> None:
    module = load(weights).module
    plan = make_plan(module, policy, Selection(), network=NAME, input_size=(256, 456))
    assert plan.macs[1] / 1e9 == pytest.approx(macs, abs=0.01)


def test_a_network_of_another_kind_is_refused_by_name(assets: Path, tmp_path: Path) -> None:
    path = assets / "weights" / "cifar10_resnet" / "resnet20-12fca82f.th"
    command = [sys.executable, "-m", "compress", "inspect", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "--network" in done.stderr
    assert "Traceback" not in done.stderr
