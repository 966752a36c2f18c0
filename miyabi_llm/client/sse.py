"""Server-sent events from bytes: a pure parser that gives the same events however the bytes were cut."""

from __future__ import annotations

import re
from dataclasses import dataclass

from miyabi_llm.errors import NetworkError

LIMIT = 10 * 2**20  # bytes in one line or in one event's data; a longer one is an attack or a bug

_END = re.compile(rb"\r\n|\r|\n")
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its type (`message` unless the server names one), its data, its id."""

    event: str
    data: str
    id: str = ""


class SseParser:
    """Feed it bytes, take events. Follows the WHATWG event-stream grammar, but refuses bytes that are not UTF-8.

    Lines may end in LF, CR or CRLF, also cut between the two; an event without its final blank line is not
    an event. Memory is bounded by `limit` per line and per event.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._tail = bytearray()
        self._skip_lf = False
        self._first = True
        self._event = ""
        self._id = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events completed by `chunk`. Raises NetworkError on a line that is too long or not UTF-8."""
        if self._skip_lf and chunk:
            self._skip_lf = False
            chunk = chunk.removeprefix(b"\n")
        events: list[SseEvent] = []
        start = 0
        for end in _END.finditer(chunk):
            self._tail += chunk[start : end.start()]
            start = end.end()
            self._bound(len(self._tail))
            line, self._tail = bytes(self._tail), bytearray()
            event = self._line(line)
            if event is not None:
                events.append(event)
        self._skip_lf = chunk.endswith(b"\r") if chunk else self._skip_lf
        self._tail += chunk[start:]
        self._bound(len(self._tail))
        return events

    def _bound(self, size: int) -> None:
        if size > self._limit:
            raise NetworkError(f"the server's stream holds more than {self._limit:,} bytes without a break")

    def _line(self, line: bytes) -> SseEvent | None:
        if self._first:
            self._first = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._dispatch()
        try:
            name, _, value = line.decode("utf-8").partition(":")
        except UnicodeDecodeError as e:
            raise NetworkError(f"the server's stream is not UTF-8: {e.reason} at byte {e.start} of a line") from e
        value = value.removeprefix(" ")
        if name == "data":
            self._size += len(line)
            self._bound(self._size)
            self._data.append(value)
        elif name == "event":
            self._event = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None  # a comment, `retry` or an unknown field says nothing to us

    def _dispatch(self) -> SseEvent | None:
        event = SseEvent(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event, self._data, self._size = "", [], 0
        return event
