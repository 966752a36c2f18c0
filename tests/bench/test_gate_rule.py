"""The rule of the gate on made-up rounds: its decisions, its statistics against plain ones, shares of errors."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from miyabi_llm.bench.gate import bounds
from miyabi_llm.bench.gate.judge import compare, decide, judge
from miyabi_llm.bench.gate.resample import draw, interval, weights
from miyabi_llm.bench.gate.values import RESAMPLES, Series, Statistic


def rounds(count: int, per: int, factor: float, spread: float, seed: int = 0) -> Series:
    random = np.random.default_rng(seed)
    prompts = random.uniform(1, 3, (count, per))
    a, b = (prompts * np.exp(random.normal(0, spread, (count, per))) for _ in range(2))
    return Series("x", tuple(map(tuple, a.tolist())), tuple(map(tuple, (factor * b).tolist())))


@pytest.mark.parametrize(
    ("factor", "spread", "count", "outcome"),
    [
        (1.0, 0.01, 8, "pass"),
        (0.8, 0.01, 8, "pass"),
        (1.10, 0.01, 8, "fail"),
        (1.20, 0.01, 8, "fail"),
        (1.10, 0.60, 8, "inconclusive"),
        (1.0, 0.60, 8, "inconclusive"),
        (2.0, 0.01, 4, "inconclusive"),
    ],
)
def test_decisions(factor: float, spread: float, count: int, outcome: str) -> None:
    found = judge([rounds(count, 8, factor, spread)])
    assert found.outcome == outcome, found.reasons


def test_higher_is_better_and_the_ratio_is_turned() -> None:
    s = rounds(8, 1, 1 / 1.2, 0.01)
    found = compare(Series("tps", s.a, s.b, better="higher", paired=False))
    assert found.outcome == "fail"
    assert found.value == pytest.approx(1.2, abs=0.02)
    assert compare(Series("tps", s.a, s.b, better="lower", paired=False)).outcome == "pass"


def test_noise_widens_the_tolerance_and_looks_the_interval() -> None:
    s = rounds(8, 8, 1.10, 0.01)
    assert judge([s], noise={"x": 0.10}).outcome == "pass"
    once, often = compare(s), compare(s, looks=12)
    assert often.low < once.low < once.high < often.high


def test_values_that_are_no_times_are_invalid() -> None:
    for bad in (0.0, -1.0, math.nan, math.inf):
        assert compare(Series("x", ((1.0,),) * 6, ((1.0,),) * 5 + ((bad,),))).outcome == "invalid"


@pytest.mark.parametrize(
    ("statistic", "per", "outcome"), [(0.95, 8, "inconclusive"), (0.95, 16, "fail"), ("mean", 8, "fail")]
)
def test_other_statistics(statistic: Statistic, per: int, outcome: str) -> None:
    s = rounds(8, per, 1.2, 0.01)
    found = compare(Series("x", s.a, s.b, statistic=statistic))
    assert found.outcome == outcome, found.reason
    assert outcome != "fail" or found.value == pytest.approx(1.2, abs=0.02)


def test_p99_needs_368_values() -> None:
    s = rounds(9, 40, 1.2, 0.01)
    assert "368" in compare(Series("x", s.a, s.b, statistic=0.99)).reason


def test_holm_takes_back_what_chance_explains() -> None:
    """A failure near the edge of one metric does not survive among many."""
    spreads = [s for s in np.linspace(0.02, 0.12, 41) if compare(rounds(9, 8, 1.085, float(s))).outcome == "fail"]
    edge = rounds(9, 8, 1.085, float(spreads[-1]))
    fine = [rounds(9, 8, 1.0, 0.005, seed) for seed in range(1, 12)]
    alone, among = judge([edge]), judge([edge, *fine])
    assert alone.outcome == "fail"
    assert among.metrics[0].p == pytest.approx(min(1.0, 12 * alone.metrics[0].p))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.floats(0.1, 10), min_size=1, max_size=7), min_size=2, max_size=6),
    st.sampled_from([0.5, 0.9, "mean"]),
    st.integers(0, 5),
)
def test_draws_are_what_plain_resampling_gives(clusters: list[list[float]], statistic: Statistic, seed: int) -> None:
    arrays = [np.asarray(c) for c in clusters]
    drawn = weights(len(arrays), seed)
    estimate, draws = draw(arrays, statistic, drawn)
    plain = np.mean if statistic == "mean" else lambda v: np.quantile(v, statistic)
    assert estimate == pytest.approx(float(plain(np.concatenate(arrays))))
    for i in (0, 1, RESAMPLES - 1):
        values = np.concatenate([np.repeat(c[None], n, axis=0).ravel() for c, n in zip(arrays, drawn[i], strict=True)])
        assert draws[i] == pytest.approx(float(plain(values)))


def test_the_interval_holds_as_often_as_it_says() -> None:
    """Over 200 made-up series of 6 rounds at least 97% hold."""
    random = np.random.default_rng(7)
    held = 0
    for seed in range(200):
        clusters = list(random.normal(0, 1, (6, 1)) + random.normal(0, 0.5, (6, 8)))
        estimate, draws = draw(clusters, 0.5, weights(6, seed))
        low, high, _ = interval(estimate, draws, 6)
        held += low <= 0 <= high
    assert held >= 0.97 * 200


def test_fisher_by_counting() -> None:
    a, b = (1, 7), (4, 6)
    ways = [
        (sum(x), sum(y))
        for x, y in product(product((0, 1), repeat=7), product((0, 1), repeat=6))
        if sum(x) + sum(y) == 5
    ]
    assert bounds.fisher(a, b) == pytest.approx(sum(y >= 4 for _, y in ways) / len(ways))


@pytest.mark.parametrize(
    ("a", "b", "outcome"),
    [
        ((0, 100), (0, 100), "pass"),
        ((0, 100), (1, 100), "pass"),
        ((0, 100), (3, 100), "inconclusive"),
        ((0, 100), (30, 100), "fail"),
        ((30, 100), (0, 100), "pass"),
        ((0, 0), (0, 10), "invalid"),
    ],
)
def test_errors_against_errors(a: tuple[int, int], b: tuple[int, int], outcome: str) -> None:
    assert bounds.errors(a, b, 0.01).outcome == outcome


@pytest.mark.parametrize(
    ("hits", "n", "bound", "outcome"),
    [(0, 40, 0.01, "pass"), (1, 40, 0.01, "inconclusive"), (8, 40, 0.01, "fail"), (0, 2000, 0.01, "pass")],
)
def test_a_bound_on_errors(hits: int, n: int, bound: float, outcome: str) -> None:
    found = bounds.bounded("error_rate", bounds.of_share(hits, n), bound, "higher", "share")
    assert found.outcome == outcome, found.reason
    assert n > 100 or outcome != "pass" or "only" in found.reason


@pytest.mark.parametrize(
    ("bound", "worse", "outcome"),
    [(3.5, "higher", "pass"), (1.2, "higher", "fail"), (2.0, "higher", "inconclusive"), (1.2, "lower", "pass")],
)
def test_a_bound_on_a_figure(bound: float, worse: str, outcome: str) -> None:
    found = bounds.of_rounds(rounds(8, 12, 1.0, 0.01).b, 0.5)
    assert bounds.bounded("x", found, bound, worse, "s").outcome == outcome  # type: ignore[arg-type]


def test_a_bound_on_a_percentile_waits_for_values() -> None:
    few, enough = (bounds.of_rounds(rounds(8, per, 1.0, 0.01).b, 0.95) for per in (4, 10))
    assert bounds.bounded("x", few, 9.0, "higher", "s").outcome == "inconclusive"
    assert bounds.bounded("x", enough, 9.0, "higher", "s").outcome == "pass"


def test_the_words_tell_the_change_of_the_figure_itself() -> None:
    slower = decide(1.151, 1.105, 1.173, 1 / 0.95 - 1, "higher")
    assert slower == ("fail", "worse: -13.1% [-14.7%, -9.5%] at 99%, tolerance 5.0%")
    assert decide(1.2, 1.1, 1.3, 0.05) == ("fail", "worse: +20.0% [+10.0%, +30.0%] at 99%, tolerance 5.0%")
