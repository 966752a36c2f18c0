"""Whether B is worse than A: paired log-ratios, resampled by round, against a tolerance. Pure.

The rule is that of interleaved A/B rounds on a shared machine: statistic and interval from whole rounds resampled
(rounds are the clusters: what disturbs one request disturbs its neighbours), a two-key decision (the ratio beyond the
tolerance, and its interval clear of half of it), and three answers: a difference that cannot be shown is not a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Outcome = Literal["pass", "fail", "inconclusive", "invalid"]
Direction = Literal["lower", "higher"]  # which is better

LEVEL = 0.99  # of the intervals
RESAMPLES = 4000
LEAST_ROUNDS = 4  # fewer clusters tell nothing about the spread between them


@dataclass(frozen=True, slots=True)
class Series:
    """One metric of both arms, by round: `a[r]` and `b[r]` are equally long where requests are paired.

    `unit` is the metric's; `better` says which direction is; `tolerance` is the share by which B may be worse.
    """

    metric: str
    a: tuple[tuple[float, ...], ...]
    b: tuple[tuple[float, ...], ...]
    better: Direction = "lower"
    tolerance: float = 0.05
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Compared:
    """One metric, judged. `ratio` is B over A turned so that above 1 is worse, with its interval; `p` is the one-sided
    bootstrap probability that B is not worse than half the tolerance, after Holm over the metrics.
    """

    metric: str
    outcome: Outcome
    ratio: float
    low: float
    high: float
    p: float
    tolerance: float
    rounds: int
    pairs: int
    reason: str
    a: float
    b: float
    unit: str = "s"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The whole judgement: the worst of its metrics."""

    outcome: Outcome
    metrics: tuple[Compared, ...]
    reasons: tuple[str, ...] = ()


def judge(series: Sequence[Series], *, seed: int = 0, noise: Mapping[str, float] | None = None) -> Verdict:
    """Judge every metric. `noise` is the A/A floor by metric (a share): a tolerance below twice it is widened.

    Fails when the ratio is beyond 1 + tolerance and, at `LEVEL`, above 1 + tolerance/2; passes when its interval stays
    below 1 + tolerance; else inconclusive. Holm, A simple sequentially rejective multiple test procedure, 1979.
    """
    compared = [_one(s, seed + i, (noise or {}).get(s.metric, 0.0)) for i, s in enumerate(series)]
    compared = _holm(compared)
    order: tuple[Outcome, ...] = ("invalid", "fail", "inconclusive", "pass")
    outcomes = [c.outcome for c in compared] or ["inconclusive"]
    worst = min(outcomes, key=order.index)
    return Verdict(worst, tuple(compared), tuple(f"{c.metric}: {c.reason}" for c in compared if c.outcome == worst))


def _one(s: Series, seed: int, noise: float) -> Compared:
    tolerance = max(s.tolerance, 2 * noise)
    rounds = [(x, y) for x, y in zip(s.a, s.b, strict=True) if x and y]
    flat_a, flat_b = ([v for pair in rounds for v in pair[i]] for i in (0, 1))
    pairs = sum(min(len(x), len(y)) for x, y in rounds)
    blank = Compared(
        metric=s.metric,
        outcome="inconclusive",
        ratio=math.nan,
        low=math.nan,
        high=math.nan,
        p=1.0,
        tolerance=tolerance,
        rounds=len(rounds),
        pairs=pairs,
        reason=f"{len(rounds)} of at least {LEAST_ROUNDS} rounds",
        a=_median(flat_a),
        b=_median(flat_b),
        unit=s.unit,
    )
    if len(rounds) < LEAST_ROUNDS:
        return blank
    logs = [_log_ratios(x, y, s.better) for x, y in rounds]
    estimate, draws = resample(logs, seed)
    edge = (1 - LEVEL) / 2
    low, high = (float(v) for v in np.quantile(draws, [edge, 1 - edge]))
    p = float((1 + np.sum(draws <= math.log1p(tolerance / 2))) / (1 + len(draws)))
    ratio, low, high = math.exp(estimate), math.exp(low), math.exp(high)
    outcome, why = _decide(ratio, low, high, tolerance)
    return replace(blank, outcome=outcome, ratio=ratio, low=low, high=high, p=p, reason=why)


def _decide(ratio: float, low: float, high: float, tolerance: float) -> tuple[Outcome, str]:
    shown = f"{ratio - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}] at {LEVEL:.0%}, tolerance {tolerance:.1%}"
    if ratio > 1 + tolerance and low > 1 + tolerance / 2:
        return "fail", f"worse: {shown}"
    if high < 1 + tolerance:
        return "pass", f"not worse: {shown}"
    return "inconclusive", f"cannot tell: {shown}"


def _log_ratios(a: Sequence[float], b: Sequence[float], better: Direction) -> NDArray[np.float64]:
    """Log of B over A, request by request where they are paired, else of the medians; above 0 is worse."""
    if len(a) == len(b):
        ratios = np.log(np.asarray(b)) - np.log(np.asarray(a))
    else:
        ratios = np.asarray([math.log(_median(b)) - math.log(_median(a))])
    ratios = ratios.astype(np.float64)
    return ratios if better == "lower" else -ratios


def resample(logs: Sequence[NDArray[np.float64]], seed: int) -> tuple[float, NDArray[np.float64]]:
    """The median of all values, and its values over `RESAMPLES` draws of whole rounds (cluster bootstrap).

    The draws are spread by sqrt(n / (n - 1)) about the median: with n clusters a bootstrap is too narrow by that.
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    generator = np.random.default_rng(seed)
    count = len(logs)
    estimate = float(np.median(np.concatenate(logs)))
    picks = generator.integers(0, count, size=(RESAMPLES, count))
    draws = np.fromiter((np.median(np.concatenate([logs[i] for i in pick])) for pick in picks), float, RESAMPLES)
    return estimate, estimate + (draws - estimate) * math.sqrt(count / (count - 1))


def _holm(compared: list[Compared]) -> list[Compared]:
    """Take back failures that do not survive the number of metrics looked at."""
    failing = sorted((c for c in compared if c.outcome == "fail"), key=lambda c: c.p)
    alpha, kept = (1 - LEVEL) / 2, True
    judged = {}
    for rank, c in enumerate(failing):
        adjusted = min(1.0, c.p * (len(compared) - rank))
        kept = kept and adjusted <= max(alpha, (len(compared) - rank) / (1 + RESAMPLES))
        judged[c.metric] = (
            replace(c, p=adjusted)
            if kept
            else replace(
                c, p=adjusted, outcome="inconclusive", reason=f"{c.reason}; not past {len(compared)} metrics (Holm)"
            )
        )
    return [judged.get(c.metric, c) for c in compared]


def _median(values: Sequence[float]) -> float:
    return float(np.median(np.asarray(values))) if values else math.nan
