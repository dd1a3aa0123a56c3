"""`compress benchmark`: its record and its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.checkpoint.load import create
from compress.checkpoint.save import save
from compress.commands.benchmark import BenchmarkOptions, BenchmarkResult, run
from compress.errors import RuntimeAbsent
from compress.measure import benchmark as library
from compress.measure.ceilings import Ceilings
from compress.measure.isolation import Isolated
from compress.network.inputs import InputSpec
from compress.progress import Silent
from compress.target import Target


class Known(Ceilings):
    """A machine of 1 GMAC/s and 1 GB/s."""

    def macs_per_s(self, precision: str, threads: int) -> float | None:
        return 1e9

    def copies(self, threads: int) -> tuple[tuple[int, float], ...]:
        return ((1 << 18, 1e9), (1 << 28, 1e9))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "model.pt"
    save(create("default", {}, seed=0, trained=False), path)
    return path


def test_memory_first_inference_size_and_roofline_are_in_the_record_and_the_tables(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def alone(path: Path, inputs: Sequence[InputSpec], target: Target, **settings: object) -> Isolated:
        asked.append((path, [spec.shape for spec in inputs], str(target), settings["threads"]))
        return Isolated(11.0, 22.0, 333.0, 44.0)

    monkeypatch.setattr(library, "Ceilings", Known)
    monkeypatch.setattr(library, "measure_isolated", alone)
    options = BenchmarkOptions(
        models=(model,), runtime=("torch-cpu", "torch-cuda"), threads=1, rounds=2, batch=2, input=(64, 96),
        isolate=True, channels_last=False, output=tmp_path / "times.json",
    )  # fmt: skip
    result = run(options, Silent())
    record = result.record
    assert result.written == (tmp_path / "times.json",)
    (row,) = record["rows"]
    assert json.loads((tmp_path / "times.json").read_text()) == record
    assert asked == [(model, [(2, 3, 64, 96)], "torch-cpu", 1)]
    assert row["isolated"]["first_ms"] == 22.0
    assert row["size_bytes"] == model.stat().st_size
    assert row["p90_ms"] <= row["p99_ms"]
    assert row["threads"] == 1
    assert row["roofline"]["least_ms"] >= row["roofline"]["overlapped_ms"] >= 1e3 * row["roofline"]["macs"] / 1e9
    assert row["roofline"]["share"] == pytest.approx(row["roofline"]["least_ms"] / row["latency_ms"])
    assert record["ceilings"][0]["macs_per_s"] == 1e9
    (measured,) = result.benchmark.rows
    assert measured.roofline is not None
    slow = replace(measured.roofline, least_ms=1.2 * measured.latency_ms)
    BenchmarkResult(replace(result.benchmark, rows=(replace(measured, roofline=slow),))).show()
    text = capsys.readouterr().out
    for word in (
        "torch: channels first",
        "p99 ms",
        "333.0",
        "22.0",
        "% of roofline",
        "1 GMAC/s",
        "more than 100 %",
        "torch-cuda",
    ):
        assert word in text


def test_memory_and_roofline_are_measured_on_request_only(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = BenchmarkOptions(
        models=(model,), runtime=("torch-cpu",), threads=1, rounds=1, input=(64, 64), roofline=False
    )
    result = run(options, Silent())
    assert "ceilings" not in result.record
    assert "isolated" not in result.record["rows"][0]
    result.show()
    text = capsys.readouterr().out
    assert "roofline" not in text
    assert "peak memory" not in text
    assert "file MB" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_graphs_without_a_gpu_are_refused_with_the_reason(model: Path) -> None:
    options = BenchmarkOptions(
        models=(model,), runtime=("torch-cpu", "torch-cuda-fp16"), rounds=1, input=(64, 64), graphs=True
    )
    with pytest.raises(RuntimeAbsent, match="CUDA graphs need a CUDA device"):
        run(options, Silent())
