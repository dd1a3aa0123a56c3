from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from compress.measure.gate import never_slower
from compress.pose.spec import PoseSpec


class Sleeper:
    """A runner that takes a given time."""

    name, device, precision, threads, pose = "torch", "cpu", "fp32", 1, PoseSpec()

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, images: Any) -> dict[str, Any]:
        time.sleep(self.seconds)
        return {"heatmaps": np.zeros((1, 1, 1, 1), np.float32)}

    def close(self) -> None:
        """Nothing to close."""


@pytest.mark.parametrize(("first", "second", "verdict"), [(0.02, 0.002, "faster"), (0.002, 0.02, "slower")])
def test_the_verdict_says_which_is_faster(first: float, second: float, verdict: str) -> None:
    gate = never_slower(Sleeper(first), Sleeper(second), (1, 3, 8, 8), rounds=12)
    assert gate.verdict == verdict
    assert (gate.ratio < 1) == (verdict == "faster")
    assert gate.interval[0] <= gate.ratio <= gate.interval[1]
    assert gate.to_dict()["rounds"] == gate.rounds >= 10


def test_a_network_against_itself_is_never_called_much_faster() -> None:
    gate = never_slower(Sleeper(0.005), Sleeper(0.005), (1, 3, 8, 8), rounds=20)
    assert gate.ratio == pytest.approx(1, abs=0.3)
