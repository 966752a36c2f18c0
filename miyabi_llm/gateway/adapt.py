"""What a request needs to suit its target: as few bytes as can be, each change named. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from miyabi_llm.gateway.body import Body, elements
from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.route.values import Target

# Claude Code puts a text with a hash that is new each time before its system prompt: no server could then use what it
# kept of the last prompt. The hash is for billing, and means nothing to a local model.
_BILLING: Final = re.compile(r"(x-anthropic-billing-header:[^\"]{0,400}?\bcch=)([0-9a-zA-Z]+)")
_THINKING: Final = frozenset(("thinking", "redacted_thinking"))
_SAMPLING: Final = frozenset(("temperature", "top_p", "top_k"))
_SAMPLING_GONE: Final = "2026-10-21"  # the version of the API that answers them with 400


@dataclass(frozen=True, slots=True)
class Adapted:
    """The bytes and headers for one target, and the names of what was changed in them."""

    data: bytes
    headers: Pairs
    changes: tuple[str, ...] = ()


def adapt(body: Body, headers: Pairs, target: Target, *, path: str, first: bool) -> Adapted:
    """The request for `target`; `first` False: another target was asked before, with a model of its own.

    Unchanged bytes are the bytes that came. Raises nothing: what cannot be read here is left as it is.
    """
    edits: dict[tuple[int, int], str] = {}
    changes: list[str] = []
    model = body.members.get("model")
    switched = not first
    if target.endpoint.model and model is not None and model.value != target.endpoint.model:
        edits[model.start, model.end] = json.dumps(target.endpoint.model, ensure_ascii=False)
        changes.append("model")
        switched = True
    gone: frozenset[str] = frozenset()
    if path.startswith("/v1/messages"):
        if target.local:
            changes += _billing(body, edits)
            if any(k.lower() == "anthropic-beta" for k, _ in headers):
                headers = tuple((k, v) for k, v in headers if k.lower() != "anthropic-beta")
                changes.append("betas")
        elif switched and _version(headers) >= _SAMPLING_GONE and (gone := _SAMPLING & body.members.keys()):
            changes.append("sampling")
        changes += _thinking(body, edits, signed_too=target.local or not first)
    if not changes:
        return Adapted(body.data, headers)
    return Adapted(body.replaced(edits, gone), headers, tuple(changes))


def _version(headers: Pairs) -> str:
    return next((v.strip() for k, v in headers if k.lower() == "anthropic-version"), "")


def _billing(body: Body, edits: dict[tuple[int, int], str]) -> list[str]:
    system = body.members.get("system")
    if system is None:
        return []
    found = list(_BILLING.finditer(body.text, system.start, system.end))
    for m in found:
        edits[m.start(2), m.end(2)] = "0" * (m.end(2) - m.start(2))
    return ["billing"] if found else []


def _thinking(body: Body, edits: dict[tuple[int, int], str], *, signed_too: bool) -> list[str]:
    """Take the thinking out of earlier answers: it is bound to the model that thought."""
    messages = body.members.get("messages")
    if messages is None or not isinstance(messages.value, list) or not any(map(_thought, messages.value)):
        return []
    changed = False
    for message, start, end in elements(body.text, messages.start, messages.end):
        if not _thought(message):
            continue
        kept = [b for b in message["content"] if not (_is_thinking(b) and (signed_too or not _signed(b)))]
        if kept and len(kept) < len(message["content"]):
            edits[start, end] = json.dumps({**message, "content": kept}, ensure_ascii=False, separators=(",", ":"))
            changed = True
    return ["thinking"] if changed else []


def _thought(message: Any) -> bool:
    content = message.get("content") if isinstance(message, Mapping) else None
    return isinstance(content, list) and any(_is_thinking(block) for block in content)


def _signed(block: Mapping[str, Any]) -> bool:
    return bool(block.get("signature")) or block.get("type") == "redacted_thinking"


def _is_thinking(block: Any) -> bool:
    return isinstance(block, Mapping) and block.get("type") in _THINKING
