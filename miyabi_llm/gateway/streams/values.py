"""What a watcher of a stream says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Broken:
    """Why an answer is not to be taken for one.

    `kind` is an error type of the Messages API (`api_error`, `overloaded_error`, ...). `said` is the error event as
    the server wrote it, empty when the server said nothing of the kind: the stream was cut, or makes no sense.
    """

    kind: str
    message: str
    said: bytes = b""


@dataclass(slots=True)
class Usage:
    """Tokens as the server counted them, so far."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0


@dataclass(frozen=True, slots=True)
class Fed:
    """The bytes of the events that are whole and good, to be passed on, and what is wrong with the next one."""

    good: bytes
    broken: Broken | None = None


class Watch(Protocol):
    """Reads a copy of one stream. `content` is set once something of the answer itself has come."""

    content: bool
    usage: Usage

    def feed(self, data: bytes) -> Fed:
        """The events that `data` completes. After `broken` it is not fed any more."""

    def end(self) -> Fed:
        """The stream ended in good order: its last bytes, and what is missing when the answer is not whole."""

    @property
    def whole(self) -> bool:
        """True once the last event of a whole answer has come."""
