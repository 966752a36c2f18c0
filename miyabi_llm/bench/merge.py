"""Several blocks of one load as one: the client's health over all of them, and how a load is cut into blocks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from miyabi_llm.bench.values import ClientHealth, Lag, Load, Run

BLOCK_S = 5.0  # of a target before the next one has its turn: what disturbs a machine lasts longer
BLOCK_REQUESTS = 4  # of each stream: the first ones of a block all begin at once
LEAST_BLOCKS = 5  # fewer tell nothing of the spread between them


def blocks(load: Load, *, one: bool) -> tuple[Load, ...]:
    """The load in pieces, for targets that take turns; the whole when there is but `one`."""
    if one:
        return (load,)
    if load.requests is None:
        seconds = load.duration_s or BLOCK_S
        count = max(LEAST_BLOCKS, round(seconds / BLOCK_S))
        return tuple(replace(load, duration_s=seconds / count, seed=load.seed + i) for i in range(count))
    count = max(1, min(LEAST_BLOCKS, load.requests // (BLOCK_REQUESTS * (load.concurrency or 1))))
    sizes = [load.requests // count + (i < load.requests % count) for i in range(count)]
    seconds_each = None if load.duration_s is None else load.duration_s / count
    return tuple(replace(load, requests=n, duration_s=seconds_each, seed=load.seed + i) for i, n in enumerate(sizes))


def health(runs: Sequence[Run]) -> ClientHealth:
    """The client over all blocks: the worst of its delays and of its processor time, the mean of what it achieved."""
    seconds = [max(1e-9, (r.end_ns - r.begin_ns) / 1e9) for r in runs]
    achieved = sum(r.health.achieved * s for r, s in zip(runs, seconds, strict=True)) / sum(seconds)
    offered = sum(r.health.offered * s for r, s in zip(runs, seconds, strict=True)) / sum(seconds)
    return replace(
        runs[0].health,
        send_lag=_worst(runs, lambda h: h.send_lag),
        read_lag=_worst(runs, lambda h: h.read_lag),
        loop_lag=_worst(runs, lambda h: h.loop_lag),
        cpu=max(r.health.cpu for r in runs),
        offered=offered,
        achieved=achieved,
        kernel_stamps=all(r.health.kernel_stamps for r in runs),
        clock_step=max((r.health.clock_step for r in runs), key=abs),
    )


def together(healths: Sequence[ClientHealth]) -> ClientHealth:
    """The worst of several targets' healths, part by part."""
    worst = min(healths, key=lambda h: h.achieved / h.offered if h.offered else 1.0)
    return replace(
        worst,
        send_lag=_latest(h.send_lag for h in healths),
        read_lag=_latest(h.read_lag for h in healths),
        loop_lag=_latest(h.loop_lag for h in healths),
        cpu=max(h.cpu for h in healths),
        kernel_stamps=all(h.kernel_stamps for h in healths),
        clock_step=max((h.clock_step for h in healths), key=abs),
    )


def _latest(lags: Iterable[Lag | None]) -> Lag | None:
    return max((lag for lag in lags if lag is not None), key=lambda lag: lag.p99, default=None)


def _worst(runs: Sequence[Run], which: Callable[[ClientHealth], Lag | None]) -> Lag | None:
    found = [lag for r in runs if (lag := which(r.health)) is not None]
    if not found:
        return None
    n = sum(lag.n for lag in found)
    p50 = sum(lag.p50 * lag.n for lag in found) / n
    return Lag(n, p50, max(lag.p99 for lag in found), max(lag.worst for lag in found))
