"""How a model should answer: closed, bounded options and the request fields they become."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any

from miyabi_llm.errors import BadUsage

LEVELS = ("on", "off", "low", "medium", "high")

# key -> (kind, smallest, largest), as the servers accept them
_RANGES: dict[str, tuple[type, float, float]] = {
    "temperature": (float, 0, 5),
    "top_p": (float, 0, 1),
    "top_k": (int, 0, 1_000_000),
    "min_p": (float, 0, 1),
    "seed": (int, 0, 2**32 - 1),
    "max_tokens": (int, 1, 10_000_000),
}


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How to answer; None leaves it to the server. `schema` is a JSON schema the answer must follow."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    reasoning: str | None = None
    schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for key, (kind, low, high) in _RANGES.items():
            value = getattr(self, key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
                raise BadUsage(f"{key}: {value!r} is not a number")
            if not low <= value <= high:
                raise BadUsage(f"{key}: {value} is not between {low} and {high}")
        if self.reasoning is not None and self.reasoning not in LEVELS:
            raise BadUsage(f"reasoning: {self.reasoning!r}: one of {', '.join(LEVELS)}")

    def params(self) -> dict[str, Any]:
        """The fields of a chat request."""
        body: dict[str, Any] = {k: getattr(self, k) for k in _RANGES if getattr(self, k) is not None}
        if self.stop:
            body["stop"] = list(self.stop)
        if self.reasoning in ("on", "off"):
            body["chat_template_kwargs"] = {"enable_thinking": self.reasoning == "on"}
        elif self.reasoning:
            body["reasoning_effort"] = self.reasoning
        if self.schema is not None:
            answer = {"name": "answer", "schema": dict(self.schema), "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": answer}
        return body

    def with_text(self, key: str, text: str) -> ChatOptions:
        """A copy with one option set from what a person typed; `default` unsets it. Raises BadUsage."""
        known = [f.name for f in fields(self) if f.name != "schema"]
        if key not in known:
            near = get_close_matches(key, known, 1)
            meant = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
            raise BadUsage(f"{key}: unknown option; {meant}")
        if text in ("", "default"):
            unset: Any = () if key == "stop" else None
            return replace(self, **{key: unset})
        if key == "stop":
            return replace(self, stop=(*self.stop, text))
        if key == "reasoning":
            return replace(self, reasoning=text)
        try:
            return replace(self, **{key: _RANGES[key][0](text)})
        except ValueError as e:
            raise BadUsage(f"{key}: {text!r} is not a number") from e
