"""What the command `route` prints for a person."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from miyabi_llm.cli.show import table
from miyabi_llm.route.values import Verdict

if TYPE_CHECKING:
    from miyabi_llm.route.audit import Verified
    from miyabi_llm.route.explain import Explained
    from miyabi_llm.route.ledger import Totals
    from miyabi_llm.route.probes import Probed
    from miyabi_llm.route.replay import Replayed
    from miyabi_llm.route.taint import Tainted


def named(value: Any) -> Any:
    """The value as JSON will have it, verdicts by their names."""
    if isinstance(value, Verdict):
        return value.name.lower()
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: named(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, list | tuple):
        return [named(v) for v in value]
    return value


_MOST = 12  # findings shown


def explained(found: Explained) -> None:
    """A decision: where, how private and why, what was found, what it costs, what would change it."""
    d = found.decision
    print(f"target    {d.target or 'none: refused'}")
    print(f"verdict   {d.verdict.name.lower()}")
    print(f"rule      {d.rule}")
    print(f"why       {d.reason}")
    for verdict, reason in found.reasons[1:]:
        print(f"          {verdict.name.lower()}: {reason}")
    if d.fallbacks:
        print(f"then      {', '.join(d.fallbacks)}")
    for name, why in d.rejected:
        print(f"not       {name}: {why}")
    print(f"tokens    about {found.est_tokens}")
    for cost in found.costs:
        if cost.likely is None or cost.worst is None:
            print(f"cost      {cost.target}: {cost.note}")
        else:
            note = f"; {cost.note}" if cost.note else ""
            print(f"cost      {cost.target}: about ${cost.likely:.4f}, at most ${cost.worst:.4f} "
                  f"(prices as of {found.prices_as_of}{note})")  # fmt: skip
    for finding in found.findings[:_MOST]:
        print(f"found     {finding.kind}  {finding.masked}  {finding.where}")
    if len(found.findings) > _MOST:
        print(f"          and {len(found.findings) - _MOST} more")
    for what in found.unseen:
        print(f"not seen  {what}")
    for change in found.changes:
        print(f"else      {change.what}: {change.target or 'refused'}")
    print(f"policy    {found.policy}")


def probed(done: Sequence[Probed]) -> None:
    """A line for each probe."""
    for probe in done:
        where = f"{probe.verdict.name.lower()} -> {probe.target or 'none'}"
        print(f"{'FAIL' if probe.wrong else 'ok  '}  {probe.name}  ({where})")
        for wrong in probe.wrong:
            print(f"      {wrong}")


def replayed(done: Replayed) -> None:
    """What would go elsewhere."""
    print(f"{done.decisions} decisions: {done.same} the same, {done.decisions - done.same} elsewhere")
    print(f"private ones that would leave: {done.leaves}; public ones that would stay: {done.stays}")
    if done.moved:
        rows = [
            (str(m.count), m.before or "refused", m.now or "refused", m.rule_before, m.rule_now)
            for m in done.moved[:20]
        ]
        table(("COUNT", "FROM", "TO", "RULE THEN", "RULE NOW"), rows)
    for note in (*done.notes, *([f"{done.skipped} lines could not be read"] if done.skipped else [])):
        print(f"note: {note}", file=sys.stderr)


def verified(found: Verified) -> None:
    """One line, and one for each problem."""
    print(f"{found.lines} lines hold" + ("" if found.problems else ", nothing is missing"))
    for problem in found.problems:
        print(f"wrong: {problem}")


def tainted(sessions: Sequence[Tainted]) -> None:
    """The private sessions."""
    rows = [
        (
            s.session,
            s.verdict.name.lower(),
            datetime.fromtimestamp(s.since, UTC).strftime("%Y-%m-%d %H:%M"),
            ", ".join(s.kinds),
        )
        for s in sessions
    ]
    table(("SESSION (SEALED)", "VERDICT", "SINCE (UTC)", "FOUND"), rows)


def spent(totals: Totals) -> None:
    """A month in dollars."""
    print(f"{totals.month}  spent ${totals.spent:.4f}, held ${totals.held:.4f}; {totals.cloud_requests} to clouds")
    power = f"after ${totals.power:.4f} of electricity"
    print(f"{'':7}  saved ${totals.saved:.4f} {power}; {totals.local_requests} answered here")
