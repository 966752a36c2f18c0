"""The decision: policy, facts and state in, one target with its reason out. Pure, and the same every time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from miyabi_llm.route.values import Decision, Facts, Policy, Rule, State, Target, Verdict, When
from miyabi_llm.route.verdict import Judged, glob, judge


@dataclass(frozen=True, slots=True)
class _Wish:
    """Which targets were wished for, in order, by which rule and why; `strict`: no others may stand in."""

    rule: str
    why: str
    names: tuple[str, ...]
    strict: bool = False


def decide(policy: Policy, facts: Facts, state: State) -> Decision:
    """Where the request goes. Refused (no target) when no candidate may see it and can take it.

    The verdict comes first, then the wish: an explicit target, the first matching rule, or the mode's order. A cloud
    target is taken out whenever the verdict, the policy's mode, its budget or its validity speak against it, and local
    targets stand in. Nothing ever puts a cloud target in that was not wished for.
    """
    judged = judge(policy, facts)
    wish = _wish(policy, facts, judged)
    taken: list[Target] = []
    rejected: list[tuple[str, str]] = []
    for target in _candidates(policy, wish, judged.verdict):
        why = refusal(policy, target, facts, judged.verdict, state)
        if why:
            rejected.append((target.name, why))
        else:
            taken.append(target)
    detected = tuple(sorted({f.kind for f in facts.findings}))
    names = tuple(t.name for t in taken)
    rule, reason = _told(wish, judged, rejected)
    return Decision(
        names[0] if names else None, names[1:], judged.verdict, rule, reason, detected, tuple(rejected)
    )  # fmt: skip


def refusal(policy: Policy, target: Target, facts: Facts, verdict: Verdict, state: State) -> str:
    """Why a target may not or cannot take this request; empty when it can. Pure."""
    if not target.local and (policy.error or policy.mode == "local"):
        return "the policy cannot be trusted" if policy.error else "the mode is local"
    if verdict > target.clearance or (not target.local and verdict > Verdict.PUBLIC):
        return f"{verdict.name.lower()} may not go there"
    if facts.dialect not in target.endpoint.dialects:
        return f"does not speak {facts.dialect}"
    need = facts.est_tokens + (facts.max_tokens or 1)
    if target.context and need > target.context:
        return f"about {need} tokens do not fit its {target.context}"
    health = state.of(target.name)
    if not health.usable:
        return health.why or ("the circuit is open" if health.healthy else "down")
    return "" if target.local else _too_dear(policy, target, state)


def _too_dear(policy: Policy, target: Target, state: State) -> str:
    budget = policy.budget
    if budget.monthly_usd is None and budget.per_request_usd is None:
        return ""
    cost = state.costs.get(target.name)
    if cost is None:
        return "its price is not known, and there is a budget"
    if budget.per_request_usd is not None and cost > budget.per_request_usd:
        return f"may cost ${cost:.4f}, more than ${budget.per_request_usd:g} for one request"
    if budget.monthly_usd is not None:
        left = budget.monthly_usd if state.budget_left is None else state.budget_left
        if cost > left:
            return f"may cost ${cost:.4f}, and ${max(left, 0):.4f} of the month's budget are left"
    return ""


def _wish(policy: Policy, facts: Facts, judged: Judged) -> _Wish:
    named = next((t for t in policy.targets if _means(t, facts.model)), None)
    asked = facts.headers.get("x-miyabi-target", "")
    if asked:
        named = next((t for t in policy.targets if _means(t, asked)), None)
        if named is None:
            return _Wish("target", f"there is no target {asked[:64]!r}", (), strict=True)
    if named is not None:
        return _Wish("target", f"the client asked for {named.name}", (named.name,), strict=named.local)
    rule = next((r for r in policy.rules if holds(r.when, facts, judged.verdict)), None)
    if rule is not None:
        return _Wish(rule.name, f"rule {rule.name}", (rule.use, *rule.fallback))
    return _Wish(f"mode-{policy.mode}", f"mode {policy.mode}", tuple(t.name for t in _order(policy, facts)))


def _means(target: Target, word: str) -> bool:
    return word.lower() in {target.name.lower(), *(a.lower() for a in target.aliases)}


def _order(policy: Policy, facts: Facts) -> list[Target]:
    cloud = [t for t in policy.targets if not t.local]
    local = [t for t in policy.targets if t.local]
    if policy.mode == "local":
        return local
    first = policy.mode == "claude" or "hard" in facts.hints
    if policy.mode == "claude" and {"bulk", "cheap"} & set(facts.hints):
        first = False
    return cloud + local if first else local + cloud


def _candidates(policy: Policy, wish: _Wish, verdict: Verdict) -> Iterator[Target]:
    """The wished targets in order; then, for what may not leave, the other local ones that may see it."""
    seen: set[str] = set()
    for name in wish.names:
        target = policy.target(name)
        if target is not None and name not in seen:
            seen.add(name)
            yield target
    asked_cloud = any((t := policy.target(name)) is not None and not t.local for name in wish.names)
    if not wish.strict and (verdict > Verdict.PUBLIC or asked_cloud):
        yield from (t for t in policy.targets if t.local and t.name not in seen)


def holds(when: When, facts: Facts, verdict: Verdict) -> bool:
    """Whether a rule's wishes all hold. Pure."""
    return (
        _any(when.models, facts.model)
        and _any(when.paths, facts.path)
        and _any(when.projects, facts.project)
        and (not when.hints or bool(set(when.hints) & set(facts.hints)))
        and (not when.verdicts or verdict in when.verdicts)
        and (when.stream is None or when.stream == facts.stream)
        and facts.est_tokens >= when.min_tokens
        and (not when.max_tokens or facts.est_tokens <= when.max_tokens)
        and all(name in facts.headers and glob(want, facts.headers[name]) for name, want in when.headers.items())
    )


def _any(globs: tuple[str, ...], text: str) -> bool:
    return not globs or any(glob(g, text) for g in globs)


def _told(wish: _Wish, judged: Judged, rejected: list[tuple[str, str]]) -> tuple[str, str]:
    """The rule's id and one sentence: what decided, and what kept the first wish from being met."""
    strongest = judged.reasons[0][1] if judged.reasons else "nothing is known"
    private = judged.verdict > Verdict.PUBLIC
    parts = [f"{judged.verdict.name.lower()}: {strongest}", wish.why] if private else [wish.why]
    if rejected and (not private or not wish.names or rejected[0][0] == wish.names[0]):
        parts.append(f"not {rejected[0][0]}: {rejected[0][1]}")
    return wish.rule, "; ".join(parts)


__all__ = ["Rule", "decide", "holds", "refusal"]
