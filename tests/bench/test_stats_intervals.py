"""Intervals against the tables, and against counting."""

import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from miyabi_llm.bench.stats import intervals


@pytest.mark.parametrize(
    ("degrees", "table"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (60, 2.000), (120, 1.980)],
)
def test_student_as_in_the_tables(degrees: int, table: float) -> None:
    assert intervals.t_quantile(0.975, degrees) == pytest.approx(table, abs=6e-4)


def test_student_has_no_step_where_the_expansion_begins() -> None:
    assert intervals.t_quantile(0.975, 200) == pytest.approx(intervals.t_quantile(0.975, 201), rel=1e-4)
    assert intervals.t_quantile(0.995, 10**6) == pytest.approx(2.5758, abs=1e-4)


def test_how_many_values_a_percentile_needs() -> None:
    needed = {50.0: 6, 75.0: 13, 90.0: 36, 95.0: 72, 99.0: 368, 99.9: 3688}
    assert {p: intervals.least_for(p / 100) for p in intervals.PERCENTILES} == needed


@pytest.mark.parametrize(("n", "share", "ranks"), [(6, 0.5, (1, 6)), (20, 0.5, (6, 15)), (100, 0.5, (40, 61))])
def test_ranks_as_in_the_tables(n: int, share: float, ranks: tuple[int, int]) -> None:
    assert intervals.ranks(n, share) == ranks


@given(n=st.integers(1, 380), p=st.sampled_from([50.0, 75.0, 90.0, 95.0, 99.0]))
def test_ranks_cover_what_they_promise(n: int, p: float) -> None:
    share = Fraction(p) / 100
    if n < intervals.least_for(p / 100):
        return
    low, high = intervals.ranks(n, p / 100)
    terms = [math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(n + 1)]
    assert 1 <= low < high <= n
    assert sum(terms[low:high]) >= 0.95, "P(low <= B < high), exactly"
    assert sum(terms[:low]) <= 0.025
    assert sum(terms[low + 1 :]) + terms[low] >= 0.975


def test_ranks_of_very_many_are_close_to_the_binomial() -> None:
    near, far = intervals.ranks(200_000, 0.99), intervals.ranks(200_001, 0.99)
    assert max(abs(a - b) for a, b in zip(near, far, strict=True)) <= 4


def test_a_median_is_held_as_often_as_said() -> None:
    generator = random.Random(5)
    held = 0
    for _ in range(2000):
        values = sorted(generator.expovariate(1) for _ in range(40))
        low, high = intervals.ranks(40, 0.5)
        held += values[low - 1] <= math.log(2) <= values[high - 1]
    assert 0.94 < held / 2000 < 0.99


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"), [(0, 10, 0.0, 0.2775), (1, 10, 0.0179, 0.4042), (5, 10, 0.2366, 0.7634)]
)
def test_a_share_as_by_hand(hits: int, n: int, low: float, high: float) -> None:
    assert intervals.wilson(hits, n) == pytest.approx((low, high), abs=5e-4)
    assert intervals.wilson(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=5e-4)


def test_a_mean_as_by_hand() -> None:
    # 1, 2, 3: mean 2, sd 1, t(2) = 4.303
    assert intervals.mean(2.0, 1.0, 3) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    assert intervals.mean(2.0, math.nan, 1) is None
