from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from compress.errors import UsageError
from compress.measure.bootstrap import MIN_ROUNDS, UNDECIDED, Speedup, bootstrap_interval, paired_speedup, sign_test

times = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=40)


@given(times, st.integers(0, 2**32))
def test_interval_is_inside_the_samples_and_the_same_for_the_same_seed(samples: list[float], seed: int) -> None:
    low, high = bootstrap_interval(samples, draws=200, seed=seed)
    assert min(samples) <= low <= high <= max(samples)
    assert (low, high) == bootstrap_interval(samples, draws=200, seed=seed)


@given(times, st.floats(0.1, 10))
def test_interval_scales_with_the_unit(samples: list[float], factor: float) -> None:
    low, high = bootstrap_interval(samples, draws=200)
    scaled = bootstrap_interval([factor * x for x in samples], draws=200)
    assert scaled == pytest.approx((factor * low, factor * high), rel=1e-9)


def test_interval_does_not_depend_on_the_order_by_much() -> None:
    samples = np.random.default_rng(0).normal(100, 5, 60)
    assert bootstrap_interval(samples) == pytest.approx(bootstrap_interval(np.sort(samples)), rel=0.005)


@pytest.mark.parametrize("name", ["normal", "lognormal", "two speeds"])
def test_intervals_hold_the_true_median_about_as_often_as_they_say(name: str) -> None:
    random = np.random.default_rng(7)
    draw, median = {
        "normal": (lambda: random.normal(10, 1, 40), 10.0),
        "lognormal": (lambda: random.lognormal(2, 0.5, 40), np.exp(2)),
        # Latencies often have a slow mode: 30 % of the rounds take 12 and not 10.
        "two speeds": (
            lambda: np.where(random.random(40) < 0.3, 12, 10) + random.normal(0, 0.2, 40),
            10 + 0.2 * scipy.stats.norm.ppf(0.5 / 0.7),
        ),
    }[name]
    covered = 0
    for trial in range(400):
        low, high = bootstrap_interval(draw(), draws=400, seed=trial)
        covered += low <= median <= high
    # 95 % +- 3 standard errors of 400 trials, and the percentile bootstrap is known to be a little off.
    assert 0.91 <= covered / 400 <= 0.985


def test_interval_agrees_with_that_of_scipy() -> None:
    samples = np.random.default_rng(3).lognormal(3, 0.3, 50)
    reference = scipy.stats.bootstrap(
        (samples,), np.median, method="percentile", n_resamples=9999, rng=np.random.default_rng(0)
    ).confidence_interval
    low, high = bootstrap_interval(samples, draws=9999)
    width = reference.high - reference.low
    assert low == pytest.approx(reference.low, abs=0.1 * width)
    assert high == pytest.approx(reference.high, abs=0.1 * width)


def test_more_rounds_give_a_narrower_interval() -> None:
    random = np.random.default_rng(1)
    widths = [np.ptp(bootstrap_interval(random.normal(10, 1, n))) for n in (10, 100, 1000)]
    assert widths[0] > widths[1] > widths[2]


def test_speedup_cancels_what_slows_both() -> None:
    random = np.random.default_rng(2)
    drift = random.lognormal(0, 0.5, 40)  # the machine is up to several times slower in some rounds
    first = drift * random.normal(20, 0.2, 40)
    second = drift * random.normal(19, 0.2, 40)
    measured = paired_speedup(first, second)
    assert measured.verdict == "faster"
    assert measured.low < 20 / 19 < measured.high
    assert measured.high - measured.low < 0.02
    alone = bootstrap_interval(first), bootstrap_interval(second)
    assert alone[0][0] < alone[1][1], "medians alone could not have told them apart"


def test_speedup_of_exchanged_candidates_is_the_inverse() -> None:
    random = np.random.default_rng(4)
    first, second = random.normal(10, 0.1, 31), random.normal(12, 0.1, 31)
    there, back = paired_speedup(first, second), paired_speedup(second, first)
    assert there.median == pytest.approx(1 / back.median)
    assert (there.verdict, back.verdict) == ("slower", "faster")
    assert there.low == pytest.approx(1 / back.high, rel=1e-3)


def normal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.normal(10, 1, n)


def lognormal(random: np.random.Generator, n: int) -> np.ndarray:
    return random.lognormal(0, 0.3, n)


def slow_mode(random: np.random.Generator, n: int) -> np.ndarray:
    return np.where(random.random(n) < 0.3, 13, 10) + random.normal(0, 0.2, n)


@pytest.mark.parametrize("rounds", [10, 16, 30])
@pytest.mark.parametrize("draw", [normal, lognormal, slow_mode])
def test_under_one_in_twenty_comparisons_of_identical_candidates_gets_a_verdict(
    draw: Callable[[np.random.Generator, int], np.ndarray], rounds: int
) -> None:
    random = np.random.default_rng(5)
    wrong = sum(
        paired_speedup(draw(random, rounds), draw(random, rounds), draws=300).verdict != "no difference"
        for _ in range(800)
    )
    # 4.3 % at most by the exact test; two standard errors of 800 trials are 1.4 %.
    assert wrong / 800 < 0.05


def test_a_clear_difference_gets_its_verdict_from_ten_rounds_on() -> None:
    random = np.random.default_rng(6)
    slow, fast = random.normal(20, 0.5, 40), random.normal(18, 0.5, 40)
    for rounds in range(1, 40):
        found = paired_speedup(slow[:rounds], fast[:rounds])
        assert found.rounds == rounds
        assert found.verdict == (UNDECIDED if rounds < MIN_ROUNDS else "faster")


def test_the_sign_test_is_that_of_scipy() -> None:
    for wins, losses in ((0, 0), (5, 5), (9, 1), (1, 9), (12, 3), (0, 10)):
        above = [True] * wins + [False] * losses
        expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert sign_test(above, [not x for x in above]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("low", "high", "p_value", "verdict"),
    [
        (1.01, 1.2, 0.01, "faster"), (0.8, 0.99, 0.01, "slower"), (0.9, 1.1, 0.01, "no difference"),
        (1.0, 1.1, 0.01, "no difference"), (1.01, 1.2, 0.06, "no difference"),
    ],
)  # fmt: skip
def test_verdict_needs_an_interval_without_one_and_a_significant_test(
    low: float, high: float, p_value: float, verdict: str
) -> None:
    assert Speedup((low + high) / 2, low, high, MIN_ROUNDS, p_value).verdict == verdict
    assert Speedup((low + high) / 2, low, high, MIN_ROUNDS - 1, p_value).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("first", "second"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, np.nan], [1.0, 1.0]), ([1.0], [0.0])]
)
def test_speedup_refuses_unpaired_and_impossible_times(first: list[float], second: list[float]) -> None:
    with pytest.raises(UsageError):
        paired_speedup(first, second)
