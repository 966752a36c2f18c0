"""The streams of chat completions, completions and responses: nothing is whole before its reason and its last event."""

from __future__ import annotations

from typing import Any

from miyabi_llm.gateway.streams.base import Watcher, count, is_json, part, rows, said_error, wrong


def take_usage(watch: Watcher, usage: dict[str, Any]) -> None:
    """Counts as chat completions (`prompt_tokens`) or responses (`input_tokens`) give them."""
    u = watch.usage
    u.input = count(usage.get("prompt_tokens")) or count(usage.get("input_tokens")) or u.input
    u.output = count(usage.get("completion_tokens")) or count(usage.get("output_tokens")) or u.output
    cached = part(usage, "prompt_tokens_details") or part(usage, "input_tokens_details")
    u.cache_read = count(cached.get("cached_tokens")) or u.cache_read


class OpenAIWatch(Watcher):
    """Chat completions and completions: each choice has a finish_reason, then comes `[DONE]`."""

    def __init__(self) -> None:
        super().__init__()
        self._begun: set[int] = set()
        self._finished: set[int] = set()
        self._calls: dict[tuple[int, int], list[str]] = {}
        self._done = False

    @property
    def whole(self) -> bool:
        """True after `[DONE]`."""
        return self._done

    def mark(self, text: str) -> bool:
        """`[DONE]`, which is right only when every choice has its reason."""
        if text.strip() != "[DONE]":
            return False
        if not self._finished or self._begun - self._finished:
            raise wrong("[DONE] before a finish reason")
        self._done = True
        return True

    def judge(self, name: str, body: dict[str, Any], raw: bytes) -> None:
        """Take one chunk in. Raises Wrong."""
        if body.get("error") or name == "error":
            raise said_error(body.get("error", body), raw)
        if isinstance(usage := body.get("usage"), dict):
            take_usage(self, usage)
        for choice in rows(body, "choices"):
            self._choice(choice)

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        if not isinstance(index, int):
            raise wrong("a choice without a number")
        self._begun.add(index)
        delta = part(choice, "delta")
        if choice.get("text") or any(v for k, v in delta.items() if k != "role"):
            if index in self._finished:
                raise wrong("a piece after its finish reason")
            self.content = True
        for call in rows(delta, "tool_calls"):
            at = call.get("index", 0)
            said = part(call, "function").get("arguments")
            if isinstance(at, int) and isinstance(said, str):
                self._calls.setdefault((index, at), []).append(said)
        reason = choice.get("finish_reason")
        if not isinstance(reason, str) or not reason:
            return
        if reason in ("tool_calls", "function_call", "stop"):
            calls = (text for (of, _), text in self._calls.items() if of == index)
            if not all(is_json("".join(text)) for text in calls):
                raise wrong("a call whose arguments are not whole")
        if reason == "error":
            raise wrong("an answer that ended with an error")
        self._finished.add(index)
        self.content = True


class ResponsesWatch(Watcher):
    """The Responses API: the last event is response.completed or response.incomplete."""

    def __init__(self) -> None:
        super().__init__()
        self._done = False

    @property
    def whole(self) -> bool:
        """True after response.completed or response.incomplete."""
        return self._done

    def mark(self, text: str) -> bool:
        """`[DONE]` comes after the end only, where nothing is looked at any more."""
        if text.strip() == "[DONE]":
            raise wrong("[DONE] before the end of the response")
        return False

    def judge(self, name: str, body: dict[str, Any], raw: bytes) -> None:
        """Take one event in. Raises Wrong."""
        kind = str(body.get("type") or name)
        if kind == "error" or body.get("error"):
            raise said_error(body.get("error") or body, raw)
        if kind == "response.failed":
            raise said_error(part(body, "response").get("error"), raw)
        if kind.endswith((".delta", ".done")):
            self.content = True
        if kind == "response.function_call_arguments.done" and not is_json(str(body.get("arguments", ""))):
            raise wrong("a call whose arguments are not whole")
        if kind in ("response.completed", "response.incomplete"):
            take_usage(self, part(part(body, "response"), "usage"))
            self._done = self.content = True
