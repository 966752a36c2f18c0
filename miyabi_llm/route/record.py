"""What the log keeps of a decision: names, counts and hashes, enough to decide again by another policy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from miyabi_llm import detect
from miyabi_llm.route.values import Decision, Facts, Finding, Policy, Verdict

KIND = "decision"
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,95}")
_NUMBER = re.compile(r"\d{7,}")
_CLAUDE = re.compile(r"claude-[a-z]{1,12}-\d(?:-\d)?(?:-20\d{6})?")
_PATHS = frozenset(
    ("/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions", "/v1/completions", "/v1/embeddings",
     "/v1/responses", "/v1/models", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/tags",
     "/api/show")
)  # fmt: skip
KEPT_OUT = "(kept out)"


def decided(facts: Facts, decision: Decision, policy: Policy, body: str, session: str = "") -> dict[str, Any]:
    """The event of a decision. `body` is the HMAC of the request's bytes, `session` its sealed name. Pure.

    Words of the client are kept only where they look like names and nothing is found in them; headers never are.
    """
    known = _known(facts, policy)
    return {
        "kind": KIND,
        "dialect": facts.dialect,
        "path": word(facts.path, known),
        "model": word(facts.model, known),
        "stream": facts.stream,
        "tokens": facts.est_tokens,
        "max_tokens": facts.max_tokens,
        "hints": [word(h, known) for h in facts.hints[:8]],
        "project": word(facts.project, known),
        "asked": facts.asked.name,
        "taint": facts.taint.name,
        "complete": facts.complete,
        "unseen": len(facts.unseen),
        "denied_paths": len(facts.files),
        "detected": {k: sum(f.kind == k for f in facts.findings) for k in decision.detected},
        "verdict": decision.verdict.name,
        "rule": decision.rule,
        "target": decision.target,
        "fallbacks": list(decision.fallbacks),
        "policy": policy.digest,
        "body": body,
        "session": session,
    }


def word(text: str, known: frozenset[str] | None = None) -> str:
    """A client's word as it may be kept; empty stays empty. Pure.

    With `known` (something private was found in the request) only one of those; without, a plain name in which nothing
    is found and that is no number.
    """
    if not text:
        return ""
    if known is not None:
        return text if text in known or _CLAUDE.fullmatch(text) else KEPT_OUT
    return text if _plain(text) else KEPT_OUT


@lru_cache(maxsize=1024)
def _plain(text: str) -> bool:
    return bool(_WORD.fullmatch(text.lstrip("/"))) and not _NUMBER.search(text) and not detect.scan(text)


def _known(facts: Facts, policy: Policy) -> frozenset[str] | None:
    """The words that the policy has itself, when others may be private."""
    if facts.complete and not facts.findings:
        return None
    words = {w for t in policy.targets for w in (t.name, t.endpoint.model, *t.aliases)}
    words |= {h for r in policy.rules for h in r.when.hints} | {"bulk", "cheap", "hard"}
    return frozenset(words | _PATHS)


def facts_of(event: Mapping[str, Any], policy: Policy) -> Facts:
    """The facts that an event kept, to decide again. What was denied by a path is denied again. Raises KeyError,
    ValueError, TypeError for an event of another shape. Pure."""
    ignored = policy.privacy.ignore
    kinds = [k for k, n in event["detected"].items() for _ in range(min(int(n), 99)) if k not in ignored]
    asked = Verdict[event["asked"]]
    return Facts(
        dialect=event["dialect"],
        model=event["model"],
        path=event["path"],
        stream=bool(event["stream"]),
        est_tokens=int(event["tokens"]),
        max_tokens=int(event["max_tokens"]),
        hints=tuple(event["hints"]),
        project=event["project"],
        findings=tuple(Finding(k, "", "") for k in kinds),
        complete=bool(event["complete"]),
        unseen=("what was not seen then",) * bool(event["unseen"]),
        asked=max(asked, Verdict.CONFIDENTIAL) if event["denied_paths"] else asked,
        taint=Verdict[event["taint"]],
    )
