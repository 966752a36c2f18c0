"""Whether B is worse than A: paired log-ratios, resampled by round, against a tolerance. Pure.

The rule is that of interleaved A/B rounds on a shared machine: statistic and interval from whole rounds resampled
(rounds are the clusters: what disturbs one request disturbs its neighbours), a two-key decision (the ratio beyond the
tolerance, and its interval clear of half of it), and three answers: a difference that cannot be shown is not a pass.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from miyabi_llm.bench.gate.resample import Floats, draw, interval, weights
from miyabi_llm.bench.gate.values import (
    LEAST_ROUNDS,
    LEVEL,
    RESAMPLES,
    Compared,
    Direction,
    Outcome,
    Series,
    Statistic,
    Verdict,
    worst,
)
from miyabi_llm.bench.stats.intervals import least_for


def judge(
    series: Sequence[Series], *, seed: int = 0, noise: Mapping[str, float] | None = None, looks: int = 1
) -> Verdict:
    """Judge every metric. `noise` is the A/A floor by metric (a share): a tolerance below twice it is widened.

    Fails when the ratio is beyond 1 + tolerance and, at `LEVEL` over all `looks`, above 1 + tolerance/2; passes when
    its interval stays below 1 + tolerance; else inconclusive.
    """
    return verdict([compare(s, seed, (noise or {}).get(s.metric, 0.0), looks) for s in series])


def verdict(compared: Sequence[Compared]) -> Verdict:
    """The judgement over all rules, after Holm over those that compare."""
    relative = iter(holm([c for c in compared if c.kind == "relative"]))
    judged = tuple(next(relative) if c.kind == "relative" else c for c in compared)
    outcome = worst([c.outcome for c in judged])
    return Verdict(outcome, judged, tuple(f"{c.metric}: {c.reason}" for c in judged if c.outcome == outcome))


def compare(s: Series, seed: int = 0, noise: float = 0.0, looks: int = 1) -> Compared:
    """Judge one metric by its rounds, without regard to others. Values that are not above 0 make it invalid."""
    tolerance = max(s.tolerance, 2 * noise)
    rounds = [(np.asarray(x, float), np.asarray(y, float)) for x, y in zip(s.a, s.b, strict=True) if x and y]
    pairs = sum(min(len(x), len(y)) for x, y in rounds)
    blank = Compared(
        metric=s.metric,
        kind="relative",
        outcome="inconclusive",
        value=math.nan,
        low=math.nan,
        high=math.nan,
        limit=tolerance,
        a=figure([x for x, _ in rounds], s.statistic),
        b=figure([y for _, y in rounds], s.statistic),
        unit=s.unit,
        rounds=len(rounds),
        n=pairs,
        reason=f"{len(rounds)} of at least {LEAST_ROUNDS} rounds",
    )
    if not all(np.all(np.isfinite(v)) and np.all(v > 0) for pair in rounds for v in pair):
        return replace(blank, outcome="invalid", reason="some values are not above zero")
    if len(rounds) < LEAST_ROUNDS:
        return blank
    if short := too_few(s.statistic, pairs):
        return replace(blank, reason=short)
    estimate, draws = _log_ratio(rounds, s, seed)
    low, high, wide = interval(estimate, draws, len(rounds), looks)
    p = float((1 + np.sum(wide <= math.log1p(tolerance / 2))) / (1 + RESAMPLES))
    ratio, low, high = math.exp(estimate), math.exp(low), math.exp(high)
    outcome, why = decide(ratio, low, high, tolerance, s.better)
    return replace(blank, outcome=outcome, value=ratio, low=low, high=high, p=p, reason=why)


def too_few(statistic: Statistic, n: int) -> str:
    """Why a percentile far out is not judged on `n` values; empty when it may be."""
    if statistic == "mean" or statistic == 0.5 or n >= least_for(float(statistic)):
        return ""
    return f"{n} values, {least_for(float(statistic))} are needed for p{100 * float(statistic):g}"


def figure(rounds: Sequence[Floats], statistic: Statistic) -> float:
    """The statistic over all rounds, nan without a value."""
    if not rounds:
        return math.nan
    values = np.concatenate(rounds)
    return float(values.mean() if statistic == "mean" else np.quantile(values, statistic))


def decide(ratio: float, low: float, high: float, tolerance: float, better: Direction = "lower") -> tuple[Outcome, str]:
    """The answer for a ratio (above 1 is worse) with its interval at `LEVEL`, and its words.

    The words tell the change of the figure itself: of one that is better when higher, a worse one is negative.
    """
    said, ends, allowed = ratio, (low, high), 1 + tolerance
    if better == "higher":
        said, ends, allowed = 1 / ratio, (1 / high, 1 / low), 1 / allowed
    within = f"{ends[0] - 1:+.1%}, {ends[1] - 1:+.1%}"
    shown = f"{said - 1:+.1%} [{within}] at {LEVEL:.0%}, tolerance {abs(allowed - 1):.1%}"
    if ratio > 1 + tolerance and low > 1 + tolerance / 2:
        return "fail", f"worse: {shown}"
    if high < 1 + tolerance:
        return "pass", f"not worse: {shown}"
    return "inconclusive", f"cannot tell: {shown}"


def _log_ratio(rounds: Sequence[tuple[Floats, Floats]], s: Series, seed: int) -> tuple[float, Floats]:
    """Log of B over A and its draws; above 0 is worse.

    Medians: of the pairs' log-ratios, or of the rounds' where requests are not paired. Other statistics: the log of
    their ratio, both arms drawn with the same rounds.
    """
    drawn = weights(len(rounds), seed)
    sign = 1.0 if s.better == "lower" else -1.0
    if s.statistic == 0.5:
        if s.paired and all(len(x) == len(y) for x, y in rounds):
            logs = [np.log(y) - np.log(x) for x, y in rounds]
        else:
            logs = [np.array([math.log(np.median(y)) - math.log(np.median(x))]) for x, y in rounds]
        estimate, draws = draw(logs, 0.5, drawn)
    else:
        (a, of_a), (b, of_b) = (draw([pair[i] for pair in rounds], s.statistic, drawn) for i in (0, 1))
        estimate, draws = math.log(b) - math.log(a), np.log(of_b) - np.log(of_a)
    return sign * estimate, sign * draws


def holm(compared: Sequence[Compared]) -> list[Compared]:
    """Take back failures that do not survive the number of metrics looked at.

    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    failing = sorted((c for c in compared if c.outcome == "fail"), key=lambda c: c.p)
    alpha, kept = (1 - LEVEL) / 2, True
    judged = {}
    for rank, c in enumerate(failing):
        adjusted = min(1.0, c.p * (len(compared) - rank))
        # no p-value of so many draws is below 1 / (draws + 1)
        kept = kept and adjusted <= max(alpha, (len(compared) - rank) / (1 + RESAMPLES))
        why = c.reason if kept else f"{c.reason}; not past {len(compared)} metrics (Holm)"
        judged[id(c)] = replace(c, p=adjusted, outcome="fail" if kept else "inconclusive", reason=why)
    return [judged.get(id(c), c) for c in compared]
