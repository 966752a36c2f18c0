"""Whether B answers worse than A on the very same items: exact, paired, with three answers. Pure.

A difference of shares has two sources: items only A had right, and items only B had right. McNemar's exact test asks
whether these two could be one coin; the interval of the difference is the wider of two, the bootstrap over items and
Tango's score interval, because the bootstrap of few or no such items is too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from miyabi_llm.bench.quality.values import Graded, Report
from miyabi_llm.bench.stats.intervals import EDGE, Z
from miyabi_llm.errors import InvalidMeasurement

Outcome = Literal["pass", "fail", "inconclusive", "invalid"]

TOLERANCE = 0.10  # share of the items by which B may be worse: a hundred items cannot show much less
ALPHA = 0.05
RESAMPLES = 4000
ALL = "all"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Items of one task by what both made of them; `same_text` counts identical answers."""

    both: int
    only_a: int
    only_b: int
    neither: int
    same_text: int = 0

    @property
    def n(self) -> int:
        """Items in all."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Share right of B less that of A; below 0 B is worse."""
        return (self.only_b - self.only_a) / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Compared:
    """One task, judged: the difference B less A with its interval, and McNemar's two-sided p, after Holm for tasks."""

    task: str
    outcome: Outcome
    pairs: Pairs
    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict over all items and by task. It fails when all items together do, or one task by itself."""

    outcome: Outcome
    reason: str
    a: str
    b: str
    tolerance: float
    total: Compared
    tasks: tuple[Compared, ...]
    left_out: int = 0
    notes: tuple[str, ...] = ()


def compare(a: Report, b: Report, tolerance: float = TOLERANCE) -> Comparison:
    """Judge report B against report A over the items both have, word for word.

    Raises InvalidMeasurement when a report is invalid, they were asked in different ways, or share no item.
    """
    for report in (a, b):
        if report.invalid:
            raise InvalidMeasurement(f"{report.name}: {report.invalid[0]}", hint="Mend the server and measure again.")
    if _way(a) != _way(b):
        raise InvalidMeasurement(
            f"{a.name} was asked by {_way(a)}, {b.name} by {_way(b)}: the answers cannot be compared",
            hint="Measure both the same way: the same --speech and --max-tokens.",
        )
    other = {(i.task, i.id, i.sha256): i for i in a.items}
    common = [(other[key], i) for i in b.items if (key := (i.task, i.id, i.sha256)) in other]
    if not common:
        raise InvalidMeasurement("the two have no item in common: the task sets differ", hint="Measure A again.")
    names = list(dict.fromkeys(i.task for _, i in common))
    tasks = [_judge(name, [p for p in common if p[1].task == name], tolerance) for name in names]
    total = _judge(ALL, common, tolerance)
    tasks = _holm(tasks)
    outcome, reason = _verdict(total, tasks, tolerance)
    left_out = len(a.items) + len(b.items) - 2 * len(common)
    return Comparison(outcome, reason, a.name, b.name, tolerance, total, tuple(tasks), left_out, _notes(a, b))


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p of `only_a` against `only_b` under a fair coin. McNemar, Psychometrika 12, 1947."""
    n, least = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(least + 1))
    return float(min(1.0, 2 * tail / 2**n))


def interval(pairs: Pairs, seed: int = 0) -> tuple[float, float]:
    """The interval of the difference, at 95%: the wider of the bootstrap's and Tango's at each end."""
    low, high = tango(pairs.only_b, pairs.only_a, pairs.n)
    draws = np.random.default_rng(seed).multinomial(
        pairs.n, np.array([pairs.only_a, pairs.only_b, pairs.both + pairs.neither]) / pairs.n, size=RESAMPLES
    )
    differences = (draws[:, 1] - draws[:, 0]) / pairs.n
    least, most = (float(x) for x in np.quantile(differences, [EDGE, 1 - EDGE]))
    return min(low, least), max(high, most)


def tango(gained: int, lost: int, n: int) -> tuple[float, float]:
    """The score interval of (gained - lost) / n for paired shares. Tango, Statistics in Medicine 17, 1998."""

    def score(d: float) -> float:
        first = -gained - lost + (2 * n - gained + lost) * d
        q = (math.sqrt(max(0.0, first * first + 8 * n * lost * d * (1 - d))) - first) / (4 * n)
        spread = n * (2 * q + d * (1 - d))
        away = gained - lost - n * d
        return away / math.sqrt(spread) if spread > 1e-12 else math.copysign(math.inf, away) if away else 0.0

    def root(low: float, high: float, wanted: float) -> float:
        for _ in range(60):  # the score falls as the difference grows
            middle = (low + high) / 2
            low, high = (middle, high) if score(middle) > wanted else (low, middle)
        return (low + high) / 2

    estimate = (gained - lost) / n
    return root(-1.0, estimate, Z), root(estimate, 1.0, -Z)


def _judge(task: str, pairs: Sequence[tuple[Graded, Graded]], tolerance: float) -> Compared:
    rights = [(a.right, b.right) for a, b in pairs]
    counted = Pairs(
        rights.count((True, True)),
        rights.count((True, False)),
        rights.count((False, True)),
        rights.count((False, False)),
        sum(a.answer == b.answer for a, b in pairs),
    )
    low, high = interval(counted)
    p = mcnemar(counted.only_a, counted.only_b)
    compared = Compared(task, "inconclusive", counted, counted.difference, low, high, p)
    return replace(compared, outcome=_decide(compared, tolerance))


def _decide(c: Compared, tolerance: float) -> Outcome:
    if c.difference < -tolerance and c.high < -tolerance / 2 and c.p < ALPHA:
        return "fail"
    return "pass" if c.low > -tolerance else "inconclusive"


def _holm(tasks: Sequence[Compared]) -> list[Compared]:
    """p by task after Holm; what fails only without it is inconclusive."""
    running, adjusted = 0.0, {}
    for rank, c in enumerate(sorted(tasks, key=lambda c: c.p)):
        running = max(running, min(1.0, c.p * (len(tasks) - rank)))
        adjusted[c.task] = running
    return [
        replace(
            c,
            p=adjusted[c.task],
            outcome="inconclusive" if c.outcome == "fail" and adjusted[c.task] >= ALPHA else c.outcome,
        )
        for c in tasks
    ]


def _verdict(total: Compared, tasks: Sequence[Compared], tolerance: float) -> tuple[Outcome, str]:
    bad = [c for c in (total, *tasks) if c.outcome == "fail"]
    if bad:
        return "fail", "; ".join(f"{c.task}: worse by {_shown(c)}" for c in bad)
    if total.outcome == "pass":
        return "pass", f"not worse by {100 * tolerance:g} points: {_shown(total)}"
    return "inconclusive", f"{total.pairs.n} items cannot tell: {_shown(total)}, tolerance {100 * tolerance:g} points"


def _shown(c: Compared) -> str:
    return f"{100 * c.difference:+.1f} points [{100 * c.low:+.1f}, {100 * c.high:+.1f}]"


def _way(report: Report) -> str:
    """As a chat, in whatever dialect, or as a text to continue; and how long an answer may be."""
    most = f" of at most {report.how.max_tokens} tokens" if report.how.max_tokens else ""
    return ("completions" if report.speech == "openai-completions" else "chat") + most


def _notes(a: Report, b: Report) -> tuple[str, ...]:
    notes = []
    tasks: Mapping[str, str] = a.tasks
    changed = [name for name, sha in b.tasks.items() if name in tasks and tasks[name] != sha]
    if changed:
        notes.append(f"{', '.join(changed)} changed since {a.name} was measured: only items still the same count")
    drifting = [r for r in (a, b) if r.drift is not None and r.drift.same < r.drift.asked]
    for r in drifting:
        assert r.drift is not None
        notes.append(
            f"{r.name} answered {r.drift.asked - r.drift.same} of {r.drift.asked} items differently when asked twice"
        )
    return tuple(notes)
