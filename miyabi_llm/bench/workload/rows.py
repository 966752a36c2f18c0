"""One row of a workload file as an item: messages, a prompt, a batch request, a ShareGPT conversation. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from miyabi_llm.bench.values import Item

MAX_TOKENS = 128
# What may go into a request's body from a row; the rest of a row is its author's own notes.
PARAMS = frozenset(
    (
        *("temperature", "top_p", "top_k", "min_p", "seed", "stop", "ignore_eos", "logit_bias", "response_format"),
        *("presence_penalty", "frequency_penalty", "repeat_penalty", "reasoning_effort", "think", "options"),
        *("tools", "tool_choice", "chat_template_kwargs"),
    )
)
OURS = frozenset(("model", "stream", "stream_options", "messages", "prompt", "max_tokens", "n"))
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse(row: object, number: int, max_tokens: int | None = None) -> Item:
    """The item of row `number`; `max_tokens` replaces what the row says. Raises ValueError that tells what is wrong."""
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, which no server can be sent") from None
    body = row.get("body", row)  # a line of the batch format
    if not isinstance(body, dict):
        raise ValueError("body is not an object")
    name = row.get("id", row.get("custom_id", f"row-{number}"))
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError("id is neither text nor a number")
    params = {k: v for k, v in body.items() if k in PARAMS} | _object(body.get("params", {}), "params")
    if ours := sorted(OURS & set(params)):
        raise ValueError(f"params holds {ours[0]}, which is set by the measurement")
    limit = max_tokens or _limit(body)
    if "messages" in body:
        return Item(str(name), _messages(body["messages"]), None, limit, params, _texts(body.get("more", []), "more"))
    if "prompt" in body:
        return Item(str(name), (), _text(body["prompt"], "prompt"), limit, params)
    if "conversations" in body:
        first, more = _conversation(body["conversations"])
        return Item(str(name), first, None, limit, params, more)
    raise ValueError("neither messages, prompt nor conversations")


def _limit(body: Mapping[str, Any]) -> int:
    value = body.get("max_tokens", body.get("max_completion_tokens", MAX_TOKENS))
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"max_tokens is {str(value)[:40]!r}, not a whole number above 0")
    return value


def _messages(value: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages is not a list with a message in it")
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f"messages[{i}] has no role")
        content = message.get("content")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise ValueError(f"messages[{i}] has no content")
    if not any(m["role"] == "user" for m in value):
        raise ValueError("messages has no user's message")
    return tuple(value)


def _conversation(value: object) -> tuple[tuple[Mapping[str, Any], ...], tuple[str, ...]]:
    """The system's and the first user's words, and the later turns; the answers in the file are left out."""
    if not isinstance(value, list):
        raise ValueError("conversations is not a list")
    system, turns = [], []
    for i, part in enumerate(value):
        role = _ROLES.get(str(part.get("from", part.get("role")))) if isinstance(part, dict) else None
        if role is None:
            raise ValueError(f"conversations[{i}] is from nobody we know")
        text = _text(part.get("value", part.get("content")), f"conversations[{i}].value", empty=role == "assistant")
        if role == "system":
            system.append({"role": "system", "content": text})
        elif role == "user":
            turns.append(text)
    if not turns:
        raise ValueError("conversations has no word of a user")
    return (*system, {"role": "user", "content": turns[0]}), tuple(turns[1:])


def _text(value: object, name: str, *, empty: bool = False) -> str:
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{name} is not text" if not isinstance(value, str) else f"{name} is empty")
    return value


def _texts(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{name} is not a list")
    return tuple(_text(v, f"{name}[{i}]") for i, v in enumerate(value))


def _object(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{name} is not an object")
    return value
