"""A decision with its evidence, and what would change it. Nothing is sent anywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from miyabi_llm import detect
from miyabi_llm.route import facts as fact
from miyabi_llm.route import prices as price
from miyabi_llm.route.ask import Asked
from miyabi_llm.route.decide import decide
from miyabi_llm.route.prices import Prices, Usage
from miyabi_llm.route.scan import scan_request
from miyabi_llm.route.values import Decision, Facts, Finding, Health, Policy, State, Target, Verdict
from miyabi_llm.route.verdict import judge


@dataclass(frozen=True, slots=True)
class Cost:
    """What a cloud target would charge, in US dollars: `likely` by estimated tokens, `worst` is what is reserved.

    None: its price is not known. `note` says what about the price is not certain.
    """

    target: str
    likely: float | None
    worst: float | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that would lead elsewhere, and where to (None: refused)."""

    what: str
    target: str | None


@dataclass(frozen=True, slots=True)
class Explained:
    """A decision with all that led to it. `reasons` are verdicts with their grounds, the strongest first."""

    decision: Decision
    reasons: tuple[tuple[Verdict, str], ...]
    findings: tuple[Finding, ...]
    complete: bool
    unseen: tuple[str, ...]
    est_tokens: int
    costs: tuple[Cost, ...]
    prices_as_of: str
    changes: tuple[Change, ...]
    seconds: float
    policy: str


def explain(
    policy: Policy, asked: Asked, prices: Prices, state: State | None = None, taint: Verdict = Verdict.PUBLIC
) -> Explained:
    """Decide about a request and say why. Sends nothing, writes nothing."""
    scan = scan_request(asked.body, asked.dialect, asked.headers, detect.Cache(), policy.privacy, policy.limits)
    facts = fact.build(asked.dialect, asked.path, asked.headers, scan, taint)
    costs = tuple(cost_of(t, facts, len(asked.body), policy, prices) for t in policy.targets if not t.local)
    known = {c.target: c.worst for c in costs if c.worst is not None}
    state = replace(state or State(), costs=known)
    decision = decide(policy, facts, state)
    return Explained(
        decision,
        judge(policy, facts).reasons,
        scan.findings,
        scan.complete,
        scan.unseen,
        facts.est_tokens,
        costs,
        prices.as_of,
        tuple(_changes(policy, facts, state, decision)),
        scan.seconds,
        f"{policy.source}{f' ({policy.error})' if policy.error else ''}",
    )


def cost_of(target: Target, facts: Facts, size: int, policy: Policy, prices: Prices) -> Cost:
    """What a request of `size` bytes would cost at a cloud target. Pure."""
    model = target.price or target.endpoint.model or facts.model
    found = prices.of(model) if model else None
    if found is None:
        return Cost(target.name, None, None, f"no price is known for {model or 'its model'}")
    most = facts.max_tokens or policy.limits.default_max_tokens
    likely = price.cost(found, Usage(facts.est_tokens, most))
    return Cost(target.name, likely, price.worst(found, size, most), found.open)


def _changes(policy: Policy, facts: Facts, state: State, decision: Decision) -> Iterator[Change]:
    """Single changes after which the request would go elsewhere."""
    trials: list[tuple[str, Facts, State]] = []
    if facts.findings:
        trials.append((f"without what was found ({len(facts.findings)})", replace(facts, findings=()), state))
    if not facts.complete:
        trials.append(("if all of it could be looked at", replace(facts, complete=True), state))
    if facts.findings and not facts.complete:
        trials.append(("without both", replace(facts, findings=(), complete=True), state))
    if facts.taint:
        trials.append(("after `miyabi-llm route untaint`", replace(facts, taint=Verdict.PUBLIC), state))
    if facts.files:
        trials.append(("without the paths of deny_globs", replace(facts, files=()), state))
    if decision.verdict < Verdict.CONFIDENTIAL:
        tight = replace(facts, asked=Verdict.CONFIDENTIAL)
        trials.append(("with the header `x-miyabi-privacy: confidential`", tight, state))
    for hint in ("hard", "cheap"):
        if hint not in facts.hints:
            trials.append(
                (f"with the header `x-miyabi-hint: {hint}`", replace(facts, hints=(*facts.hints, hint)), state)
            )
    if decision.target:
        down = {**state.health, decision.target: Health(healthy=False, why="down")}
        trials.append((f"when {decision.target} is down", facts, replace(state, health=down)))
    for what, other, world in trials:
        target = decide(policy, other, world).target
        if target != decision.target:
            yield Change(what, target)
