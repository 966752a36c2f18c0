"""Good streams of each dialect, event by event, and pieces of bad ones."""

from __future__ import annotations

import json
from typing import Any

from tests import clauded, openaid

WORDS = ["Hello", ", ", "世界", " 🎌", "."]


def sse(body: object, name: str = "") -> bytes:
    """One event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def call(part: str, index: int = 0) -> bytes:
    """A piece of a call's arguments in a chat stream."""
    function = {"name": "get_weather", "arguments": part}
    return openaid.chunk(tool_calls=[{"index": index, "id": "call_1", "type": "function", "function": function}])


def completions() -> bytes:
    """A stream of /v1/completions."""
    pieces = [sse({"choices": [{"index": 0, "text": w, "finish_reason": None}]}) for w in WORDS]
    last = sse({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    return b"".join([*pieces, last, b"data: [DONE]\n\n"])


def responses() -> bytes:
    """A stream of /v1/responses."""
    body: dict[str, Any] = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
    usage = {"input_tokens": 7, "output_tokens": 5, "total_tokens": 12}
    events = [("response.created", {"response": body})]
    events += [("response.output_text.delta", {"item_id": "m", "output_index": 0, "delta": w}) for w in WORDS]
    events += [("response.output_text.done", {"item_id": "m", "output_index": 0, "text": "".join(WORDS)})]
    events += [("response.completed", {"response": body | {"status": "completed", "usage": usage}})]
    return b"".join(sse({"type": n, "sequence_number": i} | b, n) for i, (n, b) in enumerate(events))


def ollama(path: str = "/api/chat") -> bytes:
    """A stream of Ollama's own API."""
    lines: list[dict[str, Any]] = []
    for word in WORDS:
        said = {"message": {"role": "assistant", "content": word}} if path == "/api/chat" else {"response": word}
        lines.append({"model": "m", **said, "done": False})
    last: dict[str, Any] = (
        {"message": {"role": "assistant", "content": ""}} if path == "/api/chat" else {"response": ""}
    )
    counts = {"prompt_eval_count": 7, "eval_count": 5}
    lines.append({"model": "m", **last, "done": True, "done_reason": "stop", **counts})
    return b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)


STREAMS: dict[str, tuple[str, bytes]] = {
    "messages": ("/v1/messages", b"".join(clauded.pieces())),
    "messages with a call": ("/v1/messages", clauded.tool_stream(['{"city": ', '"東京"}'])),
    "chat": ("/v1/chat/completions", openaid.normal()),
    "chat with a call": (
        "/v1/chat/completions",
        call('{"city": ') + call('"東京"}') + openaid.finish("tool_calls") + b"data: [DONE]\n\n",
    ),
    "completions": ("/v1/completions", completions()),
    "responses": ("/v1/responses", responses()),
    "ollama chat": ("/api/chat", ollama()),
    "ollama generate": ("/api/generate", ollama("/api/generate")),
}
