"""A judged rule in words and cells, the same in every report. Pure."""

from __future__ import annotations

import math

from miyabi_llm.bench.gate.values import LEVEL, Compared, Judgement, Outcome
from miyabi_llm.bench.report import Table, amount

WORDS: dict[Outcome, str] = {
    "pass": "PASS",
    "fail": "FAIL",
    "inconclusive": "INCONCLUSIVE",
    "invalid": "INVALID",
}
MEANING: dict[Outcome, str] = {
    "pass": "No rule is broken, and the intervals leave no room for it.",
    "fail": "At least one rule is broken, beyond what noise explains.",
    "inconclusive": "The noise leaves both answers open: this is neither a pass nor a failure.",
    "invalid": "The measurement was disturbed: no figure of it may be used.",
}
HEAD = ("rule", "verdict", "A", "B", "change", f"{LEVEL:.0%} interval")


def table(judgement: Judgement) -> Table:
    """The rules as rows, the reasons and notes under it."""
    rows = tuple(row(c) for c in judgement.metrics)
    return Table(HEAD, rows, (*judgement.reasons, *judgement.notes))


def row(c: Compared) -> tuple[str, ...]:
    """The cells of one rule, as `HEAD` names them. A change is B against A in the metric's own direction."""
    change, interval = "", ""
    if c.kind == "absolute":
        if math.isfinite(c.low):
            interval = f"{amount(c.low, c.unit)} to {amount(c.high, c.unit)}"
    elif c.metric == "error_rate":
        change = f"{c.value:+.1%} of all" if math.isfinite(c.value) else ""
    elif math.isfinite(c.value):
        low, high = (c.low, c.high) if not more_is_better(c) else (1 / c.high, 1 / c.low)
        value = c.value if not more_is_better(c) else 1 / c.value
        change, interval = percent(value), f"{percent(low)} to {percent(high)}"
    return (c.rule or c.metric, WORDS[c.outcome], _cell(c.a, c.unit), _cell(c.b, c.unit), change, interval)


def more_is_better(c: Compared) -> bool:
    """Whether `value` was turned around: a rate, of which less is worse."""
    return "<" in c.rule


def percent(ratio: float) -> str:
    """A ratio as a change: 1.1 is +10.0%."""
    return f"{ratio - 1:+.1%}"


def headline(judgement: Judgement) -> str:
    """One line: the verdict, who, and on how much it rests."""
    a, b = judgement.names
    who = f"{b} against {a}" if a else b
    rests = f"{judgement.rounds} rounds, " if judgement.rounds else ""
    lost = f", {sum(judgement.errors)} failed" if sum(judgement.errors) else ""
    rests += f"{sum(judgement.requests)} requests{lost}, {judgement.seconds:.0f} s"
    return f"{WORDS[judgement.outcome]}: {who} ({rests})"


def _cell(value: float, unit: str) -> str:
    return amount(value, unit) if math.isfinite(value) else ""
