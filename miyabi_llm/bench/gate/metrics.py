"""What a rule looks at: the values of its metric by round, out of the samples of both arms. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from miyabi_llm.bench.gate import bounds
from miyabi_llm.bench.gate.expr import Rule
from miyabi_llm.bench.gate.judge import compare
from miyabi_llm.bench.gate.values import Compared, Direction, Round, Series
from miyabi_llm.bench.stats.figures import figures
from miyabi_llm.bench.values import Sample

# The time per token of each answer stands for that of all tokens: it can be paired.
_SAME = {"itl": "itl_request"}
# Rates of a whole round: what is counted, per second that the arm had the machine.
_RATES: dict[str, Callable[[Sample], float]] = {
    "output_tps": lambda s: float(s.output_tokens or 0),
    "prompt_tps": lambda s: float(s.prompt_tokens or 0),
    "total_tps": lambda s: float((s.output_tokens or 0) + (s.prompt_tokens or 0)),
    "rps": lambda s: 1.0,
}


def can_judge(rule: Rule) -> bool:
    """Whether rounds tell this metric."""
    return rule.metric == "error_rate" or rule.metric in _RATES or rule.statistic is not None


def judge_rule(rule: Rule, rounds: Sequence[Round], *, seed: int = 0, noise: float = 0.0, looks: int = 1) -> Compared:
    """One rule over the rounds so far; `noise` is the A/A floor of its metric, a share."""
    if rule.metric == "error_rate":
        a, b = (failed(rounds, arm) for arm in (0, 1))
        if rule.kind == "relative":
            return _named(bounds.errors(a, b, rule.bound, looks=looks), rule)
        return _named(
            bounds.bounded(rule.metric, bounds.of_share(*b, looks=looks), rule.bound, "higher", rule.unit), rule
        )
    values = series(rule, rounds)
    if rule.kind == "relative":
        return _named(compare(values, seed, noise, looks), rule)
    worse: Direction = "higher" if values.better == "lower" else "lower"
    found = bounds.of_rounds(values.b, values.statistic, seed=seed, looks=looks)
    return _named(bounds.bounded(rule.name, found, rule.bound, worse, rule.unit), rule)


def series(rule: Rule, rounds: Sequence[Round]) -> Series:
    """The values a rule compares: by request where it has a statistic, else one rate for each round."""
    better: Direction = "lower" if rule.operator == ">" else "higher"
    paired = rule.statistic is not None and rule.metric != "gap"
    arms = [_values(rule.metric, r, paired=paired and rule.kind == "relative") for r in rounds]
    return Series(
        metric=rule.name,
        a=tuple(a for a, _ in arms),
        b=tuple(b for _, b in arms),
        better=better,
        tolerance=rule.tolerance if rule.kind == "relative" else 0.0,
        unit=rule.unit,
        statistic=0.5 if rule.statistic is None else rule.statistic,
        paired=paired,
    )


def failed(rounds: Sequence[Round], arm: int) -> tuple[int, int]:
    """Failed requests and all requests of an arm; what we cancelled ourselves is neither."""
    counted = [s for r in rounds for s in r.samples[arm] if s.error != "cancelled"]
    return sum(not s.ok for s in counted), len(counted)


def _values(metric: str, r: Round, *, paired: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if metric in _RATES:
        return _rate(metric, r, 0), _rate(metric, r, 1)
    if not paired:
        return _each(metric, r.samples[0]), _each(metric, r.samples[1])
    a, b = (_keyed(metric, samples) for samples in r.samples)
    both = sorted(k for k in a.keys() & b.keys() if a[k] > 0 and b[k] > 0)  # an answer read in one piece has no gap
    return tuple(a[k] for k in both), tuple(b[k] for k in both)


def _rate(metric: str, r: Round, arm: int) -> tuple[float, ...]:
    amount = sum(_RATES[metric](s) for s in r.samples[arm] if s.ok)
    return (amount / r.seconds[arm],) if r.seconds[arm] > 0 and amount > 0 else ()


def _each(metric: str, samples: Sequence[Sample]) -> tuple[float, ...]:
    if metric == "gap":
        times = [s.times_ns for s in samples if s.ok]
        return tuple((y - x) / 1e9 for t in times for x, y in pairwise(t))
    name = _SAME.get(metric, metric)
    return tuple(v for s in samples if (v := figures(s).get(name)) is not None)


def _keyed(metric: str, samples: Sequence[Sample]) -> dict[tuple[int, int, int], float]:
    """Values by item, turn and how often it was asked before in the round: what pairs it with the other arm's."""
    name = _SAME.get(metric, metric)
    seen: Counter[tuple[int, int]] = Counter()
    found = {}
    for s in sorted(samples, key=lambda s: s.sent_ns):
        key = (s.item, s.turn, seen[s.item, s.turn])
        seen[s.item, s.turn] += 1
        if (value := figures(s).get(name)) is not None:
            found[key] = value
    return found


def _named(c: Compared, rule: Rule) -> Compared:
    return replace(c, metric=rule.name, rule=rule.text)
