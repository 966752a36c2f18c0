"""What a scan finds, and the memory of texts that were scanned before."""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock


@dataclass(frozen=True, slots=True)
class Hit:
    """Something secret or personal in a text: `start` and `end` in characters of the text as it was given.

    In text that had to be decoded first (base64, `%E5`, full-width letters) they are those of the nearest place that
    is known. `masked` shows the edges alone. `confidence` from 0 to 1: 1 has a check digit or a prefix of its own,
    0.5 is a shape that others share. `mark` is a hash of what was found: keep it in memory only.
    """

    kind: str
    start: int
    end: int
    confidence: float
    masked: str = ""
    mark: bytes = b""


@dataclass(frozen=True, slots=True)
class Names:
    """Family and given names, in kanji."""

    family: frozenset[str]
    given: frozenset[str]


@dataclass(frozen=True, slots=True)
class Options:
    """What to look for beyond the rules, and what not to tell.

    `names` finds Japanese names without a title or a label; `allow` is a pattern of whole findings that do not
    count; `paths` a pattern of whole paths that are to be told. `deadline` is a time of `time.thread_time`: a busy
    machine does not make a text look longer.
    """

    names: Names | None = None
    allow: re.Pattern[str] | None = None
    paths: re.Pattern[str] | None = None
    deadline: float | None = None

    @property
    def salt(self) -> bytes:
        """Tells results of other options apart in a cache."""
        patterns = [p.pattern if p else "" for p in (self.allow, self.paths)]
        told = "\0".join(("names" if self.names else "", *patterns))
        return hashlib.sha256(told.encode("utf-8", "surrogatepass")).digest()


@dataclass(frozen=True, slots=True)
class Result:
    """The hits of one text, what in it could not be read (a reason each), and the paths that were asked for."""

    hits: tuple[Hit, ...] = ()
    unseen: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


CLEAN = Result()


class Cache:
    """Results by the SHA-256 of a text, the oldest forgotten first. Holds no text. Threads may share it."""

    def __init__(self, entries: int = 50_000) -> None:
        """`entries`: how many texts to remember (about 200 bytes each where nothing was found)."""
        self._entries = entries
        self._known: OrderedDict[bytes, Result] = OrderedDict()
        self._lock = Lock()
        self.hits = 0
        self.misses = 0

    @staticmethod
    def key(text: str, salt: bytes = b"") -> bytes:
        """The name of a text; `salt` tells results of other options apart. Lone surrogates are taken as they are."""
        return hashlib.sha256(salt + text.encode("utf-8", "surrogatepass")).digest()

    def get(self, key: bytes) -> Result | None:
        """The result of a text seen before."""
        with self._lock:
            result = self._known.get(key)
            if result is None:
                self.misses += 1
            else:
                self.hits += 1
                self._known.move_to_end(key)
            return result

    def put(self, key: bytes, result: Result) -> None:
        """Remember a result."""
        with self._lock:
            self._known[key] = result
            if len(self._known) > self._entries:
                self._known.popitem(last=False)

    def __len__(self) -> int:
        return len(self._known)
