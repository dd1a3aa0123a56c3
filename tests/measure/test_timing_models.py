"""`compress.benchmark`: models of any kind on several runtimes in one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import compress
from compress.checkpoint.wrap import wrap
from compress.errors import RuntimeAbsent, UsageError
from compress.exporters.to_onnx import export_onnx
from compress.measure import benchmark as module
from compress.measure.benchmark import BenchmarkOptions, benchmark
from compress.measure.bootstrap import MIN_ROUNDS, UNDECIDED
from compress.measure.ceilings import MeasuredCeiling
from compress.measure.file_inputs import file_inputs
from compress.measure.isolation import Isolated
from compress.measure.labelled import label_models
from compress.model import Model
from compress.network.inputs import InputSpec


class Known:
    """A machine of 1 GMAC/s and 1 GB/s."""

    def __init__(self, device: str) -> None:
        self.device = device

    def macs_per_s(self, precision: str, threads: int) -> float | None:
        return 1e9

    def bytes_per_s(self, size: float, threads: int) -> float:
        return 1e9

    def measured(self, precision: str, threads: int) -> MeasuredCeiling:
        return MeasuredCeiling(self.device, precision, threads, 1e9, ((1 << 18, 1e9),))


class Gray(nn.Module):
    """One channel in, a tensor out, and no pose."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class Two(nn.Module):
    """Two inputs of different kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(5, 4)

    def forward(self, images: Tensor, vector: Tensor) -> dict[str, Tensor]:
        return {"map": self.conv(images) + self.linear(vector)[:, :, None, None]}


def gray(width: int = 4) -> Model:
    torch.manual_seed(0)
    return wrap(Gray(width), (1, 1, 16, 24), name=f"gray{width}")


QUICK = BenchmarkOptions(threads=1, rounds=2, roofline=False)


def test_models_without_a_pose_are_timed_on_every_runtime_in_one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Ceilings", Known)
    runtimes = ("torch-cpu", "onnxruntime-cpu", "openvino-cpu")
    options = BenchmarkOptions(threads=1, rounds=2, batch=2)
    done = benchmark([gray(4), gray(8)], runtimes, options=options)
    assert [(row.label, row.model) for row in done.rows] == [
        (runtime, name) for runtime in runtimes for name in ("gray4", "gray8")
    ]
    for first, second in zip(done.rows[::2], done.rows[1::2], strict=True):
        assert first.speedup is None
        assert first.verdict is None
        assert second.speedup is not None
        assert second.verdict == UNDECIDED
        quotients = [a / b for a, b in zip(first.timing.samples_ms, second.timing.samples_ms, strict=True)]
        assert second.speedup.median == pytest.approx(sum(quotients) / 2), "not paired within rounds"
        assert (first.timing.batch, first.timing.size) == (2, "16x24")
        macs = 2 * 16 * 24 * 4 * (9 + 2)
        assert first.roofline is not None
        assert first.roofline.macs == macs
        assert first.roofline_share == pytest.approx(first.roofline.least_ms / first.latency_ms)
    record = json.loads(json.dumps(done.to_dict()))
    assert record["rows"][1]["verdict"] == UNDECIDED
    assert record["rows"][1]["roofline"]["share"] == pytest.approx(done.rows[1].roofline_share)
    assert [(c["device"], c["precision"], c["threads"]) for c in record["ceilings"]] == [("cpu", "fp32", 1)]
    assert len(str(done).splitlines()) == 6


def test_a_verdict_needs_ten_rounds() -> None:
    done = benchmark([gray(4), gray(64)], ["torch-cpu"], options=BenchmarkOptions(rounds=MIN_ROUNDS, roofline=False))
    assert done.rows[1].timing.rounds == MIN_ROUNDS
    assert done.rows[1].verdict in ("faster", "slower", "no difference")


def test_a_network_with_several_inputs_is_timed() -> None:
    model = wrap(Two(), [(1, 3, 16, 16), (1, 5)])
    done = compress.benchmark([model], ["torch-cpu", "onnxruntime-cpu"], options=QUICK)
    assert [row.timing.rounds for row in done.rows] == [2, 2]
    assert "ceilings" not in done.to_dict()
    assert "isolated" not in done.to_dict()["rows"][0]


def test_files_are_timed_on_their_own_runtime_even_without_metadata(tmp_path: Path) -> None:
    import onnx

    path = export_onnx(gray(), tmp_path / "gray.onnx")
    plain = onnx.load(str(path))
    del plain.metadata_props[:]
    onnx.save(plain, str(tmp_path / "bare.onnx"))
    models = [path, str(tmp_path / "bare.onnx")]
    done = benchmark(models, ["torch-cpu", "onnxruntime-cpu"], options=BenchmarkOptions((16, 24), rounds=2))
    assert [(row.model, row.label) for row in done.rows] == [
        ("gray.onnx", "onnxruntime-cpu"), ("bare.onnx", "onnxruntime-cpu"),
    ]  # fmt: skip
    assert done.rows[0].size_bytes == path.stat().st_size
    assert done.rows[0].roofline is not None
    assert done.rows[0].roofline.macs == 16 * 24 * 4 * (9 + 2)


def test_inputs_of_files_are_read_and_free_sizes_must_be_given(tmp_path: Path) -> None:
    fixed = tmp_path / "fixed.onnx"
    torch.onnx.export(Gray(), (torch.zeros(3, 1, 8, 12),), str(fixed), dynamo=False)
    assert file_inputs(fixed) == (InputSpec((3, 1, 8, 12)),)
    free = tmp_path / "free.onnx"
    axes = {"x": {0: "n", 2: "h", 3: "w"}}
    torch.onnx.export(
        Gray(), (torch.zeros(1, 1, 8, 12),), str(free), dynamo=False, input_names=["x"], dynamic_axes=axes
    )
    assert file_inputs(free, (16, 24)) == (InputSpec((1, 1, 16, 24)),)
    with pytest.raises(UsageError, match="any size"):
        file_inputs(free)


def test_int8_targets_time_a_quantised_model() -> None:
    pytest.importorskip("nncf")
    model = wrap(nn.Conv2d(3, 8, 3, padding=1), (1, 3, 32, 32), name="conv")
    done = benchmark([model], ["openvino-cpu-int8", "openvino-cpu"], options=QUICK)
    assert [(row.label, row.timing.precision) for row in done.rows] == [
        ("openvino-cpu-int8", "int8"), ("openvino-cpu", "fp32"),
    ]  # fmt: skip


def test_a_model_in_memory_is_saved_to_be_opened_in_its_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def alone(path: Path, inputs: tuple[InputSpec, ...], target: compress.Target, **settings: object) -> Isolated:
        opened.append((path.suffix, inputs[0].shape, str(target), settings["threads"]))
        assert path.is_file()
        return Isolated(11.0, 22.0, 333.0, 44.0)

    monkeypatch.setattr(module, "measure_isolated", alone)
    options = BenchmarkOptions(threads=1, rounds=2, roofline=False, isolate=True)
    done = benchmark([gray()], ["torch-cpu", "onnxruntime-cpu"], options=options)
    assert opened == [
        (".pt", (1, 1, 16, 24), "torch-cpu", 1), (".onnx", (1, 1, 16, 24), "onnxruntime-cpu", 1),
    ]  # fmt: skip
    assert done.to_dict()["rows"][0]["isolated"]["first_ms"] == 22.0


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_absent_runtimes_are_reported_and_refused_alone() -> None:
    done = benchmark([gray()], ["torch-cuda", "torch-cpu"], options=QUICK)
    assert len(done.rows) == 1
    assert done.absent[0].startswith("torch-cuda (torch has no device cuda")
    with pytest.raises(RuntimeAbsent, match="none of the requested runtimes"):
        benchmark([gray()], ["torch-cuda"], options=QUICK)


def test_unknown_runtimes_and_empty_lists_are_refused() -> None:
    with pytest.raises(UsageError, match="unknown target"):
        benchmark([gray()], ["tensorrt-cuda"])
    with pytest.raises(UsageError, match="no model"):
        benchmark([])


def test_labels_are_unique(tmp_path: Path) -> None:
    model = gray()
    small = model.derive(model.module, command="factorize")
    assert [entry.label for entry in label_models([model, small, small])] == [
        "gray4", "gray4 (factorize)", "gray4 (2)",
    ]  # fmt: skip
    assert [entry.label for entry in label_models([("a", model), ("b", model)])] == ["a", "b"]
    with pytest.raises(UsageError, match="same label"):
        label_models([("a", model), ("a", model)])
    files = [tmp_path / "one" / "x.onnx", tmp_path / "two" / "x.onnx"]
    assert [entry.label for entry in label_models(files)] == [str(path.with_suffix("")) for path in files]
