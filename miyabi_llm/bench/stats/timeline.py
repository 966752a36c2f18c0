"""Amounts over time in fixed memory: how much came within a window that is known only afterwards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BINS = 65_536
FINEST_NS = 1_000_000


class Timeline:
    """`rows` sums side by side in bins of time from `origin_ns` on.

    Bins are a millisecond wide, and twice as wide each time the run outgrows them, so that a bin is never more than
    1/32,768 of the time they span, once that is more than half a minute.
    """

    def __init__(self, rows: int, origin_ns: int) -> None:
        self._bins = np.zeros((rows, BINS), dtype=np.float64)
        self._origin = origin_ns
        self._width = FINEST_NS

    def add(self, times_ns: NDArray[np.int64], amounts: NDArray[np.float64]) -> None:
        """Add `amounts[row, i]` at `times_ns[i]`; what is before the origin counts at it."""
        if not len(times_ns):
            return
        past = np.maximum(times_ns - self._origin, 0)
        while int(past.max()) // self._width >= BINS:
            self._coarser()
        where = past // self._width
        for row, values in enumerate(amounts):
            self._bins[row] += np.bincount(where, weights=values, minlength=BINS)

    def merge(self, other: Timeline) -> None:
        """Take in another one's sums, each at the middle of its bin."""
        used = np.flatnonzero(other._bins.any(axis=0))
        self.add(other._origin + used * other._width + other._width // 2, other._bins[:, used])

    def within(self, windows: Sequence[tuple[int, int]]) -> NDArray[np.float64]:
        """The sum of each row in each window (begin, end): shape (rows, windows).

        A bin that lies across a bound counts by its share.
        """
        edges = (np.arange(BINS + 1) * self._width).astype(np.float64)
        bounds = np.array(windows, dtype=np.int64).reshape(-1, 2) - self._origin
        sums = np.concatenate([np.zeros((len(self._bins), 1)), np.cumsum(self._bins, axis=1)], axis=1)
        at = [np.interp(bounds.astype(np.float64), edges, row) for row in sums]
        return np.array([reached[:, 1] - reached[:, 0] for reached in at])

    def series(self, row: int, step_s: float) -> tuple[tuple[float, float], ...]:
        """(seconds since the origin, amount per second) in steps of at least `step_s`, up to the last amount."""
        per = max(1, round(step_s * 1e9 / self._width))
        seconds = per * self._width / 1e9
        filled = np.flatnonzero(self._bins[row])
        if not len(filled):
            return ()
        last = (int(filled[-1]) // per + 1) * per
        values = np.zeros(last)
        values[: min(last, BINS)] = self._bins[row][:last]
        rates = values.reshape(-1, per).sum(axis=1) / seconds
        return tuple((i * seconds, float(rate)) for i, rate in enumerate(rates))

    def _coarser(self) -> None:
        half = self._bins.reshape(len(self._bins), BINS // 2, 2).sum(axis=2)
        self._bins[:, : BINS // 2] = half
        self._bins[:, BINS // 2 :] = 0
        self._width *= 2
