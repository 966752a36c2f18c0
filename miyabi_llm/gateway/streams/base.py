"""What all watchers of streams do: cut into events, judge each, and stop at the first that is wrong."""

from __future__ import annotations

import json
from typing import Any

from miyabi_llm.gateway.streams.frames import Event, Events, Lines, Unreadable, read_event
from miyabi_llm.gateway.streams.values import Broken, Fed, Usage

CUT = Broken("api_error", "the model's server ended its answer before it was whole")


class Wrong(Exception):
    """An event that cannot be: `broken` says why."""

    def __init__(self, broken: Broken) -> None:
        super().__init__(broken.message)
        self.broken = broken


def wrong(message: str) -> Wrong:
    """An event that makes no sense."""
    return Wrong(Broken("api_error", f"the model's server sent {message}"))


class Watcher:
    """A dialect's watcher has `judge`, and `whole`."""

    def __init__(self, *, lines: bool = False) -> None:
        self.content = False
        self.usage = Usage()
        self._frames: Events | Lines = Lines() if lines else Events()
        self._lines = lines

    @property
    def whole(self) -> bool:
        """True once the last event of a whole answer has come."""
        raise NotImplementedError

    def judge(self, name: str, body: dict[str, Any], raw: bytes) -> None:
        """Take one event in. Raises Wrong."""
        raise NotImplementedError

    def mark(self, text: str) -> bool:
        """Take an event in whose data is no JSON object; False when there is no such event."""
        return False

    def feed(self, data: bytes) -> Fed:
        """The events that `data` completes, as far as they are good."""
        if self.whole:  # what comes after the end is nobody's answer: some servers end twice
            return Fed(data)
        broken = None
        try:
            found = self._frames.feed(data)
        except Unreadable as e:
            found, broken = e.before, Broken("api_error", f"the model's server sent {e}")
        fed = self._take(found, broken)
        return Fed(fed.good + self._frames.flush()) if self.whole else fed

    def end(self) -> Fed:
        """The last bytes at the end of the stream, and what is missing."""
        fed = self._take(self._frames.last(), None)
        return fed if fed.broken is not None or self.whole else Fed(fed.good, CUT)

    def _take(self, found: list[bytes], broken: Broken | None) -> Fed:
        for number, raw in enumerate(found):
            try:
                self._one(raw)
            except Wrong as e:
                return Fed(b"".join(found[:number]), e.broken)
        return Fed(b"".join(found) if len(found) != 1 else found[0], broken)

    def _one(self, raw: bytes) -> None:
        if self.whole:
            return
        try:
            event = self._line(raw) if self._lines else read_event(raw)
            if event is None or self.mark(event.data):
                return
            body = json.loads(event.data)
        except (ValueError, RecursionError):
            raise wrong("an event that is no JSON") from None
        if not isinstance(body, dict):
            raise wrong("an event that is no JSON object")
        self.judge(event.name, body, raw)

    @staticmethod
    def _line(raw: bytes) -> Event | None:
        text = raw.decode("utf-8").strip()
        return Event("message", text) if text else None


def count(value: object) -> int:
    """A number of tokens in an answer; 0 for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def part(body: dict[str, Any], key: str) -> dict[str, Any]:
    """The object under `key`; an empty one when there is none."""
    found = body.get(key)
    return found if isinstance(found, dict) else {}


def rows(body: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects in the list under `key`."""
    found = body.get(key)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def is_json(text: str) -> bool:
    """Whether the arguments of a call can be read; none at all can."""
    if not text.strip():
        return True
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def said_error(error: object, raw: bytes) -> Wrong:
    """The error a server says it has, as it said it."""
    kind, message = "api_error", "the model's server reports an error"
    if isinstance(error, dict):
        kind = str(error.get("type") or kind)[:100]
        message = str(error.get("message") or message)[:500]
    elif isinstance(error, str):
        message = error[:500]
    return Wrong(Broken(kind, message, raw))
