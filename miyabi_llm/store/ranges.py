"""Sets of bytes of a file as sorted half-open ranges: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Ranges:
    """A set of byte offsets, kept as disjoint `[start, end)` ranges in order."""

    __slots__ = ("_ends", "_starts")

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        """Put `[start, end)` in; neighbours that touch become one."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def discard(self, start: int, end: int) -> None:
        """Take `[start, end)` out."""
        if start >= end:
            return
        kept = [(a, b) for a, b in self.pairs() if b <= start or a >= end]
        kept += [(a, start) for a, b in self.pairs() if a < start < b]
        kept += [(end, b) for a, b in self.pairs() if a < end < b]
        kept.sort()
        self._starts, self._ends = [a for a, _ in kept], [b for _, b in kept]

    def meets(self, start: int, end: int) -> bool:
        """Whether any byte of `[start, end)` is in."""
        i = bisect_right(self._ends, start)
        return start < end and i < len(self._starts) and self._starts[i] < end

    def pairs(self) -> list[tuple[int, int]]:
        """The ranges in order."""
        return list(zip(self._starts, self._ends, strict=True))

    def copy(self) -> Ranges:
        """A set of its own with the same bytes."""
        other = Ranges()
        other._starts, other._ends = self._starts[:], self._ends[:]
        return other

    @property
    def prefix(self) -> int:
        """How many bytes from offset 0 on are in without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    @property
    def end(self) -> int:
        """One past the highest byte."""
        return self._ends[-1] if self._ends else 0

    @property
    def total(self) -> int:
        """How many bytes are in."""
        return sum(self._ends) - sum(self._starts)
