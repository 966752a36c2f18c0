"""From the bytes of tokens to text that may be sent: whole characters only, and nothing of a stop text."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from itertools import accumulate


class Text:
    """The answer so far. A stop text, and what may yet become one, is held back; `stopped` tells that one came."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def add(self, piece: bytes) -> str:
        """The text that is now sure, after the bytes of one more token."""
        return self._release(self._decode.decode(piece))

    def end(self) -> str:
        """What is left at the end: the beginning of a stop text that never came."""
        rest = self._release(self._decode.decode(b"", final=True))
        if self.stopped:
            return rest
        held, self._held = self._held, ""
        return rest + held

    def _release(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_beginning(text, stop) for stop in self._stops), default=0)
        cut = len(text) - keep
        self._held = text[cut:]
        return text[:cut]


_LITERAL = re.compile(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]')


def depth(grammar: str) -> int:
    """How deep the groups of a GBNF grammar lie in each other."""
    steps = (1 if c == "(" else -1 for c in _LITERAL.sub("", grammar) if c in "()")
    return max(accumulate(steps), default=0)


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
