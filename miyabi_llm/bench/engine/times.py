"""When requests are sent: exact, seeded, from one generator however many processes send them. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator

from miyabi_llm.bench.values import Arrival


def arrivals(rate: float, kind: Arrival, seed: int, shard: int = 0, shards: int = 1) -> Iterator[float]:
    """Seconds from the begin at which calls are sent, for one of `shards` processes that share `rate` calls/s.

    Poisson: gaps are exponential with mean 1/rate, all drawn from one generator; each process takes every `shards`-th
    arrival of the same sequence, so that their sum is the Poisson process itself (dispersion index 1) and not
    `shards` copies of one.
    """
    if rate <= 0:
        raise ValueError("the rate must be above 0")
    generator = random.Random(seed)
    at, number = 0.0, 0
    while True:
        if kind == "poisson":
            at += generator.expovariate(rate)
        else:
            at = number / rate
        if number % shards == shard:
            yield at
        number += 1


def dispersion(times: list[float], window: float) -> float:
    """Variance over mean of the counts in windows of so many seconds: 1 for a Poisson process, 0 for a constant one.

    Cox and Lewis, The Statistical Analysis of Series of Events, 1966.
    """
    counts = [0] * int(max(times) / window)
    for t in times:
        if (i := int(t / window)) < len(counts):
            counts[i] += 1
    mean = sum(counts) / len(counts)
    return sum((c - mean) ** 2 for c in counts) / (len(counts) - 1) / mean
