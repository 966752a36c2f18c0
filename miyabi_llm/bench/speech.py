"""The dialects of servers: a question as the bytes of a request, and an answer's pieces read into a sample. Pure."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urlsplit

from miyabi_llm.bench.values import Item, Piece, Raw, Sample, Speech, Target

PATHS: dict[Speech, str] = {
    "openai-chat": "/v1/chat/completions",
    "openai-completions": "/v1/completions",
    "ollama": "/api/chat",
    "anthropic": "/v1/messages",
}


def request(target: Target, item: Item, messages: Sequence[Mapping[str, Any]] | None = None) -> bytes:
    """The whole HTTP/1.1 request for `item`, streamed; `messages` replace the item's own (later turns, a nonce).

    Every answer is asked to carry its token counts. Nothing asks the server to reuse or to avoid its prompt cache.
    """
    url = urlsplit(target.endpoint.base_url)
    body = json.dumps(_body(target, item, messages or item.messages), ensure_ascii=False).encode()
    lines = [
        f"POST {url.path.rstrip('/')}{PATHS[target.speech]} HTTP/1.1",
        f"Host: {url.netloc.rpartition('@')[2]}",
        "Content-Type: application/json",
        "Accept: text/event-stream, application/x-ndjson",
        "Accept-Encoding: identity",
        "User-Agent: miyabi-llm",
        f"Content-Length: {len(body)}",
    ]
    if key := target.endpoint.key:
        if target.speech == "anthropic":
            lines.append(f"x-api-key: {key.reveal()}")
        lines.append(f"Authorization: Bearer {key.reveal()}")
    if target.speech == "anthropic":
        lines.append("anthropic-version: 2023-06-01")
    return "\r\n".join([*lines, "", ""]).encode() + body


def _body(target: Target, item: Item, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    body: dict[str, Any] = {"model": target.endpoint.model, "stream": True, **item.params}
    if target.speech == "ollama":
        return body | {
            "messages": list(messages),
            "options": {"num_predict": item.max_tokens, **item.params.get("options", {})},
        }
    body["max_tokens"] = item.max_tokens
    if target.speech == "anthropic":
        system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
        turns = [m for m in messages if m["role"] != "system"]
        return body | {"messages": turns} | ({"system": system} if system else {})
    body["stream_options"] = {"include_usage": True}
    if target.endpoint.backend == "vllm":  # its own extension: tokens counted in every chunk
        body["stream_options"]["continuous_usage_stats"] = True
    if target.speech == "openai-completions":
        prompt = item.prompt if item.prompt is not None else "\n\n".join(m["content"] for m in messages)
        return body | {"prompt": prompt}
    return body | {"messages": list(messages)}


@dataclass(slots=True)
class _Reading:
    """What is known of an answer so far."""

    text: list[str]
    times: list[int]
    first: int = 0
    reasoning: int = 0
    finish: str = ""
    over: bool = False
    refused: str = ""
    prompt: int | None = None
    cached: int | None = None
    output: int | None = None
    first_output: int | None = None
    timings: tuple[float | None, float | None, float | None] = (None, None, None)
    timed_output: int | None = None
    counted: dict[int, int] = field(default_factory=dict)  # tokens so far, by how many pieces there were

    def count(self, tokens: object) -> None:
        """The server tells how many tokens there are so far."""
        if isinstance(tokens, int):  # the first telling after a piece is that piece's: later tokens had no text yet
            self.counted.setdefault(len(self.times), tokens)

    def chunk_tokens(self) -> tuple[int, ...]:
        """The tokens of each piece, where each came with a count."""
        totals = [0, *(self.counted.get(i + 1, -1) for i in range(len(self.times)))]
        steps = tuple(b - a for a, b in itertools.pairwise(totals))
        return steps if min(totals) >= 0 and all(k > 0 for k in steps) else ()

    def saw(self, text: str, at: int, *, reasoning: bool = False) -> None:
        if not text:
            return
        if reasoning:
            self.reasoning = self.reasoning or at
        else:
            self.first = self.first or at
            self.text.append(text)
        self.times.append(at)


def read(raw: Raw, speech: Speech) -> Sample:
    """The sample of a call: errors under a 200 are errors, a stream without its end is cut."""
    blank = Sample(
        target=raw.call.target,
        item=raw.call.item,
        turn=raw.call.turn,
        stream=raw.stream,
        intended_ns=raw.intended_ns,
        sent_ns=raw.sent_ns,
        end_ns=raw.end_ns,
        error=raw.error,
        detail=raw.detail,
        status=raw.status,
    )
    if raw.error in ("connect", "broken", "timeout", "garbled", "cancelled"):
        return blank
    if raw.status != 200:
        said = b"".join(p.data for p in raw.pieces)[:500].decode("utf-8", "replace")
        return replace(blank, error=raw.error or "http", detail=raw.detail or f"{raw.status}: {said}")
    reading = _Reading([], [])
    try:
        for value, at in _values(raw.pieces, lines=speech == "ollama"):
            _READERS[speech](reading, value, at)
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, IndexError) as e:
        return replace(blank, error="garbled", detail=f"{type(e).__name__}: {e}"[:200])
    return _sample(blank, reading)


def _sample(blank: Sample, r: _Reading) -> Sample:
    error, detail = blank.error, blank.detail
    if r.refused:
        error, detail = "refused", r.refused[:500]
    elif not error and not (r.over or r.finish):
        error, detail = "cut", "the stream ended without its end"
    elif not error and not r.times and not r.output:
        error, detail = "refused", "an answer without content"
    tokens, provenance = r.output, "usage"
    if r.timed_output is not None:
        tokens, provenance = r.timed_output, "server timings"
    elif r.first_output is not None:
        provenance = "usage per chunk"
    if tokens is None and r.times:
        tokens, provenance = len(r.times), "chunks"
    return replace(
        blank,
        error=error,
        detail=detail,
        first_ns=r.first or r.reasoning,
        reasoning_ns=r.reasoning,
        last_ns=r.times[-1] if r.times else 0,
        times_ns=tuple(r.times),
        text="".join(r.text),
        finish=r.finish,
        prompt_tokens=r.prompt,
        cached_tokens=r.cached,
        output_tokens=tokens,
        first_tokens=r.first_output or 1,
        provenance=provenance if tokens is not None else "none",  # type: ignore[arg-type]
        server_prompt_ms=r.timings[0],
        server_output_ms=r.timings[1],
        server_load_ms=r.timings[2],
        chunk_tokens=r.chunk_tokens(),
    )


def _values(pieces: Sequence[Piece], *, lines: bool) -> Iterator[tuple[Any, int]]:
    """The JSON values of a stream, each with the time its last byte came. Server-sent events, or a value per line."""
    left = b""
    for piece in pieces:
        *whole, left = (left + piece.data).split(b"\n")
        for line in whole:
            line = line.rstrip(b"\r")
            if lines:
                if line:
                    yield json.loads(line), piece.at
            elif line.startswith(b"data:"):
                yield _data(line), piece.at
    if left.strip():
        last = pieces[-1].at
        if lines:
            yield json.loads(left), last
        elif left.startswith(b"data:"):
            yield _data(left), last
        elif left.lstrip().startswith(b"{"):  # an error as plain JSON under a 200
            yield json.loads(left), last


def _data(line: bytes) -> Any:
    text = line[5:].strip()
    return {"done": True} if text == b"[DONE]" else json.loads(text)


def _openai(r: _Reading, value: Any, at: int) -> None:
    if value.get("error"):
        error = value["error"]
        r.refused = str(error.get("message") if isinstance(error, dict) else error)
        return
    if value.get("done") is True and "choices" not in value:
        r.over = True
        return
    for choice in value.get("choices") or ():
        delta = choice.get("delta") or {}
        r.saw(delta.get("reasoning_content") or delta.get("reasoning") or "", at, reasoning=True)
        r.saw(delta.get("content") or choice.get("text") or "", at)
        for call in delta.get("tool_calls") or ():
            r.saw((call.get("function") or {}).get("arguments") or "", at)
        r.finish = choice.get("finish_reason") or r.finish
    if usage := value.get("usage"):
        r.prompt, r.output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        details = usage.get("prompt_tokens_details") or {}
        r.cached = details.get("cached_tokens", r.cached)
        if r.first_output is None and len(r.times) == 1 and not r.finish and r.output:
            r.first_output = r.output
        r.count(r.output)
    if timings := value.get("timings"):
        r.timings = (timings.get("prompt_ms"), timings.get("predicted_ms"), None)
        r.timed_output = timings.get("predicted_n")
        r.count(r.timed_output)
        if r.cached is None:
            r.cached = timings.get("cache_n")


def _ollama(r: _Reading, value: Any, at: int) -> None:
    if value.get("error"):
        r.refused = str(value["error"])
        return
    message = value.get("message") or {}
    r.saw(message.get("thinking") or "", at, reasoning=True)
    r.saw(message.get("content") or value.get("response") or "", at)
    if value.get("done"):
        r.finish = value.get("done_reason") or "stop"
        r.prompt, r.timed_output = value.get("prompt_eval_count"), value.get("eval_count")
        parts = (value.get(k) for k in ("prompt_eval_duration", "eval_duration", "load_duration"))
        prompt, output, load = (None if p is None else p / 1e6 for p in parts)
        r.timings = (prompt, output, load)


def _anthropic(r: _Reading, value: Any, at: int) -> None:
    kind = value.get("type")
    if kind == "error" or "error" in value:
        error = value.get("error")
        r.refused = str(error.get("message") if isinstance(error, dict) else error)
    elif kind == "message_start":
        usage = value["message"].get("usage") or {}
        r.prompt, r.cached = usage.get("input_tokens"), usage.get("cache_read_input_tokens")
    elif kind == "content_block_delta":
        delta = value["delta"]
        r.saw(delta.get("thinking") or "", at, reasoning=True)
        r.saw(delta.get("text") or delta.get("partial_json") or "", at)
    elif kind == "message_delta":
        r.finish = (value.get("delta") or {}).get("stop_reason") or r.finish
        r.output = (value.get("usage") or {}).get("output_tokens", r.output)
    elif kind == "message_stop":
        r.over = True


_READERS = {"openai-chat": _openai, "openai-completions": _openai, "ollama": _ollama, "anthropic": _anthropic}
