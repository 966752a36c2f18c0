"""Intervals: of a mean, of a share, of a percentile, and how many values a percentile needs. Pure."""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from miyabi_llm.bench.stats.values import LEVEL

EDGE = (1 - LEVEL) / 2
Z = NormalDist().inv_cdf(1 - EDGE)
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9)
_EXACT = 200_000  # values up to which the ranks come from the binomial itself


def least_for(share: float) -> int:
    """How many independent values the quantile at `share` needs to have an interval: 72 for 0.95, 368 for 0.99.

    The least n with max(share, 1 - share)^n <= (1 - LEVEL) / 2: with fewer, not even the extremes bound it.
    """
    return math.ceil(math.log(EDGE) / math.log(max(share, 1 - share)))


@lru_cache(maxsize=512)
def ranks(n: int, share: float) -> tuple[int, int]:
    """The ranks (from 1) of the order statistics that hold the quantile at `share` with `LEVEL` at least.

    P(B < low) <= edge and P(B >= high) <= edge for B binomial(n, share): distribution-free. David and Nagaraja, Order
    Statistics, 2003, section 7.1. `n` at least `least_for(share)`.
    """
    if n > _EXACT:
        spread = Z * math.sqrt(n * share * (1 - share))
        return max(1, math.floor(n * share - spread)), min(n, math.ceil(n * share + spread) + 1)
    below = _binomial(n, share)  # below[k] = P(B <= k)
    low = int(np.searchsorted(below, EDGE, side="right"))
    high = int(np.searchsorted(below, 1 - EDGE, side="left")) + 1
    return max(1, low), min(n, high)


def _binomial(n: int, share: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    k = np.arange(1, n + 1, dtype=np.float64)
    steps = np.log(n - k + 1) - np.log(k) + math.log(share) - math.log1p(-share)
    logs = np.concatenate([[0.0], np.cumsum(steps)]) + n * math.log1p(-share)
    summed: np.ndarray[tuple[int], np.dtype[np.float64]] = np.cumsum(np.exp(logs))
    return summed


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The interval of a share. Wilson, Probable inference, the law of succession, and statistical inference, 1927."""
    if n == 0:
        return 0.0, 1.0
    share, zz = hits / n, Z * Z
    middle = (share + zz / (2 * n)) / (1 + zz / n)
    half = Z / (1 + zz / n) * math.sqrt(share * (1 - share) / n + zz / (4 * n * n))
    return (0.0 if hits == 0 else max(0.0, middle - half)), (1.0 if hits == n else min(1.0, middle + half))


def mean(average: float, sd: float, n: int) -> tuple[float, float] | None:
    """Student's t interval of a mean; None below two values."""
    if n < 2 or not math.isfinite(sd):
        return None
    half = t_quantile(1 - EDGE, n - 1) * sd / math.sqrt(n)
    return average - half, average + half


@lru_cache(maxsize=512)
def t_quantile(share: float, degrees: int) -> float:
    """Student's t at `share` above one half: bisection on the exact distribution, an expansion past 200 degrees.

    Abramowitz and Stegun, Handbook of Mathematical Functions, 1964: 26.7.3, 26.7.4 and 26.7.5.
    """
    if degrees > 200:
        z = NormalDist().inv_cdf(share)
        first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
        return z + first / degrees + second / degrees**2
    low, high = 0.0, 1.0
    while _t_below(high, degrees) < share:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, degrees) < share else (low, middle)
    return (low + high) / 2


def _t_below(t: float, degrees: int) -> float:
    """P(T <= t), t >= 0."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = 1.0 if degrees % 2 == 0 else cosine
    for k in range(1 if degrees % 2 == 0 else 2, degrees - 2, 2):
        term *= k / (k + 1) * cosine * cosine
        total += term
    if degrees % 2 == 0:
        return 0.5 + sine * total / 2
    return 0.5 + (angle + (sine * total if degrees > 1 else 0.0)) / math.pi
