from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import RankError, UsageError
from compress.planning.budget import Budget, infeasible, rounded_up
from compress.target import Target, targets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("macs=0.5", Budget("macs", 0.5, True)),
        ("params=1", Budget("params", 1.0, True)),
        ("size=0.25", Budget("size", 0.25, True)),
        ("macs=4.63G", Budget("macs", 4.63e9, False)),
        ("params=2m", Budget("params", 2e6, False)),
        ("size=800k", Budget("size", 8e5, False)),
        ("error=0.01", Budget("error", 0.01, False)),
        ("drop=1e-2", Budget("drop", 0.01, False)),
        ("latency=0.6@openvino-cpu", Budget("latency", 0.6, True, Target("openvino", "cpu"))),
        ("latency=30ms@torch-cuda-fp16", Budget("latency", 30.0, False, Target("torch", "cuda", "fp16"))),
        (" latency = 0.8 @ openvino-cpu-bf16 ", Budget("latency", 0.8, True, Target("openvino", "cpu", "bf16"))),
        ("latency=0.5@openvino-cpu-int8", Budget("latency", 0.5, True, Target("openvino", "cpu", int8=True))),
        ("latency=5ms@openvino-cpu-int8-bf16", Budget("latency", 5.0, False, Target("openvino", "cpu", "bf16", True))),
    ],
)
def test_budgets_are_read(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@given(
    kind=st.sampled_from(["macs", "params", "size", "latency"]),
    value=st.integers(1, 1000).map(lambda x: x / 1000),
    target=st.sampled_from([*targets(), *(f"{name}-bf16" for name in targets()), "openvino-cpu-int8"]),
)
def test_a_written_budget_is_read_back(kind: str, value: float, target: str) -> None:
    budget = Budget.parse(f"{kind}={value}" + (f"@{target}" if kind == "latency" else ""))
    assert Budget.parse(str(budget)) == budget == Budget.parse(budget)
    assert budget.bound(200.0) == pytest.approx(200 * value)


@given(
    kind=st.sampled_from(["macs", "params", "size"]), value=st.integers(1, 10**12), target=st.sampled_from(targets())
)
def test_a_written_absolute_budget_is_read_back(kind: str, value: int, target: str) -> None:
    read = Budget.parse(str(Budget(kind, float(value), False)))
    assert (read.kind, read.relative) == (kind, False)
    assert read.value == pytest.approx(value, rel=1e-10)
    latency = Budget("latency", value / 1024, False, Target.parse(target))
    assert Budget.parse(str(latency)).value == pytest.approx(value / 1024, rel=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "macs", "macs=", "macs=half", "macs=1.2.3", "flops=0.5", "macs=0", "macs=1.5", "macs=-0.5", "macs=nan",
        "drop=2", "error=1m", "macs=10ms", "latency=0.5", "macs=0.5@openvino-cpu", "latency=4G@openvino-cpu", "macs=0G",
        "latency=0.5@tensorrt-cuda", "latency=0.5@openvino", "latency=0.5@openvino-cuda", "latency=0.5@torch-cpu-int4",
        "latency=0.5@torch-cpu-bf16-x", "latency=0@torch-cpu", "latency=0.5@torch-cpu-int8",
        "latency=0.5@onnxruntime-cpu-int8", "latency=0.5@openvino-cpu-bf16-int8", "latency=0.5@openvino-cpu-int8-int8",
        "latency=0.5@openvino-cpu-",
    ],
)  # fmt: skip
def test_malformed_budgets_are_refused_with_a_hint(text: str) -> None:
    with pytest.raises((RankError, UsageError)) as caught:
        Budget.parse(text)
    assert caught.value.hint


def test_errors_about_unknown_kinds_and_targets_list_the_known_ones() -> None:
    with pytest.raises(RankError, match="macs, params, size, error, drop, latency"):
        Budget.parse("time=0.5")
    with pytest.raises(UsageError, match=r"torch-cpu, torch-cuda, onnxruntime-cpu.*openvino-gpu"):
        Budget.parse("latency=0.5@npu")


@given(share=st.floats(1e-4, 1.0))
def test_an_infeasible_budget_names_one_that_is_feasible(share: float) -> None:
    error = infeasible(Budget("macs", share / 2, True), share * 7e9, 7e9)
    nearest = Budget.parse(error.nearest)
    assert error.nearest in error.hint
    assert share * (1 - 1e-9) <= nearest.bound(1.0) <= share + 1.1e-4


def test_the_nearest_latency_budget_names_its_target() -> None:
    budget = Budget.parse("latency=5ms@openvino-cpu-bf16")
    assert infeasible(budget, 8.0, 20.0).nearest == "latency=0.4@openvino-cpu-bf16"


@given(share=st.floats(0, 1))
def test_shares_are_rounded_up(share: float) -> None:
    assert share - 1e-12 <= rounded_up(share) <= share + 1.01e-4
