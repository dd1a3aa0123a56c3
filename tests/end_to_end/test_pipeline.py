"""The whole pipeline from start to end, small."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from compress.checkpoint.load import load

RECIPE = """
title = "everything, small"
[[stage]]
run = "init"
network = "default"
untrained = true
output = "original.pt"
[[stage]]
run = "factorize"
model = "original.pt"
ratio = "1/3"
output = "small.safetensors"
[[stage]]
run = "finetune"
model = "small.safetensors"
teacher = "original.pt"
data = "synthetic:3:8"
validation = "synthetic:4:2"
steps = 3
batch_size = 2
size = "64x64"
workers = 0
output = "tuned.pt"
[[stage]]
run = "export"
model = "tuned.pt"
onnx = true
openvino = true
fp16 = true
check_images = 1
height = 128
output = "exported"
[[stage]]
run = "evaluate"
model = "exported/tuned.xml"
data = "synthetic:5:2"
results = "results.json"
[[stage]]
run = "benchmark"
models = ["original.pt", "tuned.pt", "exported/tuned.onnx"]
runtime = ["torch-cpu", "onnxruntime-cpu", "torch-cuda"]
input = "64x64"
rounds = 3
output = "times.json"
[[stage]]
run = "report"
original = "original.pt"
variants = ["small.safetensors", "tuned.pt"]
data = "synthetic:5:2"
runtime = ["torch-cpu", "openvino-cpu"]
input = "64x64"
rounds = 3
pictures = 1
output = "report"
"""


def run(folder: Path) -> list[dict[str, object]]:
    command = [sys.executable, "-m", "compress", "run", str(folder / "r.toml"), "-o", str(folder / "out"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    stages: list[dict[str, object]] = json.loads(done.stdout)["stages"]
    return stages


@pytest.mark.slow
def test_a_recipe_runs_every_stage_once_and_its_report_holds_together(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    stages = run(tmp_path)
    records = {stage["stage"]: stage["record"] for stage in stages}
    assert all(Path(file).exists() for stage in stages for file in stage["files"])  # type: ignore[attr-defined]

    small = load(tmp_path / "out" / "small.safetensors")
    tuned = load(tmp_path / "out" / "tuned.pt")
    assert small.edits == tuned.edits
    assert [entry["command"] for entry in tuned.history] == ["init", "factorize", "finetune"]
    assert any(
        (small.module.state_dict()[name] != tuned.module.state_dict()[name]).any() for name in small.module.state_dict()
    )

    export, times, report = (records[name] for name in ("export", "benchmark", "report"))
    assert [parity["ok"] for parity in export["parity"]] == [True, True, True]  # type: ignore[index]
    rows = times["rows"]  # type: ignore[index]
    assert {(row["model"], row["label"]) for row in rows} == {
        ("original.pt", "torch-cpu"),
        ("tuned.pt", "torch-cpu"),
        ("original.pt", "onnxruntime-cpu"),
        ("tuned.pt", "onnxruntime-cpu"),
        ("tuned.onnx", "onnxruntime-cpu"),
    }
    assert times["absent"][0].startswith("torch-cuda")  # type: ignore[index]
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert all(set(found) >= {"image_id", "category_id", "keypoints", "score"} for found in results)

    facts = json.loads((tmp_path / "out" / "report" / "report.json").read_text())["models"]
    assert [model["label"] for model in facts] == ["original", "small", "tuned"]
    assert facts[2]["before"] == "small"
    assert facts[1]["macs"] == facts[2]["macs"] < facts[0]["macs"]
    assert facts[1]["macs"] == records["factorize"]["macs"][1] * 64 * 64 // (256 * 256)  # type: ignore[index]
    assert Path(report["html"]).stat().st_size > 10_000  # type: ignore[index]

    assert [stage["skipped"] for stage in run(tmp_path)] == [True] * 7
