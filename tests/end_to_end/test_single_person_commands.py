"""Commands on a network that sees one person at a time, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

RECIPE = """
title = "single person, small"
[[stage]]
run = "init"
network = "context-cpm"
set = ["stages=1"]
untrained = true
output = "original.pt"
[[stage]]
run = "factorize"
model = "original.pt"
ratio = "1/3"
output = "small.pt"
[[stage]]
run = "train"
model = "small.pt"
data = "synthetic:3:6"
validation = "synthetic:4:2"
steps = 2
batch_size = 2
size = "64x64"
height = 64
half_body = 0.5
body_mask = 0.5
workers = 0
output = "trained.pt"
[[stage]]
run = "finetune"
model = "small.pt"
teacher = "original.pt"
data = "synthetic:3:6"
steps = 2
batch_size = 2
size = "64x64"
workers = 0
output = "tuned.pt"
[[stage]]
run = "evaluate"
model = "tuned.pt"
data = "synthetic:5:2"
height = 64
flip = true
blur = 11
results = "results.json"
[[stage]]
run = "benchmark"
models = ["original.pt", "tuned.pt"]
runtime = ["torch-cpu"]
input = "64x64"
rounds = 2
[[stage]]
run = "report"
original = "original.pt"
variants = ["tuned.pt"]
data = "synthetic:5:2"
height = 64
input = "64x64"
runtime = ["torch-cpu"]
rounds = 2
pictures = 1
output = "report"
"""


@pytest.mark.slow
def test_a_single_person_network_goes_through_every_command(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    command = [sys.executable, "-m", "compress", "run", str(tmp_path / "r.toml"), "-o", str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stages: list[dict[str, Any]] = json.loads(done.stdout)["stages"]
    scored = next(stage for stage in stages if "metrics" in json.dumps(stage))
    assert "gt boxes, flip, Gaussian filter 11" in json.dumps(scored)
    html = (tmp_path / "out" / "report" / "report.html").read_text()
    assert "gt boxes, no flip" in html
    people = json.loads((tmp_path / "out" / "results.json").read_text())
    assert people
    assert all(len(person["keypoints"]) == 51 for person in people)
