"""Draws of whole rounds (the cluster bootstrap), for quantiles and means, without a loop over the draws. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from miyabi_llm.bench.gate.values import LEVEL, RESAMPLES, Statistic
from miyabi_llm.bench.stats.intervals import t_quantile

Floats = NDArray[np.float64]
Weights = NDArray[np.int32]  # (draws, rounds): how often each round was drawn
_CELLS = 1 << 22  # of the largest array that is made at once


def weights(rounds: int, seed: int) -> Weights:
    """`RESAMPLES` draws of `rounds` rounds out of as many, with replacement."""
    drawn = np.random.default_rng(seed).multinomial(rounds, np.full(rounds, 1 / rounds), size=RESAMPLES)
    return drawn.astype(np.int32)


def draw(clusters: Sequence[Floats], statistic: Statistic, drawn: Weights) -> tuple[float, Floats]:
    """The statistic of all values, and of each draw. Rounds must not be empty."""
    everything = np.concatenate(clusters)
    if statistic == "mean":
        sums = np.array([c.sum() for c in clusters])
        sizes = np.array([len(c) for c in clusters], dtype=np.float64)
        return float(everything.mean()), (drawn @ sums) / (drawn @ sizes)
    return float(np.quantile(everything, statistic)), _quantiles(clusters, float(statistic), drawn)


def _quantiles(clusters: Sequence[Floats], share: float, drawn: Weights) -> Floats:
    """Quantiles with linear interpolation between order statistics, as numpy's: values repeat as their round does."""
    values = np.concatenate(clusters)
    owner = np.repeat(np.arange(len(clusters)), [len(c) for c in clusters])
    order = np.argsort(values, kind="stable")
    values, owner = values[order], owner[order]
    rows = max(1, _CELLS // len(values))
    parts = []
    for begin in range(0, len(drawn), rows):
        upto = np.cumsum(drawn[begin : begin + rows][:, owner], axis=1, dtype=np.int32)
        place = share * (upto[:, -1] - 1)
        below = np.floor(place)
        low, high = (values[(upto <= k[:, None]).sum(axis=1)] for k in (below, np.ceil(place)))
        parts.append(low + (place - below) * (high - low))
    return np.concatenate(parts)


def interval(estimate: float, draws: Floats, rounds: int, looks: int = 1) -> tuple[float, float, Floats]:
    """The interval at `LEVEL`, and the draws spread as it is, so that their share beyond a bound is a p-value.

    The draws are spread about the estimate by sqrt(n / (n - 1)) t / z: with n clusters a bootstrap is too narrow by
    the first, and knows as little of the spread as Student's t with n - 1 degrees by the second. Hesterberg, What
    Teachers Should Know about the Bootstrap, The American Statistician 69, 2015, section 4. Who looks `looks` times
    and stops when it suits has as many chances to err: t is taken at that part of the error (Bonferroni).
    """
    edge = (1 - LEVEL) / 2
    spread = t_quantile(1 - edge / looks, rounds - 1) / NormalDist().inv_cdf(1 - edge)
    wide = estimate + (draws - estimate) * spread * math.sqrt(rounds / (rounds - 1))
    low, high = (float(v) for v in np.quantile(wide, [edge, 1 - edge]))
    return low, high, wide
