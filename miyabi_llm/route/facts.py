"""The facts of a request, from its bytes, its headers and its scan."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from miyabi_llm.route.scan import Scan
from miyabi_llm.route.values import Dialect, Facts, Verdict

_KEYS = frozenset({"authorization", "x-api-key", "proxy-authorization", "cookie"})
_SESSION = ("x-miyabi-session", "x-claude-code-session-id", "x-session-id")
_MOST = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def build(
    dialect: Dialect, path: str, headers: Mapping[str, str], scan: Scan, taint: Verdict = Verdict.PUBLIC
) -> Facts:
    """The facts. `headers` in any case; keys are left out. `taint` is what the session holds already. Pure.

    Of the client's own words `x-miyabi-privacy` only tightens: an unknown word there is confidential.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    body = scan.parsed if isinstance(scan.parsed, Mapping) else {}
    model = body.get("model")
    return Facts(
        dialect=dialect,
        model=model if isinstance(model, str) else "",
        path=path,
        stream=body.get("stream", dialect == "ollama") is True,
        headers=MappingProxyType({n: v for n, v in lower.items() if n not in _KEYS}),
        est_tokens=est_tokens(scan.size),
        max_tokens=_most(body),
        hints=tuple(w.strip().lower() for w in lower.get("x-miyabi-hint", "").split(",") if w.strip()),
        project=lower.get("x-miyabi-project", ""),
        session=session(lower, body),
        files=scan.files,
        findings=scan.findings,
        complete=scan.complete,
        unseen=scan.unseen,
        asked=_asked(lower.get("x-miyabi-privacy", "")),
        taint=taint,
    )


def session(headers: Mapping[str, str], body: Mapping[str, Any]) -> str:
    """The session's name: from a header (lower-case names), or `metadata.user_id`; empty when there is none. Pure."""
    for name in _SESSION:
        if headers.get(name):
            return headers[name][:256]
    metadata = body.get("metadata")
    user = metadata.get("user_id") if isinstance(metadata, Mapping) else None
    return user[:256] if isinstance(user, str) else ""


def est_tokens(size: int) -> int:
    """Tokens of a prompt, from the bytes of its texts in UTF-8: one for three, rounded up. Pure.

    English and code have three to four bytes a token, Japanese (three bytes a character) about three. It is for
    choosing, not for counting; budgets reserve one token for each byte.
    """
    return (size + 2) // 3


def _most(body: Mapping[str, Any]) -> int:
    for key in _MOST:
        value = body.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    options = body.get("options")
    value = options.get("num_predict") if isinstance(options, Mapping) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _asked(text: str) -> Verdict:
    if not text.strip():
        return Verdict.PUBLIC
    named = Verdict.named(text)
    return Verdict.CONFIDENTIAL if named is None else named
