"""Bounds on B alone, and shares of errors: decided only when the interval is clear of the bound. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from miyabi_llm.bench.gate.judge import figure, too_few
from miyabi_llm.bench.gate.resample import draw, interval, weights
from miyabi_llm.bench.gate.values import LEAST_ROUNDS, LEVEL, Compared, Direction, Outcome, Statistic


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of one arm with its interval at `level`, None where n does not allow one (`why` says so)."""

    value: float
    low: float | None
    high: float | None
    n: int
    rounds: int = 0
    why: str = ""
    level: float = LEVEL


def of_rounds(rounds: Sequence[Sequence[float]], statistic: Statistic, *, seed: int = 0, looks: int = 1) -> Figure:
    """The figure over all rounds, its interval from rounds resampled."""
    clusters = [np.asarray(r, float) for r in rounds if r]
    n = sum(len(c) for c in clusters)
    value = figure(clusters, statistic)
    if len(clusters) < LEAST_ROUNDS:
        return Figure(value, None, None, n, len(clusters), f"{len(clusters)} of at least {LEAST_ROUNDS} rounds")
    if why := too_few(statistic, n):
        return Figure(value, None, None, n, len(clusters), why)
    estimate, draws = draw(clusters, statistic, weights(len(clusters), seed))
    low, high, _ = interval(estimate, draws, len(clusters), looks)
    return Figure(value, low, high, n, len(clusters))


def of_share(hits: int, n: int, *, looks: int = 1) -> Figure:
    """A share of requests, with Wilson's interval (Probable inference, the law of succession, 1927)."""
    if not n:
        return Figure(math.nan, None, None, 0, why="no request was answered or failed")
    z = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / looks)
    share = hits / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Figure(share, max(0.0, middle - half) if hits else 0.0, min(1.0, middle + half) if hits < n else 1.0, n)


def bounded(metric: str, found: Figure, bound: float, worse: Direction, unit: str) -> Compared:
    """Judge a figure against a bound; `worse` is `higher` when values above it fail.

    No error among too few requests to bound their share passes, and the reason says how little that shows.
    """
    outcome, reason = _decide(found, bound, worse)
    if metric == "error_rate" and outcome == "inconclusive" and found.value == 0 and found.n:
        outcome, reason = "pass", f"no error in {found.n} requests; that bounds their share by {found.high:.1%} only"
    nan = math.nan
    return Compared(
        metric=metric,
        kind="absolute",
        outcome=outcome,
        value=found.value,
        low=nan if found.low is None else found.low,
        high=nan if found.high is None else found.high,
        limit=bound,
        a=nan,
        b=found.value,
        unit=unit,
        rounds=found.rounds,
        n=found.n,
        reason=reason,
    )


def _decide(found: Figure, bound: float, worse: Direction) -> tuple[Outcome, str]:
    if not math.isfinite(found.value):
        return "invalid", found.why or "it was not measured"
    if found.low is None or found.high is None:
        return "inconclusive", f"no interval: {found.why}"
    shown = f"{found.value:.4g} [{found.low:.4g}, {found.high:.4g}] at {found.level:.0%}, bound {bound:.4g}"
    beyond, within = (found.low > bound, found.high <= bound)
    if worse == "lower":
        beyond, within = (found.high < bound, found.low >= bound)
    if beyond:
        return "fail", f"beyond the bound: {shown}"
    return ("pass", f"within the bound: {shown}") if within else ("inconclusive", f"cannot tell: {shown}")


def errors(a: tuple[int, int], b: tuple[int, int], tolerance: float, *, looks: int = 1) -> Compared:
    """Whether B fails more often than A; each is (failed, all). `tolerance` in shares of all requests.

    Fails when B's share is larger by more than the tolerance and Fisher's exact test, one-sided, leaves no doubt
    (Fisher, Statistical Methods for Research Workers, 1934); larger without that: cannot tell; else it passes.
    """
    of_a, of_b = of_share(*a, looks=looks), of_share(*b, looks=looks)
    p = fisher(a, b)
    shown = f"{b[0]} of {b[1]} against {a[0]} of {a[1]} requests failed, p {p:.2g}"
    outcome: Outcome = "pass"
    if not a[1] or not b[1]:
        outcome = "invalid"
    elif of_b.value - of_a.value > tolerance:
        outcome = "fail" if p <= (1 - LEVEL) / 2 / looks else "inconclusive"
    words = {"pass": "not worse", "fail": "worse", "inconclusive": "cannot tell", "invalid": "not measured"}
    nan = math.nan
    return Compared(
        metric="error_rate",
        kind="relative",
        outcome=outcome,
        value=of_b.value - of_a.value,
        low=nan if of_b.low is None or of_a.high is None else of_b.low - of_a.high,
        high=nan if of_b.high is None or of_a.low is None else of_b.high - of_a.low,
        limit=tolerance,
        a=of_a.value,
        b=of_b.value,
        unit="share",
        rounds=0,
        n=min(a[1], b[1]),
        reason=f"{words[outcome]}: {shown}",
        p=p,
    )


def fisher(a: tuple[int, int], b: tuple[int, int]) -> float:
    """One-sided p of Fisher's exact test that B's share is not larger. Each is (hits, all); exact integers."""
    hits, total = a[0] + b[0], a[1] + b[1]
    ways = sum(math.comb(b[1], k) * math.comb(a[1], hits - k) for k in range(b[0], min(hits, b[1]) + 1))
    return ways / math.comb(total, hits)
