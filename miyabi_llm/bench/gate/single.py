"""One run of one server, judged: against bounds of its own, and against a stored baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

from miyabi_llm.bench.gate import baseline as stored
from miyabi_llm.bench.gate import bounds
from miyabi_llm.bench.gate.baseline import Baseline, Conditions
from miyabi_llm.bench.gate.expr import Rule
from miyabi_llm.bench.gate.judge import decide, verdict
from miyabi_llm.bench.gate.values import LEVEL, Compared, Direction, Judgement
from miyabi_llm.bench.report import Report
from miyabi_llm.bench.stats.values import LEVEL as REPORTED
from miyabi_llm.bench.stats.values import Measured, Quantile
from miyabi_llm.errors import BadUsage

UNCALIBRATED = 0.10  # taken as the noise between two runs when nobody calibrated; and it is said
WIDER = 0.25  # least tolerance against another machine's baseline
_Z99, _Z95 = (NormalDist().inv_cdf(1 - (1 - level) / 2) for level in (LEVEL, REPORTED))


@dataclass(frozen=True, slots=True)
class Against:
    """A baseline to compare with; `widen` lets another machine's do, with a tolerance of `WIDER` at least."""

    baseline: Baseline
    now: Conditions = field(default_factory=Conditions)
    widen: bool = False
    name: str = "baseline"


def judge_report(report: Report, rules: Sequence[Rule], target: str, against: Against | None = None) -> Judgement:
    """Judge `target` of a report. Raises BadUsage when a change is asked for and there is nothing to compare with.

    A change against a baseline is judged by the intervals of both runs and the noise between runs; that noise is why
    interleaved rounds (`ab`) tell smaller changes apart than any baseline.
    """
    measured = report.of(target)
    before = None if against is None else _before(against.baseline.report, target)
    if before is None and (rule := next((r for r in rules if r.kind == "relative"), None)):
        hint = "give --baseline FILE, compare two servers with `miyabi-llm bench ab`, or bound it: 'ttft_p50 > 500ms'"
        raise BadUsage(f"{rule.text!r} is a change, and there is nothing to compare with", hint=hint)
    reasons, notes = _unusable(report, against)
    counts = measured.counts
    base = Judgement(
        outcome="invalid",
        metrics=(),
        reasons=tuple(reasons),
        names=("" if against is None else against.name, target),
        seconds=report.seconds,
        requests=(0 if before is None else _asked(before), _asked(measured)),
        errors=(0 if before is None else before.counts.failed, counts.failed),
        notes=tuple(notes),
    )
    if reasons:
        return base
    if against is not None and not stored.differences(against.baseline, report, against.now):
        against = replace(against, widen=False)
    found = verdict([_rule(rule, measured, before, against) for rule in rules])
    return replace(base, outcome=found.outcome, metrics=found.metrics, reasons=found.reasons)


def _before(report: Report, target: str) -> Measured:
    """The baseline's figures of that target, of its only one under any name."""
    return report.measured[0] if len(report.measured) == 1 else report.of(target)


def _asked(measured: Measured) -> int:
    return measured.counts.requests - measured.counts.cancelled


def _unusable(report: Report, against: Against | None) -> tuple[list[str], list[str]]:
    """Reasons that make it invalid, and notes."""
    reasons = list(report.invalid)
    if report.aborted and report.aborted not in reasons:
        reasons.append(report.aborted)
    if against is None:
        return reasons, []
    reasons += [f"the baseline measured other work: {m}" for m in stored.mismatches(against.baseline, report)]
    notes = list(stored.remarks(against.baseline, against.now))
    others = stored.differences(against.baseline, report, against.now)
    if others and against.widen:
        notes.insert(0, f"ANOTHER MACHINE'S BASELINE ({'; '.join(others)}): tolerances widened to {WIDER:.0%} at least")
    elif others:
        reasons += [f"the baseline is another machine's: {d}" for d in others]
    if not against.baseline.noise:
        calibrate = "calibrate to know it: miyabi-llm bench calibrate"
        notes.append(f"the noise between runs is not known and taken as {UNCALIBRATED:.0%}; {calibrate}")
    return reasons, notes


def _rule(rule: Rule, measured: Measured, before: Measured | None, against: Against | None) -> Compared:
    if rule.metric == "error_rate":
        b = (measured.counts.failed, _asked(measured))
        if rule.kind == "absolute":
            judged = bounds.bounded("error_rate", bounds.of_share(*b), rule.bound, "higher", rule.unit)
        else:
            assert before is not None
            judged = bounds.errors((before.counts.failed, _asked(before)), b, rule.bound)
    elif rule.kind == "absolute":
        worse: Direction = "higher" if rule.operator == ">" else "lower"
        judged = bounds.bounded(rule.name, _figure(measured, rule), rule.bound, worse, rule.unit)
    else:
        assert before is not None
        assert against is not None
        judged = _change(rule, _figure(before, rule), _figure(measured, rule), against)
    return replace(judged, metric=rule.name, rule=rule.text)


def _figure(measured: Measured, rule: Rule) -> bounds.Figure:
    metric = measured.metric(rule.metric)
    found: Quantile | None = measured.figure(rule.name)
    if metric is None:
        return bounds.Figure(math.nan, None, None, 0, why="it was not measured")
    if found is None or not math.isfinite(found.value):
        return bounds.Figure(math.nan, None, None, metric.n, why=f"{metric.n} values are too few for {rule.name}")
    why = "" if found.low is not None else f"{rule.name} has no interval in the report"
    return bounds.Figure(found.value, found.low, found.high, metric.n, why=why, level=REPORTED)


def _change(rule: Rule, a: bounds.Figure, b: bounds.Figure, against: Against) -> Compared:
    """The ratio of two runs. Its log has the spread of both and the noise between runs, which is its own 99% bound."""
    floor = math.log1p(against.baseline.noise.get(rule.name, UNCALIBRATED))
    tolerance = max(rule.tolerance, WIDER if against.widen else 0.0)
    blank = Compared(
        metric=rule.name,
        kind="relative",
        outcome="inconclusive",
        value=math.nan,
        low=math.nan,
        high=math.nan,
        limit=tolerance,
        a=a.value,
        b=b.value,
        unit=rule.unit,
        rounds=0,
        n=min(a.n, b.n),
        reason=a.why or b.why,
    )
    if not (a.value > 0 and b.value > 0):  # nan too
        return blank
    # a rate of a whole run has no interval of its own: the noise between runs is all there is
    if rule.statistic is not None and (a.low is None or b.low is None):
        return blank
    sign = 1 if rule.operator == ">" else -1
    estimate = sign * (math.log(b.value) - math.log(a.value))
    half = math.sqrt(_half(a) ** 2 + _half(b) ** 2 + floor**2)
    ratio, low, high = (math.exp(v) for v in (estimate, estimate - half, estimate + half))
    outcome, why = decide(ratio, low, high, tolerance, "lower" if sign > 0 else "higher")
    p = 1 - NormalDist().cdf((estimate - math.log1p(tolerance / 2)) / (half / _Z99))
    return replace(blank, outcome=outcome, value=ratio, low=low, high=high, p=p, reason=why)


def _half(f: bounds.Figure) -> float:
    """Half of the interval of the figure's log, at `LEVEL`."""
    if f.low is None or f.high is None or f.low <= 0:
        return 0.0
    return (math.log(f.high) - math.log(f.low)) / 2 * _Z99 / _Z95
