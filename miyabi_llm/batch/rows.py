"""One line of the input as a request, or what is wrong with it: pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isinf
from typing import Any, NoReturn

from miyabi_llm.batch.values import PATHS, URLS, Problem, Row, Shape

_PLAIN = ("prompt", "messages", "input")
_BATCH = ("custom_id", "method", "url", "body")


class _Bad(ValueError):
    """What is wrong with a line, in words for a person."""


def parse(line: bytes, number: int, shape: Shape) -> Row | Problem | None:
    """The request on line `number`, or its problem; None for a blank line."""
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
    except UnicodeDecodeError as e:
        return Problem(number, f"not UTF-8 at byte {e.start + 1}")
    if not text:
        return None
    try:
        return _row({"prompt": text} if shape.text else _object(text), number, shape)
    except _Bad as e:
        return Problem(number, str(e))


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=no_constant, parse_float=finite)
    except RecursionError as e:
        raise _Bad("too deeply nested") from e
    except json.JSONDecodeError as e:
        raise _Bad(f"not JSON: {e.msg} at character {e.pos + 1}") from e
    except ValueError as e:
        raise _Bad(f"not JSON: {e}") from e
    if not isinstance(value, dict):
        raise _Bad("not a JSON object")
    return value


def no_constant(name: str) -> NoReturn:
    """For `json.loads`: NaN and Infinity could not be written as JSON again. Raises ValueError."""
    raise ValueError(f"{name} is no number of JSON")


def finite(text: str) -> float:
    """For `json.loads`: a number, not one that is too large for a float. Raises ValueError."""
    if isinf(value := float(text)):
        raise ValueError(f"{text[:20]} is too large a number")
    return value


def _row(value: dict[str, Any], number: int, shape: Shape) -> Row:
    plain = not any(key in value for key in ("method", "url", "body")) and any(key in value for key in _PLAIN)
    custom_id, url, body = _plain(value, number, shape) if plain else _batch(value)
    if body.get("stream"):
        raise _Bad("`stream`: answers of a batch do not stream")
    if shape.schema is not None:
        body = _with_schema(body, url, shape.schema)
    return Row(number, custom_id, url, body)


def _batch(value: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    custom_id = _custom_id(value.get("custom_id"))
    if unknown := sorted(set(value) - set(_BATCH)):
        raise _Bad(f"{unknown[0]!r}: unknown key beside {', '.join(_BATCH)}")
    method, url, body = value.get("method", "POST"), value.get("url"), value.get("body")
    if method != "POST":
        raise _Bad(f"method {_shown(method)}: only POST")
    if not isinstance(url, str) or url not in URLS:
        raise _Bad(f"url {_shown(url)}: one of {', '.join(URLS)}" if "url" in value else "no `url`")
    if not isinstance(body, dict):
        raise _Bad("`body` is not an object" if "body" in value else "no `body`")
    needed = {"chat": "messages", "completions": "prompt", "embeddings": "input"}[URLS[url]]
    if needed not in body:
        raise _Bad(f"`body` has no `{needed}`")
    return custom_id, url, body


def _plain(value: dict[str, Any], number: int, shape: Shape) -> tuple[str, str, dict[str, Any]]:
    """A row that holds only what to ask: its other fields go into the body, the defaults where it has none."""
    body = dict(value)
    custom_id = _custom_id(body.pop("custom_id")) if "custom_id" in body else f"row-{number}"
    given = [key for key in _PLAIN if key in body]
    if len(given) > 1:
        raise _Bad(f"both `{given[0]}` and `{given[1]}`")
    asked = body.pop(given[0])
    if given == ["messages"] and shape.to != "chat":
        raise _Bad(f"`messages` are for chat requests, not for {shape.to}")
    if given == ["input"] and shape.to != "embeddings":
        raise _Bad(f"`input` is for embeddings, not for {shape.to}")
    if shape.to == "chat":
        content: dict[str, Any] = {"messages": _messages(asked, shape.system)}
    elif not asked or not isinstance(asked, str | list):
        raise _Bad(f"`{given[0]}` is no text")
    else:
        content = {"prompt" if shape.to == "completions" else "input": asked}
    return custom_id, PATHS[shape.to], content | _defaults(shape) | body


def _messages(asked: object, system: str | None) -> list[Any]:
    if isinstance(asked, str) and asked.strip():
        messages: list[Any] = [{"role": "user", "content": asked}]
    elif isinstance(asked, list) and asked and all(isinstance(m, dict) for m in asked):
        messages = asked
    else:
        raise _Bad("neither a text nor a list of messages")
    if system is None or messages[0].get("role") in ("system", "developer"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _defaults(shape: Shape) -> dict[str, Any]:
    if shape.to == "embeddings":
        return {}
    given = {"max_tokens": shape.max_tokens, "temperature": shape.temperature}
    return {key: value for key, value in given.items() if value is not None}


def _with_schema(body: dict[str, Any], url: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    if URLS[url] != "chat":
        raise _Bad(f"--schema is for chat requests, and this one goes to {url}")
    if "response_format" in body:
        raise _Bad("`response_format` beside --schema: give one of them")
    answer = {"name": "answer", "schema": dict(schema), "strict": True}
    return body | {"response_format": {"type": "json_schema", "json_schema": answer}}


def _custom_id(value: object) -> str:
    if value is None:
        raise _Bad("no `custom_id`")
    if not isinstance(value, str) or not value:
        raise _Bad(f"`custom_id` {_shown(value)} is not a text")
    return value


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "..."
