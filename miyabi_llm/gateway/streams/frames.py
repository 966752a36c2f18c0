"""Streams of events as bytes: cut into whole events, so that half an event is never passed on. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

LIMIT = 10 << 20  # bytes of one event; a longer one is an attack or a bug
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")  # atomic: a CR LF is one end of a line, never two
_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class Unreadable(ValueError):
    """A stream that is none: too long an event, or no UTF-8. The events before it were whole: `before`."""

    def __init__(self, message: str, before: list[bytes]) -> None:
        super().__init__(message)
        self.before = before


class Events:
    """Cuts server-sent events. Follows the WHATWG grammar: lines end in LF, CR or CRLF, also cut in between."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._held = limit, b""

    def feed(self, data: bytes) -> list[bytes]:
        """The raw bytes of every event that `data` completes, blank line included. Raises Unreadable."""
        # the end of an event may lie across the cut: at most three bytes of it were here before
        begin = max(0, len(self._held) - 3)
        held = self._held + data if self._held else data
        events, start = [], 0
        while (end := _EVENT_END.search(held, max(start, begin))) is not None:
            if end.end() == len(held) and held.endswith(b"\r"):
                break  # an LF may follow that belongs to it
            events.append(held[start : end.end()])
            start = end.end()
        self._held = held[start:]
        if len(self._held) > self._limit:
            raise Unreadable(f"an event of more than {self._limit:,} bytes", events)
        return events

    def rest(self) -> bytes:
        """What came after the last whole event. At the end of the stream a final CR ends its line."""
        return self._held

    def flush(self) -> bytes:
        """Give up what is held: nobody looks at it any more."""
        held, self._held = self._held, b""
        return held

    def last(self) -> list[bytes]:
        """The event that only the end of the stream completes: its final CR was held for an LF."""
        held, self._held = self._held, b""
        if held.endswith(b"\r") and _EVENT_END.search(held, max(0, len(held) - 3)):
            return [held]
        self._held = held
        return []


class Lines:
    """Cuts a stream of JSON lines."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit, self._held = limit, b""

    def feed(self, data: bytes) -> list[bytes]:
        """The raw bytes of every line that `data` completes, line end included. Raises Unreadable."""
        held = self._held + data
        cut = held.rfind(b"\n") + 1
        self._held = held[cut:]
        lines = held[:cut].splitlines(keepends=True) if cut else []
        if len(self._held) > self._limit:
            raise Unreadable(f"a line of more than {self._limit:,} bytes", lines)
        return lines

    def rest(self) -> bytes:
        """What came after the last whole line."""
        return self._held

    def flush(self) -> bytes:
        """Give up what is held: nobody looks at it any more."""
        held, self._held = self._held, b""
        return held

    def last(self) -> list[bytes]:
        """Nothing: a line without its end is not whole."""
        return []


@dataclass(frozen=True, slots=True)
class Event:
    """One event as its receiver sees it: its type (`message` unless named) and its data; None without data."""

    name: str
    data: str


def read_event(raw: bytes) -> Event | None:
    """The event in `raw`; None when it is a comment only. Raises ValueError when it is no UTF-8."""
    if raw.startswith(b"data: {") and raw.endswith(b"}\n\n") and raw.find(b"\n", 0, -2) < 0 and b"\r" not in raw:
        return Event("message", raw[6:-2].decode("utf-8"))
    name, data = "message", []
    for line in _LINE_END.split(raw.removeprefix(_BOM)):
        key, _, value = line.decode("utf-8").partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            data.append(value)
        elif key == "event":
            name = value or "message"
    return Event(name, "\n".join(data)) if data else None
