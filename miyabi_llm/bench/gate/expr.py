"""The language of `--fail-on`: `ttft_p50 > +10%`, `ttft_p95 > 500ms`, `error_rate > 1%`, `output_tps < -5%`. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from miyabi_llm.bench.gate.values import Kind, Statistic
from miyabi_llm.bench.stats.definitions import DEFINITIONS
from miyabi_llm.errors import BadUsage

Operator = Literal["<", ">"]

# One figure for a whole run, without percentiles.
SINGLE = ("output_tps", "prompt_tps", "total_tps", "rps", "goodput", "good_share", "error_rate", "cached_share")
SPREAD = tuple(name for name in DEFINITIONS if name not in SINGLE and DEFINITIONS[name].better != "neither")
STATISTICS: dict[str, Statistic] = {
    "p50": 0.5,
    "p75": 0.75,
    "p90": 0.9,
    "p95": 0.95,
    "p99": 0.99,
    "p99.9": 0.999,
    "mean": "mean",
}
_UNITS: dict[str, dict[str, float]] = {
    "s": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6},
    "tokens/s": {"": 1.0, "tok/s": 1.0, "tokens/s": 1.0, "t/s": 1.0},
    "requests/s": {"": 1.0, "/s": 1.0, "req/s": 1.0, "requests/s": 1.0},
    "share": {"": 1.0, "%": 0.01},
}
_FIRST = ", ".join(f"{word!r}" for word in ("ttft_p50 > +10%", "ttft_p95 > 500ms", "error_rate > 1%"))
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_OPERATOR = re.compile(r"[<>=!]+")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_SPACE = re.compile(r"\s*")


@dataclass(frozen=True, slots=True)
class Rule:
    """One condition under which a gate fails.

    `metric` is a name of `DEFINITIONS`, `statistic` None for a figure of the whole run. Relative: `bound` is the share
    by which B may be larger (positive) or smaller (negative) than A. Absolute: `bound` is in the metric's unit.
    """

    text: str
    metric: str
    statistic: Statistic | None
    operator: Operator
    kind: Kind
    bound: float

    @property
    def name(self) -> str:
        """The metric with its statistic: `ttft_p95`."""
        if self.statistic is None:
            return self.metric
        return f"{self.metric}_{next(k for k, v in STATISTICS.items() if v == self.statistic)}"

    @property
    def unit(self) -> str:
        """The metric's unit."""
        return DEFINITIONS[self.metric].unit

    @property
    def tolerance(self) -> float:
        """Relative: by how much the ratio, turned so that above 1 is worse, may be above 1."""
        return self.bound if self.bound > 0 else 1 / (1 + self.bound) - 1


# What is gated when nobody says what.
DEFAULT = ("ttft_p50 > +5%", "tpot_p50 > +5%", "output_tps < -5%", "error_rate > +1%")


def parse_all(texts: Sequence[str] = ()) -> tuple[Rule, ...]:
    """The rules of several expressions, the default ones without any. Raises BadUsage, at a repeated one too."""
    rules = tuple(parse(text) for text in texts or DEFAULT)
    for i, rule in enumerate(rules):
        if (rule.name, rule.kind) in {(r.name, r.kind) for r in rules[:i]}:
            raise BadUsage(f"two rules for {rule.name}: {rule.text!r} is the second", hint="keep the stricter one")
    return rules


def parse(text: str, *, objective: bool = False) -> Rule:
    """Read one expression. `objective`: it says what must hold (`--slo 'ttft_p95 < 500ms'`), not what fails.

    Raises BadUsage with the place and what was expected there.
    """
    at, name = _take(_NAME, text, 0, "the name of a metric")
    metric, statistic = _metric(text, name)
    operator_at = _past(text, at)
    at, word = _take(_OPERATOR, text, at, "< or >")
    if word not in ("<", ">", "<=", ">="):
        raise _wrong(text, operator_at, f"{word!r} is none of <, >, <=, >=")
    operator: Operator = "<" if (word[0] == "<") is not objective else ">"
    if DEFINITIONS[metric].better == ("lower" if operator == "<" else "higher"):
        raise _wrong(text, operator_at, _turned(metric, word[0]))
    value_at = _past(text, at)
    at, number = _take(_NUMBER, text, at, "a number")
    unit = text[at:].strip()
    bound = _bound(text, metric, number, unit, at)
    if number[0] not in "+-":
        return Rule(text.strip(), metric, statistic, operator, "absolute", bound)
    if objective:
        raise _wrong(text, value_at, "an objective is a bound, without a sign")
    _check_change(text, metric, operator, bound)
    return Rule(text.strip(), metric, statistic, operator, "relative", bound)


def _past(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _take(pattern: re.Pattern[str], text: str, at: int, wanted: str) -> tuple[int, str]:
    at = _past(text, at)
    if not (found := pattern.match(text, at)):
        seen = repr(text[at : at + 12]) if at < len(text) else "the end"
        raise _wrong(text, at, f"expected {wanted}, found {seen}")
    return found.end(), found.group()


def _wrong(text: str, at: int, why: str, hint: str = "") -> BadUsage:
    shown = f"{text!r}, position {at + 1}: {why}"
    return BadUsage(shown, hint=hint or f"write it like {_FIRST}", position=at + 1, expression=text)


def _metric(text: str, name: str) -> tuple[str, Statistic | None]:
    base, _, last = name.rpartition("_")
    if name in SINGLE:
        return name, None
    if base in SPREAD and last in STATISTICS:
        return base, STATISTICS[last]
    at = _past(text, 0)
    if base in SINGLE:
        raise _wrong(text, at, f"{base} is one figure for the whole run: write {base}")
    if name in SPREAD:
        raise _wrong(text, at, f"which {name}? write {name}_p50, {name}_p95 or {name}_mean")
    if base in SPREAD:
        raise _wrong(text, at + len(base) + 1, f"{last!r} is none of {', '.join(STATISTICS)}")
    known = [*SINGLE, *(f"{m}_{s}" for m in SPREAD for s in STATISTICS)]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join((*SPREAD, *SINGLE))}"
    raise _wrong(text, at, f"no metric {name!r}", meant)


def _turned(metric: str, sign: str) -> str:
    other = ">" if sign == "<" else "<"
    return f"{metric} is better {DEFINITIONS[metric].better}: turn it around, {other}"


def _bound(text: str, metric: str, number: str, unit: str, unit_at: int) -> float:
    value, at, of = float(number), unit_at - len(number), DEFINITIONS[metric].unit
    if not abs(value) <= 1e12:
        raise _wrong(text, at, "that number is too large")
    if number[0] in "+-":
        if unit == "%":
            return value / 100
        raise _wrong(text, at, f"a sign is for a change in %: +10%; a bound in {of} has none")
    units = _UNITS[of]
    if unit in units:
        return value * units[unit]
    if unit == "%":
        raise _wrong(text, at, f"a change needs its sign: +{number}% or -{number}%")
    wanted, seen = ", ".join(u for u in units if u), repr(unit) if unit else "nothing"
    raise _wrong(text, _past(text, unit_at), f"expected a unit ({wanted}), found {seen}")


def _check_change(text: str, metric: str, operator: Operator, bound: float) -> None:
    at = len(text) - len(text.lstrip())
    if (bound > 0) != (operator == ">") or bound == 0:
        raise _wrong(text, at, f"{metric} {operator} is a change {'above' if operator == '>' else 'below'} 0%")
    if bound <= -1:
        raise _wrong(text, at, "nothing falls by 100% or more")
