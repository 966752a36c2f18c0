"""What a request asks for: the body of a POST as a checked value, or a refusal in the dialect's own words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MESSAGES = 10_000  # of one request
STOPS = 16  # stop texts of one request


class Refused(Exception):
    """An answer other than 200: its HTTP status, the type the OpenAI dialect gives it, and what else it tells."""

    def __init__(self, status: int, kind: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.more = status, kind, message, more

    def body(self) -> dict[str, Any]:
        """The error as the wire carries it, in llama-server's shape."""
        return {"error": {"code": self.status, "message": self.message, "type": self.kind, **self.more}}


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; llama.cpp's own defaults. `seed` None: another one each time."""

    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One generation. `prompt` is text, or token ids, for a completion; `messages` are set for a chat instead.

    `schema` is a JSON schema as text that the answer must fit; "" means any JSON. `most` is in tokens.
    """

    prompt: str | tuple[int, ...] = ""
    messages: tuple[Mapping[str, Any], ...] | None = None
    most: int | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    schema: str | None = None
    stream: bool = False
    usage: bool = False


def read(body: bytes, model: str, *, chat: bool) -> Ask:
    """The request in `body` to the server of `model`. Raises Refused, which says what is wrong with it."""
    told = _object(body)
    _refuse_what_is_not_done(told)
    named = told.get("model")
    if named is not None and named != model:
        raise Refused(404, "not_found_error", f"the model {str(named)[:200]!r} is not served here, only {model!r}")
    options = told.get("stream_options") or {}
    return Ask(
        prompt="" if chat else _prompt(told.get("prompt")),
        messages=_messages(told.get("messages")) if chat else None,
        most=_most(told),
        stop=_stops(told.get("stop")),
        sampling=_sampling(told),
        schema=_schema(told.get("response_format")),
        stream=_flag(told, "stream"),
        usage=isinstance(options, dict) and bool(options.get("include_usage")),
    )


def text_of(body: bytes) -> tuple[str, bool]:
    """The text to make tokens of, and whether with the model's special ones around it."""
    told = _object(body)
    if not isinstance(told.get("content"), str):
        raise bad("content must be a text")
    return told["content"], bool(told.get("add_special"))


def _object(body: bytes) -> dict[str, Any]:
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as e:
        raise bad(f"the body is not JSON: {e}") from e
    if not isinstance(told, dict):
        raise bad("the body is not a JSON object")
    return told


def bad(message: str) -> Refused:
    """The refusal of a request that makes no sense."""
    return Refused(400, "invalid_request_error", message)


# What would change the answer if we passed it over, and the values of each that ask for nothing.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "suffix": ("",),
    "echo": (False,),
    "ignore_eos": (False,),
    "grammar": ("",),
}


def _refuse_what_is_not_done(told: Mapping[str, Any]) -> None:
    for name, nothing in _NOT_DONE.items():
        value = told.get(name)
        if value is None or any(value == v and isinstance(value, type(v)) for v in nothing):
            continue
        if name == "tools" and told.get("tool_choice") == "none":
            continue
        raise bad(f"{name} is not done by the embedded backend; llama-server does it: serve with --backend llama-cpp")


def _prompt(value: object) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(token) is int and token >= 0 for token in value):
        return tuple(value)
    raise bad("prompt must be a text, a list of token ids, or a list of one of these")


def _messages(value: object) -> tuple[Mapping[str, Any], ...]:
    if not isinstance(value, list) or not value or len(value) > MESSAGES:
        raise bad(f"messages must be a list of 1 to {MESSAGES} messages")
    return tuple(_message(number, message) for number, message in enumerate(value))


def _message(number: int, message: object) -> Mapping[str, Any]:
    where = f"messages[{number}]"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise bad(f"{where} has no role")
    content = message.get("content")
    if isinstance(content, list):
        kinds = {part.get("type") if isinstance(part, dict) else None for part in content}
        if kinds - {"text"}:
            raise bad(f"{where}: only text is understood, not {', '.join(sorted(map(str, kinds - {'text'})))}")
        content = "".join(str(part.get("text", "")) for part in content)
    if content is not None and not isinstance(content, str):
        raise bad(f"{where}: content must be a text or a list of parts")
    return message | {"content": content or ""}


def _most(told: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_tokens"):
        value = told.get(name)
        if value is None or value == -1:  # llama-server's word for no limit
            continue
        if type(value) is not int or value < 1:
            raise bad(f"{name} must be a whole number from 1 up")
        return value
    return None


def _stops(value: object) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or len(texts) > STOPS or not all(isinstance(t, str) for t in texts):
        raise bad(f"stop must be a text or a list of at most {STOPS} texts")
    return tuple(t for t in texts if t)


def _sampling(told: Mapping[str, Any]) -> Sampling:
    seed = told.get("seed")
    if seed is not None and type(seed) is not int:
        raise bad("seed must be a whole number")
    own = Sampling()
    return Sampling(
        temperature=_number(told, "temperature", own.temperature, 0, 100),
        top_p=_number(told, "top_p", own.top_p, 0, 1),
        top_k=int(_number(told, "top_k", own.top_k, -1, 1 << 20)),
        min_p=_number(told, "min_p", own.min_p, 0, 1),
        repeat_penalty=_number(told, "repeat_penalty", own.repeat_penalty, 0.01, 100),
        presence_penalty=_number(told, "presence_penalty", own.presence_penalty, -2, 2),
        frequency_penalty=_number(told, "frequency_penalty", own.frequency_penalty, -2, 2),
        seed=None if seed is None or seed < 0 else seed & 0xFFFFFFFF,
    )


def _number(told: Mapping[str, Any], name: str, default: float, least: float, most: float) -> float:
    value = told.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise bad(f"{name} must be a number from {least} to {most}")
    return value


def _flag(told: Mapping[str, Any], name: str) -> bool:
    value = told.get(name)
    if value is not None and not isinstance(value, bool):
        raise bad(f"{name} must be true or false")
    return bool(value)


def _schema(value: object) -> str | None:
    if value is None:
        return None
    told = value if isinstance(value, dict) else {}
    if told.get("type") == "text":
        return None
    if told.get("type") == "json_object":
        schema = told.get("schema")  # llama-server's own addition
        return json.dumps(schema) if isinstance(schema, dict) else ""
    if told.get("type") == "json_schema":
        inner = told.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if isinstance(schema, dict):
            return json.dumps(schema)
    raise bad("response_format must be text, json_object, or json_schema with a schema")
