"""Quantiles of any number of values in fixed memory, with a stated relative error.

Buckets whose bounds grow by a constant factor, as in Masson, Rim, Lee, DDSketch, VLDB 2019. The published packages
take one value at a time in Python; thousands of chunks a second need whole arrays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ERROR = 0.005  # a quantile is within so much of its true value, relatively
SMALLEST, LARGEST = 1e-9, 1e9
_GAMMA = (1 + ERROR) / (1 - ERROR)
_LOG = math.log(_GAMMA)
_FIRST = math.ceil(math.log(SMALLEST) / _LOG)
_BINS = math.ceil(math.log(LARGEST) / _LOG) - _FIRST + 2  # number 0 holds what is below SMALLEST, exact zeros mostly


class Sketch:
    """Counts of values >= 0 by size; about 33 kB. Sum, least and most are exact."""

    def __init__(self) -> None:
        self._bins = np.zeros(_BINS, dtype=np.float64)
        self.n = 0
        self._weight = 0.0
        self._sum = self._squares = 0.0
        self.least, self.most = math.inf, -math.inf

    def add(self, values: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> None:
        """Add values, each as many times as its weight says."""
        if not len(values):
            return
        with np.errstate(divide="ignore"):
            where = np.ceil(np.log(np.maximum(values, 0.0)) / _LOG) - _FIRST + 1
        where = np.where(values < SMALLEST, 0, np.clip(where, 1, _BINS - 1)).astype(np.int64)
        self._bins += np.bincount(where, weights=weights, minlength=_BINS)
        heavy = np.ones_like(values) if weights is None else weights
        self.n += round(float(heavy.sum()))
        self._weight += float(heavy.sum())
        self._sum += float((values * heavy).sum())
        self._squares += float((values * values * heavy).sum())
        self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    def merge(self, other: Sketch) -> None:
        """Take in what another one has seen."""
        self._bins += other._bins
        self.n += other.n
        self._weight += other._weight
        self._sum += other._sum
        self._squares += other._squares
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    @property
    def mean(self) -> float:
        """The exact mean; nan when empty."""
        return self._sum / self._weight if self._weight else math.nan

    @property
    def sd(self) -> float:
        """The standard deviation of the sample; nan below two values."""
        if self._weight < 2:
            return math.nan
        spread = max(0.0, self._squares - self._sum * self._sum / self._weight)
        return math.sqrt(spread / (self._weight - 1))

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The values at those shares (0 to 1), each within `ERROR` of that of rank floor(share * (n - 1))."""
        if not self.n:
            return [math.nan for _ in shares]
        ahead = np.cumsum(self._bins)
        found = np.searchsorted(ahead, [s * (self._weight - 1) for s in shares], side="right")
        return [self._value(int(min(i, _BINS - 1))) for i in found]

    def _value(self, bin_: int) -> float:
        if bin_ == 0:
            return max(0.0, self.least) if self.least < SMALLEST else 0.0
        middle = 2 * math.exp((bin_ - 1 + _FIRST) * _LOG) / (1 + _GAMMA)
        return min(max(middle, self.least), self.most)
