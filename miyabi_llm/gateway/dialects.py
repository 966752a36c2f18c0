"""The paths that are passed on, the dialect of each, and what an error looks like in it. Pure."""

from __future__ import annotations

import json
from typing import Any, Final

from miyabi_llm.route.values import Dialect

ANTHROPIC: Final = ("/v1/messages", "/v1/messages/count_tokens")
OPENAI: Final = (
    *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
    *("/chat/completions", "/completions", "/embeddings", "/responses"),  # a base URL given without its /v1
)
OLLAMA: Final = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show")
OLLAMA_LOOKS: Final = ("/api/tags", "/api/ps", "/api/version")  # questions about the server, without a model
STREAMING: Final = frozenset(("/v1/messages", "/v1/chat/completions", "/v1/completions", "/v1/responses"))
LINES: Final = frozenset(("/api/chat", "/api/generate"))  # they stream unless told not to

_KINDS: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "request_too_large",
    415: "invalid_request_error",
    421: "invalid_request_error",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
# An error inside a stream, before anything of it was passed on, is an answer with this status.
_STATUS: Final = {kind: status for status, kind in _KINDS.items() if status not in (405, 408, 415, 421, 503)}


def canonical(path: str) -> str:
    """The path as upstream servers know it: with its `/v1`."""
    return f"/v1{path}" if path in OPENAI and not path.startswith("/v1/") else path


def dialect(path: str) -> Dialect:
    """The dialect in which `path` is asked and errors on it are told."""
    if path.startswith("/api/"):
        return "ollama"
    return "anthropic" if path.startswith("/v1/messages") else "openai"


def streams(path: str, body: dict[str, Any]) -> bool:
    """Whether the answer to `body` comes as a stream."""
    if path in LINES:
        return body.get("stream") is not False
    return path in STREAMING and body.get("stream") is True


def status_of(kind: str) -> int:
    """The status of an error that a server told inside a stream of status 200."""
    return _STATUS.get(kind, 502)


def error_body(path: str, status: int, message: str, kind: str = "") -> bytes:
    """An error as a client of `path` expects it."""
    kind = kind or _KINDS.get(status, "invalid_request_error" if status < 500 else "api_error")
    match dialect(path):
        case "anthropic":
            body: dict[str, Any] = {"type": "error", "error": {"type": kind, "message": message}}
        case "ollama":
            body = {"error": message}
        case _:
            body = {"error": {"message": message, "type": kind, "param": None, "code": status}}
    return json.dumps(body, ensure_ascii=False).encode()


def error_event(path: str, kind: str, message: str) -> bytes:
    """The last event of a stream that broke, as a client of `path` expects it."""
    if path == "/v1/responses":
        data = {"type": "error", "code": kind, "message": message, "param": None, "sequence_number": 0}
        return b"event: error\ndata: " + json.dumps(data, ensure_ascii=False).encode() + b"\n\n"
    body = error_body(path, status_of(kind), message, kind)
    match dialect(path):
        case "anthropic":
            return b"event: error\ndata: " + body + b"\n\n"
        case "ollama":
            return body + b"\n"
        case _:
            return b"data: " + body + b"\n\n"
