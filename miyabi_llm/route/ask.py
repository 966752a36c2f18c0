"""A request out of a file: the body itself, an envelope with path and headers, or plain text for a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from miyabi_llm.errors import BadUsage
from miyabi_llm.route.values import Dialect

_ENVELOPE = frozenset(("path", "headers", "body", "about"))
MODEL = "claude-sonnet-5-5"  # that a plain text is taken to ask for
_BODIES = ("messages", "prompt", "input", "model", "contents")


@dataclass(frozen=True, slots=True)
class Asked:
    """What would be sent: the path, headers, and the exact bytes."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def dialect(self) -> Dialect:
        """The dialect of the path."""
        return dialect(self.path)


def dialect(path: str) -> Dialect:
    """The dialect that a path speaks. Pure."""
    if path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def read(data: bytes, name: str, headers: Mapping[str, str] | None = None) -> Asked:
    """What the bytes of a file ask. `headers` come over those in it. Raises BadUsage for a wrong envelope. Pure."""
    more = dict(headers or {})
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return Asked("/v1/messages", more, _prompt(data.decode("utf-8", "replace")))
    if not isinstance(value, dict):
        return Asked("/v1/messages", more, _prompt(data.decode("utf-8", "replace")))
    if "body" in value and set(value) <= _ENVELOPE:
        own, path = value.get("headers", {}), value.get("path", "/v1/messages")
        if not isinstance(path, str) or not isinstance(own, dict) or not all(isinstance(v, str) for v in own.values()):
            raise BadUsage(f"{name}: an envelope has a path (text), headers (texts) and a body")
        body = value["body"]
        data = json.dumps(body, ensure_ascii=False).encode() if not isinstance(body, str) else body.encode()
        return Asked(path, {**own, **more}, data)
    if any(key in value for key in _BODIES):
        return Asked(_path(value), more, data)
    return Asked("/v1/messages", more, _prompt(data.decode("utf-8", "replace")))


def _path(body: Mapping[str, Any]) -> str:
    if "input" in body:
        return "/v1/responses"
    if "prompt" in body and "messages" not in body:
        return "/v1/completions"
    return "/v1/messages"


def _prompt(text: str) -> bytes:
    body = {"model": MODEL, "max_tokens": 1024, "messages": [{"role": "user", "content": text}]}
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
