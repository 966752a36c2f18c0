"""What the client did to the numbers: its own delays, and whether they are too large to print the others."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from miyabi_llm.bench.values import ClientHealth, Lag

KEEP = 200_000  # looks that are kept; of more, every second one, then every fourth


class Delays:
    """Seconds of delay, in bounded memory: when it is full every second value is dropped, and so on."""

    def __init__(self) -> None:
        self._values = array("d")
        self._step = self._count = 0
        self.worst = 0.0

    def add(self, seconds: float) -> None:
        """One look."""
        self.worst = max(self.worst, seconds)
        self._count += 1
        if self._count & ((1 << self._step) - 1):
            return
        self._values.append(seconds)
        if len(self._values) >= KEEP:
            self._values = self._values[::2]
            self._step += 1

    @property
    def values(self) -> Sequence[float]:
        """What was kept."""
        return self._values

    def lag(self) -> Lag | None:
        """Its percentiles; None without a look."""
        if not self._values:
            return None
        ordered = sorted(self._values)
        last = len(ordered) - 1
        return Lag(self._count, ordered[last // 2], ordered[round(last * 0.99)], self.worst)


# Limits past which a result is not printed: seconds, or shares.
READ_LAG_P99 = 0.050  # pieces that wait together take the stamp of the last; see docs/explanation/bench-client.md
CLOCK_STEP = 0.002  # the kernel stamps by the wall clock
LOOP_LAG_P99 = 0.050
SEND_LAG_P99 = 0.050
CPU = 0.95  # of a core, per process
OFFERED = 0.95  # of what was asked for must have been sent
# of a stream may be idle between its answers, all in all: with one stream against a fast server it is our own reading
IDLE = 0.25


def invalid(health: ClientHealth) -> tuple[str, ...]:
    """Why the numbers must not be used; empty when they may. Pure."""
    reasons = []
    # with kernel stamps the times are right however late we read; without, our lateness is in them
    if not health.kernel_stamps and health.loop_lag and health.loop_lag.p99 > LOOP_LAG_P99:
        reasons.append(f"the client's loop was {health.loop_lag.p99 * 1e3:.0f} ms late at p99")
    if health.read_lag and health.read_lag.p99 > READ_LAG_P99:
        reasons.append(f"answers were read {health.read_lag.p99 * 1e3:.0f} ms late at p99")
    if health.kernel_stamps and abs(health.clock_step) > CLOCK_STEP:
        reasons.append(f"the clock was set by {health.clock_step * 1e3:+.0f} ms while we measured")
    if health.send_lag and health.send_lag.p99 > SEND_LAG_P99:
        reasons.append(f"requests left {health.send_lag.p99 * 1e3:.0f} ms late at p99")
    missing = health.offered - health.achieved
    if missing > max((1 - OFFERED) * health.offered, IDLE if health.send_lag is None else 0.0):
        reasons.append(f"{health.achieved:.1f} of {health.offered:.1f} were achieved")
    if health.cpu > CPU:
        reasons.append(f"the client used {health.cpu:.0%} of a core: give it more with --processes")
    return tuple(reasons)
