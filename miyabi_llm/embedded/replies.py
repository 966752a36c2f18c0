"""What the server answers: the objects of the OpenAI dialect, with llama-server's timings."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from miyabi_llm.embedded.asked import Refused
from miyabi_llm.embedded.engine import Done


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one request: the same id and time in all of its pieces."""

    model: str
    chat: bool
    id: str = field(default_factory=lambda: f"emb-{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, done: Done) -> dict[str, Any]:
        """The answer in one object."""
        said: dict[str, Any] = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        choice = {"index": 0, "finish_reason": done.reason, "logprobs": None} | said
        kind = "chat.completion" if self.chat else "text_completion"
        return self._object(kind, [choice]) | {"usage": usage(done), "timings": timings(done)}

    def first(self) -> dict[str, Any] | None:
        """The piece of a stream that says who speaks; only chats have one."""
        return self._piece({"role": "assistant", "content": ""}, "") if self.chat else None

    def piece(self, text: str) -> dict[str, Any]:
        """One piece of a stream."""
        return self._piece({"content": text}, text)

    def last(self, done: Done, *, with_usage: bool) -> list[dict[str, Any]]:
        """The end of a stream: why it ended, and what it cost, in a piece of its own if it was asked for."""
        end = self._piece({}, "", done.reason)
        if not with_usage:
            return [end | {"timings": timings(done)}]
        kind = "chat.completion.chunk" if self.chat else "text_completion"
        return [end, self._object(kind, []) | {"usage": usage(done), "timings": timings(done)}]

    def _piece(self, delta: Mapping[str, Any], text: str, reason: str | None = None) -> dict[str, Any]:
        said: dict[str, Any] = {"delta": delta} if self.chat else {"text": text}
        choice = {"index": 0, "finish_reason": reason, "logprobs": None} | said
        return self._object("chat.completion.chunk" if self.chat else "text_completion", [choice])

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}


def usage(done: Done) -> dict[str, Any]:
    """Tokens, counted."""
    return {
        "prompt_tokens": done.prompt,
        "completion_tokens": done.predicted,
        "total_tokens": done.prompt + done.predicted,
        "prompt_tokens_details": {"cached_tokens": done.prompt - done.evaluated},
    }


def timings(done: Done) -> dict[str, Any]:
    """As llama-server tells them: `prompt_n` are the tokens that were computed, `cache_n` those still there."""
    return {
        "cache_n": done.prompt - done.evaluated,
        "prompt_n": done.evaluated,
        "prompt_ms": round(done.prompt_ms, 3),
        **_rates("prompt", done.evaluated, done.prompt_ms),
        "predicted_n": done.predicted,
        "predicted_ms": round(done.predicted_ms, 3),
        **_rates("predicted", done.predicted, done.predicted_ms),
    }


def _rates(name: str, n: int, ms: float) -> dict[str, float | None]:
    known = ms > 0 and n > (name == "predicted")  # the time of one token begins when it is there
    return {
        f"{name}_per_token_ms": round(ms / n, 3) if known else None,
        f"{name}_per_second": round(n / ms * 1000, 3) if known else None,
    }


def event(body: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


END = b"data: [DONE]\n\n"


def failure(e: BaseException) -> Refused:
    """What a client is told of a failure in the engine."""
    return e if isinstance(e, Refused) else Refused(500, "server_error", f"{type(e).__name__}: {e}")
