"""An answer that came in one piece: whole, an error under a good status, or half. Pure."""

from __future__ import annotations

import json
from typing import Any

from miyabi_llm.gateway.streams.anthropic import AnthropicWatch
from miyabi_llm.gateway.streams.base import Wrong, count, is_json, part, rows, said_error, wrong
from miyabi_llm.gateway.streams.openai import OpenAIWatch, take_usage
from miyabi_llm.gateway.streams.values import Broken, Usage


def judge_whole(path: str, data: bytes) -> tuple[Broken | None, Usage]:
    """What is wrong with an answer of status 200 to `path`, None when it is whole; and what it counted."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return Broken("api_error", "the model's server answered with something that is no JSON"), Usage()
    try:
        return None, _judge(path, body)
    except Wrong as e:
        return e.broken, Usage()


def _judge(path: str, body: Any) -> Usage:
    if not isinstance(body, dict):
        if path in ("/v1/models", "/api/tags") or not isinstance(body, list):
            raise wrong("something that is no JSON object")
        return Usage()
    if body.get("error"):
        raise said_error(body["error"], b"")
    if path == "/v1/messages":
        return _message(body)
    if path in ("/v1/chat/completions", "/v1/completions"):
        return _choices(body)
    if path in ("/api/chat", "/api/generate") and body.get("done") is not True:
        raise wrong("an answer that is not done")
    if path == "/v1/responses" and body.get("status") in ("failed", "in_progress", "queued"):
        raise wrong(f"a response that is {body['status']}")
    if path == "/v1/embeddings" and not isinstance(body.get("data"), list):
        raise wrong("no embeddings")
    if path == "/v1/messages/count_tokens" and not isinstance(body.get("input_tokens"), int):
        raise wrong("no count")
    usage = Usage(input=count(body.get("prompt_eval_count")) or count(body.get("input_tokens")))
    usage.output = count(body.get("eval_count"))
    if counted := part(body, "usage"):
        watch = OpenAIWatch()
        take_usage(watch, counted)
        return watch.usage
    return usage


def _message(body: dict[str, Any]) -> Usage:
    if body.get("type") == "error":
        raise said_error(body.get("error"), b"")
    if not isinstance(body.get("stop_reason"), str) or not isinstance(body.get("content"), list):
        raise wrong("a message without its stop reason")
    watch = AnthropicWatch()
    watch.counted(part(body, "usage"))
    return watch.usage


def _choices(body: dict[str, Any]) -> Usage:
    found = rows(body, "choices")
    if not found or not all(isinstance(c.get("finish_reason"), str) for c in found):
        raise wrong("an answer without its finish reason")
    for choice in found:
        for call in rows(part(choice, "message"), "tool_calls"):
            arguments = part(call, "function").get("arguments", "")
            if choice["finish_reason"] != "length" and isinstance(arguments, str) and not is_json(arguments):
                raise wrong("a call whose arguments are not whole")
    watch = OpenAIWatch()
    take_usage(watch, part(body, "usage"))
    return watch.usage
