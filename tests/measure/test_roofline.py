from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.measure import ceilings as ceilings_module
from compress.measure.ceilings import BLOCKS, Ceilings
from compress.measure.roofline import LayerLoad, file_loads, module_loads, roofline_bound
from compress.network.inputs import image_input
from compress.network.layers import list_layers

PEAKS = {"fp32": 1e9, "bf16": 2e9, "int8": 4e9}


class Known(Ceilings):
    """A machine whose ceilings are known: 1 GB/s whatever the size."""

    def macs_per_s(self, precision: str, threads: int) -> float | None:
        peak = PEAKS.get(precision)
        return None if peak is None else peak * threads

    def bytes_per_s(self, size: float, threads: int) -> float:
        return 1e9


COMPUTE = LayerLoad(macs=8_000_000, inputs=1000, weights=500, outputs=500)
MEMORY = LayerLoad(macs=1000, inputs=1_000_000, weights=500_000, outputs=500_000)


def test_each_layer_takes_the_longer_of_arithmetic_and_memory() -> None:
    found = roofline_bound([COMPUTE, MEMORY], Known(), "fp32", 1)
    assert found is not None
    assert found.least_ms == pytest.approx(8.0 + 8.0)
    assert found.overlapped_ms == pytest.approx(8.0 + 0.008, abs=1e-3)
    assert found.memory_share == pytest.approx(0.5)
    assert found.macs == COMPUTE.macs + MEMORY.macs
    assert found.bytes_moved == 4 * 2_002_000


def test_a_batch_reads_its_weights_once() -> None:
    found = roofline_bound([MEMORY], Known(), "fp32", 1, batch=3)
    assert found is not None
    assert found.bytes_moved == 4 * (500_000 + 3 * 1_500_000)
    assert found.macs == 3 * MEMORY.macs


def test_shorter_numbers_and_more_threads_allow_less_time() -> None:
    times = [roofline_bound([COMPUTE, MEMORY], Known(), precision, 1) for precision in ("fp32", "bf16")]
    faster = roofline_bound([COMPUTE], Known(), "fp32", 4)
    assert times[0] is not None
    assert times[1] is not None
    assert times[1].least_ms == pytest.approx(times[0].least_ms / 2)
    assert faster is not None
    assert faster.least_ms == pytest.approx(2.0)


def test_only_quantised_layers_of_a_quantised_file_run_in_int8() -> None:
    int8 = LayerLoad(COMPUTE.macs, 0, 0, 0, quantised=True)
    for precision, wide in (("int8", 1e9), ("int8+bf16", 2e9)):
        found = roofline_bound([int8, LayerLoad(COMPUTE.macs, 0, 0, 0)], Known(), precision, 1)
        assert found is not None
        assert found.least_ms == pytest.approx(1e3 * (COMPUTE.macs / 4e9 + COMPUTE.macs / wide))


def test_no_bound_where_a_precision_cannot_be_measured() -> None:
    assert roofline_bound([COMPUTE], Known(), "fp16", 1) is None
    assert roofline_bound([COMPUTE], Ceilings(), "fp64", 1) is None


class Network(nn.Module):
    """One layer of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 12, (1, 3), padding=(0, 1), groups=4)
        self.up = nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1)
        self.up_grouped = nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2)
        self.linear = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up_grouped(self.up(self.grouped(self.conv(x))))
        return self.linear(y.permute(0, 2, 3, 1).relu())


def test_loads_of_a_network_are_those_counted_by_hand() -> None:
    conv, grouped, up, up_grouped, linear = module_loads(list_layers(Network(), (16, 24)))
    assert conv == LayerLoad(8 * 12 * 8 * 27, 3 * 16 * 24, 8 * 27, 8 * 12 * 8)
    assert grouped == LayerLoad(8 * 12 * 12 * 6, 8 * 8 * 12, 12 * 6, 12 * 8 * 12)
    assert up == LayerLoad(8 * 12 * 12 * 6 * 16, 12 * 8 * 12, 12 * 6 * 16, 6 * 16 * 24)
    assert up_grouped == LayerLoad(16 * 24 * 6 * 2 * 4, 6 * 16 * 24, 6 * 2 * 4, 4 * 32 * 48)
    assert linear == LayerLoad(32 * 48 * 20, 4 * 32 * 48, 20, 5 * 32 * 48)


def test_a_file_has_the_loads_of_its_network(tmp_path: Path) -> None:
    path = tmp_path / "network.onnx"
    module = Network().eval()
    torch.onnx.export(module, (torch.zeros(1, 3, 16, 24),), str(path), dynamo=False)
    assert sorted(map(repr, file_loads(path, image_input((16, 24))))) == sorted(
        map(repr, module_loads(list_layers(module, (16, 24))))
    )


def test_int8_weights_of_a_file_are_recognised(tmp_path: Path) -> None:
    import openvino
    from openvino import opset13 as ops

    image = ops.parameter([1, 3, 8, 8], np.float32)
    random = np.random.default_rng(0)
    plain = ops.constant(random.normal(size=(4, 3, 3, 3)).astype(np.float32))
    stored = ops.convert(ops.constant(random.integers(-9, 9, (4, 4, 3, 3)).astype(np.int8)), "f32")
    scaled = ops.multiply(stored, np.float32(0.1))
    ends = [np.float32(end) for end in (-1, 1)]
    weights = ops.constant(random.normal(size=(4, 4, 1, 1)).astype(np.float32))
    faked = ops.fake_quantize(weights, *ends, *ends, 255)
    value = ops.convolution(image, plain, [1, 1], [1, 1], [1, 1], [1, 1])
    value = ops.convolution(value, scaled, [1, 1], [1, 1], [1, 1], [1, 1])
    value = ops.convolution(value, faked, [1, 1], [0, 0], [0, 0], [1, 1])
    openvino.save_model(openvino.Model([ops.result(value)], [image], "m"), tmp_path / "m.xml", compress_to_fp16=False)
    found = file_loads(tmp_path / "m.xml", image_input((8, 8)))
    assert [layer.quantised for layer in found] == [False, True, True]
    assert [layer.macs for layer in found] == [64 * 4 * 27, 64 * 4 * 36, 64 * 4 * 4]


def test_the_machine_is_measured_once_and_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings_module, "_SECONDS", 0.0)
    monkeypatch.setattr(ceilings_module, "_SIDE", 96)
    monkeypatch.setattr(ceilings_module, "_CHANNELS", 16)
    monkeypatch.setattr(ceilings_module, "_MAP", 8)
    monkeypatch.setattr(ceilings_module, "BLOCKS", BLOCKS[:3])
    threads = torch.get_num_threads()
    ceilings = Ceilings()
    peak = ceilings.macs_per_s("fp32", 1)
    assert peak is not None
    assert peak > 1e6
    assert ceilings.macs_per_s("fp32", 1) == peak
    sizes, rates = zip(*ceilings.copies(1), strict=True)
    assert sizes == BLOCKS[:3]
    assert list(rates) == sorted(rates, reverse=True)
    assert rates[-1] > 1e6
    assert rates[1] <= ceilings.bytes_per_s(1.5 * BLOCKS[0], 1) <= rates[0]
    assert ceilings.bytes_per_s(1, 1) == pytest.approx(rates[0])
    assert ceilings.bytes_per_s(1e12, 1) == pytest.approx(rates[-1])
    assert torch.get_num_threads() == threads
