"""A log decided again by another policy: what would have gone elsewhere."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from miyabi_llm.route.decide import decide
from miyabi_llm.route.record import KIND, facts_of
from miyabi_llm.route.values import Policy, State, Verdict


@dataclass(frozen=True, slots=True)
class Moved:
    """`count` requests that went to `before` and would go to `now` (None: refused), with the rules that said so."""

    before: str | None
    now: str | None
    rule_before: str
    rule_now: str
    count: int


@dataclass(frozen=True, slots=True)
class Replayed:
    """All decisions of a log under a new policy. `leaves` counts those that stayed here and would go to a cloud."""

    decisions: int
    same: int
    moved: tuple[Moved, ...]
    leaves: int
    stays: int
    skipped: int
    notes: tuple[str, ...]


def replay(lines: Iterable[str], policy: Policy) -> Replayed:
    """Decide each logged request again. The world is taken as well: all targets up, budgets not spent. Pure."""
    moved: Counter[tuple[str | None, str | None, str, str]] = Counter()
    same = skipped = leaves = stays = total = 0
    costs = {t.name: 0.0 for t in policy.targets}
    for line in lines:
        try:
            event = json.loads(line)
            if event.get("kind") != KIND:
                continue
            facts = facts_of(event, policy)
            before, verdict, rule = event["target"] or None, Verdict[event["verdict"]], event["rule"]
        except (ValueError, KeyError, TypeError, AttributeError):
            skipped += 1
            continue
        total += 1
        now = decide(policy, facts, State(costs=costs))
        if now.target == before:
            same += 1
            continue
        moved[before, now.target, rule, now.rule] += 1
        target = policy.target(now.target) if now.target else None
        cloud = target is not None and not target.local
        leaves += cloud and verdict is not Verdict.PUBLIC
        stays += not cloud and verdict is Verdict.PUBLIC
    found = tuple(Moved(*key, count) for key, count in moved.most_common())
    return Replayed(total, same, found, leaves, stays, skipped, tuple(_notes(policy)))


def _notes(policy: Policy) -> Iterable[str]:
    if any(rule.when.headers for rule in policy.rules):
        yield "rules on headers do not hold here: the log keeps no headers"
    if policy.privacy.allow or policy.privacy.names or policy.privacy.deny_globs:
        yield "allow, names and deny_globs look at text, which the log does not keep: what was found then counts"
