from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle, repeat
from typing import Any

import numpy as np
import pytest

from compress.errors import UsageError
from compress.measure.gate import Gate, never_slower
from compress.network.inputs import image_input

INPUTS = image_input((8, 8))


class Clock:
    """Time that passes only while a runner runs."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeRunner:
    """A runner whose runs take given times in milliseconds; every timed run follows an untimed one."""

    name, device, precision, threads, pose = "torch", "cpu", "fp32", 1, None

    def __init__(self, clock: Clock, times_ms: Iterator[float]) -> None:
        self.clock, self.times_ms = clock, times_ms

    def run(self, inputs: Any) -> dict[str, Any]:
        self.clock.now += next(self.times_ms) / 1e3
        return {}

    def close(self) -> None:
        """Nothing to close."""


def gate(original: Iterator[float], result: Iterator[float], **options: Any) -> Gate:
    clock = Clock()
    return never_slower(FakeRunner(clock, original), FakeRunner(clock, result), INPUTS, clock=clock, **options)


def noisy(median_ms: float, spread: float, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    while True:
        yield float(median_ms * (1 + spread * random.standard_normal()))


@pytest.mark.parametrize(("first", "second", "verdict"), [(20.0, 2.0, "faster"), (2.0, 20.0, "slower")])
def test_constant_times_give_their_ratio_and_verdict(first: float, second: float, verdict: str) -> None:
    found = gate(repeat(first), repeat(second), rounds=12)
    assert found.verdict == verdict
    assert found.ratio == pytest.approx(second / first)
    assert found.interval == pytest.approx((second / first, second / first))
    assert (found.original_ms, found.result_ms) == pytest.approx((first, second))
    assert found.to_dict() == {
        "ratio": found.ratio, "interval": list(found.interval), "original_ms": found.original_ms,
        "result_ms": found.result_ms, "rounds": 10, "verdict": verdict,
    }  # fmt: skip


def test_equal_times_are_no_difference() -> None:
    found = gate(repeat(5.0), repeat(5.0))
    assert (found.verdict, found.ratio) == ("no difference", pytest.approx(1))


def test_a_result_that_is_faster_in_half_of_the_rounds_is_not_faster() -> None:
    # Three warm-up runs, then an untimed and a timed run in each round.
    times = cycle([5.0, 5.0, 4.0, 4.0])
    for _ in range(3):
        next(times)
    found = gate(repeat(4.5), times)
    assert found.verdict == "no difference"
    assert found.interval[0] < 1 < found.interval[1]


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.97, "faster"), (1.03, "slower"), (1.0, "no difference")], ids=["less", "more", "equal"]
)
def test_noise_does_not_hide_three_percent_over_sixty_rounds(ratio: float, verdict: str) -> None:
    found = gate(noisy(20, 0.02, 1), noisy(20 * ratio, 0.02, 2), budget_s=1e9)
    assert found.rounds == 60
    assert found.verdict == verdict
    assert found.interval[0] <= ratio <= found.interval[1]


def test_identical_noisy_networks_rarely_get_a_verdict() -> None:
    wrong = [gate(noisy(9, 0.05, seed), noisy(9, 0.05, seed + 500), rounds=20).verdict for seed in range(25)]
    assert wrong.count("no difference") >= 22


def test_the_time_budget_ends_the_rounds_after_ten() -> None:
    make: Callable[[int], Iterator[float]] = lambda seed: noisy(100, 0.2, seed)  # noqa: E731
    assert gate(make(1), make(2), budget_s=0.0).rounds == 10


def test_fewer_than_ten_rounds_are_refused() -> None:
    with pytest.raises(UsageError, match="min_rounds must be at least 1 and at most rounds"):
        gate(repeat(1.0), repeat(1.0), rounds=9)
