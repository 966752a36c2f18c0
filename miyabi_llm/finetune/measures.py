"""Before and after on the same rows: what a row scores, what a model gained, and how sure that is. Pure.

The interval is the paired bootstrap over rows: the same resampled rows for both models, so that hard rows do not
count as noise. With n rows a bootstrap is too narrow by sqrt((n - 1) / n), which is put back (Hesterberg, What
Teachers Should Know about the Bootstrap, The American Statistician 69, 2015, section 4).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from miyabi_llm.errors import BadUsage, InvalidMeasurement

Outcome = Literal["pass", "fail", "inconclusive"]

LEVEL = 0.95
LOWER_IS_BETTER = frozenset({"loss"})
UNITS: Mapping[str, str] = {
    "loss": "nats per token", "exact": "share of rows", "contains": "share of rows", "overlap": "F1 of words",
    "preference": "share of rows",
}  # fmt: skip
_WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True)
class Row:
    """What a model scored on one row: `value` in the metric, counted with `weight` (tokens for the loss, else 1)."""

    id: str
    value: float
    weight: float


@dataclass(frozen=True, slots=True)
class Interval:
    """A number with its 95% interval over `rows`."""

    value: float
    low: float
    high: float
    rows: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One model, measured: its metric, its gain over the base, and how much more it loses on the forgetting set.

    A gain above 0 is better, whichever way the metric counts. None: not measured, or it is the base itself.
    """

    name: str
    metric: Interval
    gain: Interval | None = None
    forgetting: Interval | None = None
    forgot: Interval | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One gate: the number it looks at, its interval, the limit and how it ended."""

    gate: str
    stage: str
    found: Interval
    limit: float
    outcome: Outcome
    words: str


def rows_of(metric: str, told: Mapping[str, Any]) -> list[Row]:
    """The rows of one model in `metric`, out of what `score` told of it. Raises BadUsage."""
    if metric == "loss":
        return [Row(r[0], r[1] / max(1, r[2]), float(r[2])) for r in told["rows"]]
    if metric == "preference":
        return [Row(r[0], float(r[1] < r[3]), 1.0) for r in told["rows"] if len(r) > 3]
    if metric not in UNITS:
        raise BadUsage(f"no metric is called {metric!r}", hint=f"There are: {', '.join(UNITS)}.")
    return [Row(a["id"], similar(metric, a["text"], a["want"]), 1.0) for a in told["answers"]]


def similar(metric: str, text: str, want: str) -> float:
    """How right an answer is, 0 to 1: `exact` and `contains` compare without regard to spaces at the ends and Unicode
    forms, `overlap` is the F1 of words (of letters where a script writes no spaces)."""
    a, b = (unicodedata.normalize("NFKC", t).strip() for t in (text, want))
    if metric == "exact":
        return float(a == b)
    if metric == "contains":
        return float(b in a)
    return _f1(_words(a), _words(b))


def _words(text: str) -> list[str]:
    found: list[str] = []
    for word in _WORD.findall(text.casefold()):
        found += list(word) if any(c > "\u2e80" for c in word) else [word]
    return found


def _f1(a: Sequence[str], b: Sequence[str]) -> float:
    if not a or not b:
        return float(a == b)
    left = list(b)
    same = 0
    for word in a:
        if word in left:
            left.remove(word)
            same += 1
    return 2 * same / (len(a) + len(b))


def mean(rows: Sequence[Row], draws: int, seed: int) -> Interval:
    """The metric over all rows. Raises InvalidMeasurement without any."""
    return _interval([r.value for r in rows], [r.weight for r in rows], draws, seed)


def change(a: Sequence[Row], b: Sequence[Row], draws: int, seed: int) -> Interval:
    """Metric of `b` less that of `a` over the rows that both have. Raises InvalidMeasurement when they differ."""
    first = {r.id: r for r in a}
    both = [(first[r.id], r) for r in b if r.id in first]
    if len(both) != len(a) or len(both) != len(b):
        raise InvalidMeasurement(f"{len(a)} and {len(b)} rows were measured, {len(both)} of them the same")
    if odd := [x.id for x, y in both if x.weight != y.weight]:
        raise InvalidMeasurement(
            f"row {odd[0]} has another number of tokens in the two models",
            hint="Their tokenizers or templates differ: the losses cannot be compared.",
        )
    return _interval([y.value - x.value for x, y in both], [y.weight for _, y in both], draws, seed)


def _interval(values: Sequence[float], weights: Sequence[float], draws: int, seed: int) -> Interval:
    n = len(values)
    if n == 0 or sum(weights) <= 0:
        raise InvalidMeasurement("no row was measured", hint="Hold out more rows: `data.eval` or `data.eval_fraction`.")
    if not all(math.isfinite(v) for v in values):
        raise InvalidMeasurement("a row has no finite score", hint="The model is broken: see its loss while training.")
    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    estimate = float((x * w).sum() / w.sum())
    if n == 1:
        return Interval(estimate, -math.inf, math.inf, 1)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)
    drawn = (counts @ (x * w)) / (counts @ w)
    wide = estimate + (drawn - estimate) * math.sqrt(n / (n - 1))
    low, high = (float(v) for v in np.quantile(wide, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
    return Interval(estimate, low, high, n)


def stage(
    name: str, metric: str, told: Mapping[str, Any], base: Mapping[str, Any] | None, draws: int, seed: int = 0
) -> Stage:
    """One model measured against the base, on the same rows. Raises InvalidMeasurement."""
    mine = rows_of(metric, told)
    forget = rows_of("loss", {"rows": told.get("forget") or []})
    value = within(mean(mine, draws, seed), metric, 0.0)
    kept = mean(forget, draws, seed) if forget else None
    if base is None:
        return Stage(name, value, forgetting=kept)
    gain = change(rows_of(metric, base), mine, draws, seed)
    gain = within(negative(gain) if metric in LOWER_IS_BETTER else gain, metric, -1.0)
    forgot = change(rows_of("loss", {"rows": base["forget"]}), forget, draws, seed) if forget else None
    return Stage(name, value, gain, kept, forgot)


def within(found: Interval, metric: str, least: float) -> Interval:
    """The interval cut to what a share, or a difference of shares, can be at all."""
    if metric in LOWER_IS_BETTER:
        return found
    return Interval(found.value, max(least, found.low), min(1.0, found.high), found.rows)


def negative(found: Interval) -> Interval:
    """The interval of the number's opposite."""
    return Interval(-found.value, -found.high, -found.low, found.rows)


def at_least(gate: str, stage: str, found: Interval, limit: float, unit: str) -> Verdict:
    """Whether `found` is above `limit` with its whole interval; below with all of it: failed; else not decided."""
    outcome: Outcome = "pass" if found.low > limit else "fail" if found.high <= limit else "inconclusive"
    return Verdict(gate, stage, found, limit, outcome, f"{said(found)} {unit}, wanted more than {limit:g}")


def at_most(gate: str, stage: str, found: Interval, limit: float, unit: str) -> Verdict:
    """Whether `found` is at most `limit` with its whole interval; above with all of it: failed; else not decided."""
    outcome: Outcome = "pass" if found.high <= limit else "fail" if found.low > limit else "inconclusive"
    return Verdict(gate, stage, found, limit, outcome, f"{said(found)} {unit}, allowed is {limit:g}")


def said(found: Interval) -> str:
    """`0.123 (0.101 to 0.145)`."""
    return f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
