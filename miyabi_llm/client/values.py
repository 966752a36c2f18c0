"""What a chat stream is made of: messages in, deltas out, and the measurements taken on the way."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from miyabi_llm.errors import AnswerCut, MiyabiError, NetworkError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def as_dict(self) -> dict[str, str]:
        """The message as the wire carries it."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the server counted them; None where it does not say."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of an answer. `progress` is (done, total) prompt tokens before the first word.

    `timings` are llama.cpp's own (milliseconds and tokens per second), passed through as they came.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    timings: Mapping[str, Any] | None = None
    progress: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Stats:
    """What one answer cost. Seconds on this machine's monotonic clock; rates in tokens per second.

    `ttft_s` is from the send of the request to the first text or reasoning. `tokens_per_second` is the
    decoding rate: the server's own figure where it gives one (`clock` = "server"), else
    (tokens - 1) / (last - first) as seen here ("client"); None when it cannot be known.
    """

    prompt_tokens: int | None
    cached_tokens: int | None
    completion_tokens: int | None
    ttft_s: float | None
    total_s: float
    prompt_per_second: float | None
    tokens_per_second: float | None
    clock: Literal["server", "client"]


class Meter:
    """Watches one stream of deltas and says what it cost."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._last: float | None = None
        self._usage = Usage()
        self._timings: Mapping[str, Any] = {}

    def see(self, delta: Delta) -> None:
        """Note one delta, at the time it is seen."""
        if delta.text or delta.reasoning:
            self._last = self._clock()
            if self._first is None:
                self._first = self._last
        self._usage = delta.usage or self._usage
        self._timings = delta.timings or self._timings

    def stats(self) -> Stats:
        """The figures so far."""
        end = self._clock()
        server = _number(self._timings.get("predicted_per_second"))
        tokens = self._usage.completion_tokens
        own = None
        if tokens and tokens > 1 and self._first is not None and self._last is not None and self._last > self._first:
            own = (tokens - 1) / (self._last - self._first)
        return Stats(
            prompt_tokens=self._usage.prompt_tokens,
            cached_tokens=self._usage.cached_tokens,
            completion_tokens=tokens,
            ttft_s=None if self._first is None else self._first - self._start,
            total_s=end - self._start,
            prompt_per_second=_number(self._timings.get("prompt_per_second")),
            tokens_per_second=server if server is not None else own,
            clock="server" if server is not None else "client",
        )


def read_json(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object from the wire; raises NetworkError on anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise NetworkError(f"{where} is not JSON: {_short(text)}") from e
    if not isinstance(value, dict):
        raise NetworkError(f"{where} is not a JSON object: {_short(text)}")
    return value


def read_chunk(body: Mapping[str, Any]) -> Delta:
    """One chunk of a chat stream, or a whole answer of a server that does not stream.

    Raises AnswerCut when the server reports an error in the middle of its answer.
    """
    if body.get("error"):
        raise stream_error(body)
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else {}
    if not isinstance(choice, dict):
        raise NetworkError(f"the server's answer has a strange choice: {_short(str(choice))}")
    piece = choice.get("delta") or choice.get("message") or {}
    if not isinstance(piece, dict):
        raise NetworkError(f"the server's answer has a strange delta: {_short(str(piece))}")
    finish = choice.get("finish_reason")
    timings = body.get("timings")
    return Delta(
        text=_text(piece.get("content")),
        reasoning=_text(piece.get("reasoning_content") or piece.get("reasoning")),
        finish_reason=finish if isinstance(finish, str) and finish else None,
        usage=_usage(body.get("usage")),
        timings=timings if isinstance(timings, dict) else None,
        progress=_progress(body.get("prompt_progress")),
    )


def stream_error(body: Mapping[str, Any]) -> MiyabiError:
    """The error for `{"error": ...}` found inside a stream that began with success."""
    return AnswerCut(f"the server stopped with an error: {error_text(body)}")


def error_text(body: Mapping[str, Any]) -> str:
    """The server's own words in any of the shapes servers use."""
    error = body.get("error") or body.get("detail") or body.get("message") or body
    if isinstance(error, dict):
        error = error.get("message") or error
    return _short(error if isinstance(error, str) else json.dumps(error, ensure_ascii=False))


def _text(value: object) -> str:
    if isinstance(value, list):  # content parts
        value = "".join(p["text"] for p in value if isinstance(p, dict) and isinstance(p.get("text"), str))
    if not isinstance(value, str):
        return ""
    if any(0xD800 <= ord(c) <= 0xDFFF for c in value):  # a lone surrogate cannot be printed or saved
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return value


def _usage(value: object) -> Usage | None:
    if not isinstance(value, dict):
        return None
    details = value.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Usage(_count(value.get("prompt_tokens")), _count(value.get("completion_tokens")), _count(cached))


def _progress(value: object) -> tuple[int, int] | None:
    if not isinstance(value, dict):
        return None
    done, total = _count(value.get("processed")), _count(value.get("total"))
    return None if done is None or not total else (done, total)


def _count(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: object) -> float | None:
    ok = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
    return float(value) if ok else None  # type: ignore[arg-type]


def _short(text: str | bytes) -> str:
    shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    shown = "".join(c if c.isprintable() else " " for c in shown[:400]).strip()
    return shown or "(nothing)"
