from __future__ import annotations

import gc
import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from compress.errors import UsageError
from compress.measure.bootstrap import paired_speedup
from compress.measure.latency import RoundOptions, Timing, measure_interleaved
from compress.network.inputs import InputSpec, image_input
from compress.pose.spec import PoseSpec
from compress.runtime.torch_runner import TorchRunner

SHAPE = (2, 3, 16, 24)
INPUTS = (InputSpec(SHAPE),)


class Clock:
    """Time that only passes while a runner runs, at a speed that may drift."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def __call__(self) -> float:
        return self.now

    def drift(self) -> float:
        return 1.0


class Drifting(Clock):
    """A machine that gets three times slower in the course of ten seconds."""

    def drift(self) -> float:
        return 1 + min(2.0, self.now / 5)


class FakeRunner:
    """Takes a known time; a run after another candidate's takes longer, as with spinning threads."""

    name, device, precision, threads, pose = "torch", "cpu", "fp32", 3, None

    def __init__(self, label: str, clock: Clock, times_ms: Iterator[float], switch_ms: float = 0.0) -> None:
        self.label, self.clock, self.times_ms, self.switch_ms = label, clock, times_ms, switch_ms
        self.seen: list[NDArray[np.float32]] = []

    def run(self, images: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        cost = next(self.times_ms)
        if self.clock.log and self.clock.log[-1] != self.label:
            cost += self.switch_ms
        self.clock.log.append(self.label)
        self.clock.now += cost * self.clock.drift() / 1e3
        self.seen.append(images)
        return {}

    def close(self) -> None:
        pass


def noisy(median_ms: float, spread: float, seed: int) -> Iterator[float]:
    random = np.random.default_rng(seed)
    while True:
        yield float(median_ms * (1 + spread * random.standard_normal()))


def pair(clock: Clock, spread: float = 0.05, switch_ms: float = 0.0) -> dict[str, FakeRunner]:
    return {
        "slow": FakeRunner("slow", clock, noisy(20, spread, 1), switch_ms),
        "fast": FakeRunner("fast", clock, noisy(10, spread, 2), switch_ms),
    }


def test_known_times_are_found() -> None:
    clock = Clock()
    slow, fast = measure_interleaved(pair(clock), INPUTS, clock=clock)
    assert (slow.model, fast.model) == ("slow", "fast")
    assert slow.interval_ms[0] < 20 < slow.interval_ms[1]
    assert fast.latency_ms == pytest.approx(10, rel=0.03)
    assert fast.fps == pytest.approx(2 * 1e3 / fast.latency_ms)
    assert fast.p90_ms == pytest.approx(10 * (1 + 0.05 * 1.28), rel=0.03)
    assert fast.p99_ms == np.percentile(fast.samples_ms, 99) > fast.p90_ms
    assert fast.device_ms is None
    assert (fast.batch, fast.height, fast.width, fast.threads) == (2, 16, 24, 3)
    assert (fast.runtime, fast.device, fast.precision) == ("torch", "cpu", "fp32")


def test_each_round_times_each_candidate_once_and_orders_vary() -> None:
    clock = Clock()
    candidates = pair(clock) | {"third": FakeRunner("third", clock, noisy(5, 0.1, 3))}
    found = measure_interleaved(candidates, INPUTS, RoundOptions(rounds=30, min_rounds=30, warmup=0), clock=clock)
    turns = clock.log[::2]
    assert turns == clock.log[1::2], "every timed run must follow one of the same candidate"
    rounds = [tuple(turns[i : i + 3]) for i in range(0, len(turns), 3)]
    assert all(sorted(order) == ["fast", "slow", "third"] for order in rounds)
    assert len(set(rounds)) == 6
    assert {timing.rounds for timing in found} == {30}


def test_a_slower_first_run_after_a_switch_is_not_counted() -> None:
    clock = Clock()
    slow, fast = measure_interleaved(pair(clock, switch_ms=15.0), INPUTS, clock=clock)
    assert slow.latency_ms == pytest.approx(20, rel=0.03)
    assert fast.latency_ms == pytest.approx(10, rel=0.03)


def test_drift_does_not_make_a_difference() -> None:
    clock = Drifting()
    candidates = {label: FakeRunner(label, clock, noisy(20, 0.02, seed)) for seed, label in enumerate("ab")}
    first, second = measure_interleaved(candidates, INPUTS, RoundOptions(rounds=120, half_width=0), clock=clock)
    assert paired_speedup(first.samples_ms, second.samples_ms).verdict == "no difference"
    assert first.samples_ms[-1] > 2 * first.samples_ms[0], "the machine did not drift"


def test_stops_when_the_intervals_are_narrow_and_not_before() -> None:
    clocks = Clock(), Clock()
    steady = measure_interleaved(pair(clocks[0], spread=0.001), INPUTS, RoundOptions(rounds=500), clock=clocks[0])
    restless = measure_interleaved(pair(clocks[1], spread=0.1), INPUTS, RoundOptions(rounds=500), clock=clocks[1])
    assert steady[0].rounds == 10
    assert 10 < restless[0].rounds < 500
    for timing in restless:
        low, high = timing.interval_ms
        assert max(high - timing.latency_ms, timing.latency_ms - low) <= 0.02 * timing.latency_ms


def test_budget_ends_the_rounds_but_not_before_the_fewest() -> None:
    for budget_s, expected in ((0.0, 10), (3.0, 50)):
        clock = Clock()
        found = measure_interleaved(
            pair(clock, spread=0), INPUTS, RoundOptions(half_width=0, budget_s=budget_s), clock=clock
        )
        assert found[0].rounds == pytest.approx(expected, abs=1)  # a round takes 2 x (20 + 10) ms


def test_same_seed_same_order_and_input() -> None:
    logs, inputs = [], []
    for seed in (1, 1, 2):
        clock = Clock()
        candidates = pair(clock)
        measure_interleaved(candidates, INPUTS, RoundOptions(rounds=20, min_rounds=20, seed=seed), clock=clock)
        logs.append(clock.log)
        inputs.append(candidates["fast"].seen[0])
    assert logs[0] == logs[1] != logs[2]
    assert (inputs[0] == inputs[1]).all()
    assert not (inputs[0] == inputs[2]).all()
    assert inputs[0].dtype == np.float32
    assert inputs[0].shape == SHAPE
    assert np.abs(inputs[0]).max() <= 0.5


def test_a_runner_that_knows_its_gpu_time_is_asked_after_each_timed_run() -> None:
    class OnGpu(FakeRunner):
        @property
        def device_ms(self) -> float:
            return self.clock.now * 1e3 / len(self.clock.log) / 2

    clock = Clock()
    candidates = {"gpu": OnGpu("gpu", clock, noisy(20, 0, 1)), "cpu": FakeRunner("cpu", clock, noisy(20, 0, 2))}
    on_gpu, on_cpu = measure_interleaved(candidates, INPUTS, RoundOptions(rounds=10), clock=clock)
    assert on_gpu.device_ms == pytest.approx(10)
    assert on_gpu.latency_ms == pytest.approx(20)
    assert on_cpu.device_ms is None


def test_a_network_with_several_inputs_is_given_a_tuple_and_has_a_size_only_for_images() -> None:
    clock = Clock()
    runner = FakeRunner("two", clock, noisy(20, 0, 1))
    inputs = (InputSpec((4, 7)), InputSpec((4, 2), "int64"))
    (timing,) = measure_interleaved({"two": runner}, inputs, clock=clock)
    first, second = runner.seen[0]
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((4, 7), np.float32, (4, 2), np.int64)
    assert not second.any()
    assert (timing.batch, timing.height, timing.width, timing.size) == (4, None, None, "-")
    assert timing.fps == pytest.approx(4 / 20e-3)


def test_progress_counts_rounds_and_the_collector_comes_back() -> None:
    clock, seen = Clock(), []
    measure_interleaved(
        pair(clock),
        INPUTS,
        RoundOptions(rounds=12, half_width=0),
        clock=clock,
        progress=lambda *step: seen.append(step),
    )
    assert seen == [(n, 12) for n in range(1, 13)]
    assert gc.isenabled()


def test_collector_comes_back_after_an_error() -> None:
    clock = Clock()
    with pytest.raises(StopIteration):
        measure_interleaved({"ends": FakeRunner("ends", clock, iter([1.0] * 9))}, INPUTS, clock=clock)
    assert gc.isenabled()


def test_a_real_runner_is_timed() -> None:
    class Maps(nn.Module):
        def forward(self, x: torch.Tensor) -> list[dict[str, torch.Tensor]]:
            return [{"heatmaps": x[:, :, ::8, ::8], "pafs": x[:, :, ::8, ::8]}]

    runner = TorchRunner(Maps(), PoseSpec(), threads=1)
    (timing,) = measure_interleaved({"maps": runner}, image_input((16, 24)), RoundOptions(rounds=4, min_rounds=3))
    assert 0 < timing.interval_ms[0] <= timing.latency_ms <= timing.interval_ms[1]
    assert timing.latency_ms <= timing.p90_ms
    assert (timing.runtime, timing.device, timing.precision, timing.threads) == ("torch", "cpu", "fp32", 1)


def test_record_is_plain_and_without_samples() -> None:
    timing = Timing(
        "m", "torch", "cpu", "fp32", 16, 24, 1, 2.0, 3.0, 3.5, (1.5, 2.5), 500.0, 3, 1, samples_ms=(1.0, 2.0, 3.0)
    )
    record = json.loads(json.dumps(timing.to_dict()))
    assert record["interval_ms"] == [1.5, 2.5]
    assert set(record) == {
        "model", "runtime", "device", "precision", "height", "width", "batch", "latency_ms", "p90_ms", "p99_ms",
        "interval_ms", "fps", "rounds", "threads", "device_ms",
    }  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": ()}, {"rounds": 5}, {"min_rounds": 0},
        {"warmup": -1}, {"half_width": -0.1}, {"budget_s": -1.0}, {"candidates": {}},
    ],
)  # fmt: skip
def test_refuses_what_cannot_be_timed(wrong: dict[str, object]) -> None:
    clock = Clock()
    options = {name: wrong.pop(name) for name in list(wrong) if name not in ("candidates", "inputs")}
    arguments: dict[str, object] = {"candidates": pair(clock), "inputs": INPUTS, "clock": clock} | wrong
    with pytest.raises(UsageError):
        measure_interleaved(**arguments, options=RoundOptions(**options))  # type: ignore[arg-type]
    assert not clock.log
