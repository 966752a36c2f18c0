"""One figure of many requests: exact while they are few enough to keep, a sketch of fixed size after that."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from miyabi_llm.bench.stats.sketch import ERROR, Sketch

KEEP = 50_000  # values that are kept as they are


class Column:
    """Values in the order they came; from `KEEP` on only their sketch, with mean, sd, least and most still exact."""

    def __init__(self) -> None:
        self._kept = array("d")
        self._sketch: Sketch | None = None

    def add(self, value: float) -> None:
        """One more."""
        self._kept.append(value)
        if len(self._kept) >= KEEP:
            self._fold()

    def merge(self, other: Column) -> None:
        """Take in another one's values."""
        self._kept.extend(other._kept)
        if other._sketch is not None:
            self._fold()
            assert self._sketch is not None
            self._sketch.merge(other._sketch)
        elif len(self._kept) >= KEEP:
            self._fold()

    @property
    def values(self) -> Sequence[float]:
        """Every value, in order; empty when there were too many to keep."""
        return self._kept if self._sketch is None else array("d")

    @property
    def error(self) -> float:
        """The relative error of the quantiles: 0 while all values are kept."""
        return 0.0 if self._sketch is None else ERROR

    def array(self) -> NDArray[np.float64]:
        """The kept values as an array of their own."""
        return np.array(self.values, dtype=np.float64)

    def sketch(self) -> Sketch:
        """What is known of all values, once they are too many."""
        found = Sketch()
        if self._sketch is not None:
            found.merge(self._sketch)
        found.add(np.array(self._kept, dtype=np.float64))
        return found

    @property
    def n(self) -> int:
        """How many there were."""
        return len(self._kept) + (0 if self._sketch is None else self._sketch.n)

    @property
    def mean(self) -> float:
        """Their mean; nan when there are none."""
        return self.sketch().mean if self._sketch is not None else math.fsum(self._kept) / max(1, len(self._kept))

    def _fold(self) -> None:
        self._sketch = self._sketch or Sketch()
        self._sketch.add(np.array(self._kept, dtype=np.float64))
        self._kept = array("d")
