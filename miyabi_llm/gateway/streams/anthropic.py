"""The stream of the Messages API: every block that begins ends, and nothing is whole before `message_stop`."""

from __future__ import annotations

from typing import Any

from miyabi_llm.gateway.streams.base import Watcher, count, is_json, part, said_error, wrong


class AnthropicWatch(Watcher):
    """Event order as published: message_start, blocks (start, deltas, stop), message_delta, message_stop."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = self._stopped = False
        self._reason: str | None = None
        self._open: dict[int, str] = {}  # block index -> its type
        self._arguments: dict[int, list[str]] = {}
        self._bad_call = False

    @property
    def whole(self) -> bool:
        """True after message_stop."""
        return self._stopped

    def judge(self, name: str, body: dict[str, Any], raw: bytes) -> None:
        """Take one event in. Raises Wrong."""
        kind = body.get("type") if isinstance(body.get("type"), str) else name
        if kind == "error" or name == "error":
            raise said_error(body.get("error", body), raw)
        if kind == "ping":
            return
        if kind == "message_start":
            self._start(body)
        elif not self._begun:
            raise wrong(f"{kind} before the message began")
        elif kind == "content_block_start":
            self._block(body)
        elif kind == "content_block_delta":
            self._delta(body)
        elif kind == "content_block_stop":
            self._end_block(body)
        elif kind == "message_delta":
            self._message(body)
        elif kind == "message_stop":
            self._stop()

    def _start(self, body: dict[str, Any]) -> None:
        if self._begun:
            raise wrong("a second message in one stream")
        self._begun = True
        self.counted(part(part(body, "message"), "usage"))

    def _block(self, body: dict[str, Any]) -> None:
        index = body.get("index")
        if not isinstance(index, int) or index in self._open or self._reason is not None:
            raise wrong("a block out of its order")
        self._open[index] = str(part(body, "content_block").get("type"))
        self.content = True

    def _delta(self, body: dict[str, Any]) -> None:
        index, delta = body.get("index"), part(body, "delta")
        if index not in self._open:
            raise wrong("a piece of a block that is not open")
        if delta.get("type") == "input_json_delta":
            self._arguments.setdefault(index, []).append(str(delta.get("partial_json", "")))

    def _end_block(self, body: dict[str, Any]) -> None:
        index = body.get("index")
        if index not in self._open:
            raise wrong("the end of a block that is not open")
        del self._open[index]
        self._bad_call = self._bad_call or not is_json("".join(self._arguments.pop(index, ())))

    def _message(self, body: dict[str, Any]) -> None:
        self.counted(part(body, "usage"))
        reason = part(body, "delta").get("stop_reason")
        if not isinstance(reason, str):
            return
        if self._open:
            raise wrong("the end of a message whose block is open")
        if reason == "tool_use" and self._bad_call:  # cut off by max_tokens it may well be half
            raise wrong("a call whose arguments are not whole")
        self._reason = reason

    def _stop(self) -> None:
        if self._open or self._reason is None:
            raise wrong("message_stop before its stop reason")
        self._stopped = True

    def counted(self, usage: dict[str, Any]) -> None:
        """Take counts in; what is not said stays as it was."""
        u = self.usage
        u.input = count(usage.get("input_tokens")) or u.input
        u.output = count(usage.get("output_tokens")) or u.output
        u.cache_read = count(usage.get("cache_read_input_tokens")) or u.cache_read
        u.cache_write = count(usage.get("cache_creation_input_tokens")) or u.cache_write
