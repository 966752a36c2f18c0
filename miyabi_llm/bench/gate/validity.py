"""Whether rounds may be used at all: answers came, from the same servers, and few failed. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from miyabi_llm.bench.gate.metrics import failed
from miyabi_llm.bench.gate.values import Compared, Plan, Round
from miyabi_llm.bench.values import Sample

LENGTHS_APART = 1.5  # an arm whose answers are so many times as long did another job


def broken(r: Round, names: tuple[str, str]) -> tuple[str, ...]:
    """Why one round ends the measurement; empty when it does not."""
    reasons = list(r.broken)
    reasons += [run.aborted for run in r.runs if run.aborted]
    for arm, samples in enumerate(r.samples):
        good = [s for s in samples if s.ok]
        if not samples:
            reasons.append(f"{names[arm]} was asked nothing in round {r.number + 1}")
        elif not good:
            reasons.append(f"{names[arm]} gave no whole answer in round {r.number + 1}: {_words(samples)}")
        elif not any(s.output_tokens for s in good):
            reasons.append(f"{names[arm]} gave answers without a token in round {r.number + 1}")
    return tuple(reasons)


def unusable(rounds: Sequence[Round], plan: Plan, names: tuple[str, str], judged: Sequence[Compared]) -> list[str]:
    """Why the figures so far say nothing; a rule that found B's errors to be the failure stands above that."""
    reasons = []
    shown = any(c.metric == "error_rate" and c.outcome == "fail" for c in judged)
    for arm in (0, 1):
        bad, everything = failed(rounds, arm)
        if bad > max(1, plan.error_limit * everything) and not (shown and arm == 1):
            kinds = Counter(s.error for r in rounds for s in r.samples[arm] if s.error)
            words = ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())
            limit = f"more than {plan.error_limit:.0%}: what survived is another load"
            reasons.append(f"{bad} of {everything} requests to {names[arm]} failed ({words}), {limit}")
    return reasons


def remarks(rounds: Sequence[Round], names: tuple[str, str]) -> list[str]:
    """What makes the comparison less than it seems, without making it wrong."""
    tokens = [[s.output_tokens or 0 for r in rounds for s in r.samples[arm] if s.ok] for arm in (0, 1)]
    if not all(map(any, tokens)):
        return []
    a, b = (sum(t) / len(t) for t in tokens)
    if max(a, b) / min(a, b) > LENGTHS_APART:
        return [f"answers differ in length: {a:.0f} tokens from {names[0]}, {b:.0f} from {names[1]}, on average"]
    return []


def _words(samples: Sequence[Sample]) -> str:
    seen = Counter(f"{s.error} ({s.detail})"[:120] for s in samples)
    return seen.most_common(1)[0][0]
