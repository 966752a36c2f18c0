"""An ASGI middleware for vLLM that asks for the key on every path but the health check.

vLLM's own check covers paths under /v1, /v2, /inference and /cohere; /invocations, /tokenize, /metrics and others
answer anybody. This file is copied into vLLM's environment and loaded there by `--middleware`: it imports nothing of
ours and nothing but the standard library.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Awaitable, Callable
from typing import Any

OPEN = frozenset(("/health", "/ping"))
REFUSAL = b'{"error": {"message": "the key is missing or wrong", "type": "invalid_request_error", "code": 401}}'


class Guard:
    """Passes a request on when it carries the key of VLLM_API_KEY, as a bearer token or as `x-api-key`."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app
        self.key = os.environ.get("VLLM_API_KEY", "").encode()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """One connection."""
        if scope["type"] == "lifespan" or self.allowed(scope):
            await self.app(self.signed(scope), receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})

    def allowed(self, scope: dict[str, Any]) -> bool:
        """Whether this request may pass."""
        if not self.key or scope.get("path") in OPEN or scope.get("method") == "OPTIONS":
            return True
        return self.carries(scope)

    def carries(self, scope: dict[str, Any]) -> bool:
        """Whether it has the key."""
        for name, value in scope.get("headers", ()):
            given = b""
            if name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:].strip()
            elif name == b"x-api-key":
                given = value.strip()
            if given and hmac.compare_digest(given, self.key):
                return True
        return False

    def signed(self, scope: dict[str, Any]) -> dict[str, Any]:
        """With the key as vLLM's own check wants it, which does not know `x-api-key`."""
        if not self.key or not self.carries(scope):
            return scope
        rest = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
        return {**scope, "headers": [*rest, (b"authorization", b"Bearer " + self.key)]}
