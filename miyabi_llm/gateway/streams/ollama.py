"""Ollama's streams of JSON lines: nothing is whole before the line with `done`."""

from __future__ import annotations

from typing import Any

from miyabi_llm.gateway.streams.base import Watcher, count, part, said_error


class OllamaWatch(Watcher):
    """/api/chat and /api/generate."""

    def __init__(self) -> None:
        super().__init__(lines=True)
        self._done = False

    @property
    def whole(self) -> bool:
        """True after the line that says `done`."""
        return self._done

    def judge(self, name: str, body: dict[str, Any], raw: bytes) -> None:
        """Take one line in. Raises Wrong."""
        if body.get("error"):
            raise said_error(body["error"], raw)
        message = part(body, "message")
        if body.get("response") or any(message.get(k) for k in ("content", "thinking", "tool_calls")):
            self.content = True
        if body.get("done") is True:
            self._done = self.content = True
            self.usage.input = count(body.get("prompt_eval_count"))
            self.usage.output = count(body.get("eval_count"))
