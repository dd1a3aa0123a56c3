"""Time and operations by kernel size add up to those of the network."""

from __future__ import annotations

import pytest
from torch import nn

from compress.checkpoint.wrap import wrap
from compress.measure.kernel_profile import REST, kernel_profile
from compress.measure.latency_table import LatencyTable
from compress.target import Target


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )


def table_of(times: dict[str, float], rest: float) -> LatencyTable:
    whole = sum(times.values()) + rest
    return LatencyTable(Target.parse("torch-cpu"), 1, whole, rest, times, {}, {})


def test_layers_are_grouped_by_kernel_and_their_shares_worked_out_by_hand() -> None:
    layers = wrap(network(), (1, 3, 6, 6)).layers
    times = {"0": 3.0, "2.0": 1.0, "2.1": 2.0, "2.2": 2.5, "4": 0.5}
    rows = {row.kernel: row for row in kernel_profile(layers, table_of(times, 1.0))}
    assert list(rows) == ["1x1", "3x3", "3x3 depthwise", "linear", REST]
    # 36 positions: 27 x 8, 9 x 8, 8 x 16 + 16 x 4 = 192 multiply-adds each, and 144 x 5.
    assert {name: row.macs for name, row in rows.items()} == {
        "3x3": 36 * 216, "3x3 depthwise": 36 * 72, "1x1": 36 * 192, "linear": 720, REST: 0,
    }  # fmt: skip
    assert {name: row.latency_share for name, row in rows.items()} == pytest.approx(
        {"1x1": 0.45, "3x3": 0.3, "3x3 depthwise": 0.1, "linear": 0.05, REST: 0.1}
    )
    assert rows["1x1"].layers == 2
    assert sum(row.macs_share for row in rows.values()) == pytest.approx(1)


def test_a_part_of_a_network_has_its_own_shares() -> None:
    layers = wrap(network(), (1, 3, 6, 6)).layers
    times = {"0": 3.0, "2.0": 1.0, "2.1": 2.0, "2.2": 1.0, "4": 0.5}
    rows = kernel_profile(layers, table_of(times, 1.0), within="2")
    assert [(row.kernel, row.latency_share) for row in rows] == [("1x1", 0.75), ("3x3 depthwise", 0.25)]
    assert rows[0].macs_share == pytest.approx(192 / 264)
