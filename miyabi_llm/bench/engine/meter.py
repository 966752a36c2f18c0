"""What a run sees of itself: its own delays, how many streams were really busy, and the processor time it took."""

from __future__ import annotations

import time
from collections.abc import Iterable

from miyabi_llm.bench.engine.health import Delays
from miyabi_llm.bench.values import ClientHealth, Load, Raw

LEAST_WINDOW = 50_000_000  # nanoseconds; in less, a mean of busy streams says nothing


class Meter:
    """Looks on while a drive sends. Times are nanoseconds of `time.perf_counter_ns`.

    Busy streams are counted by the stamps of their calls, from sent to the end, so that an answer which the kernel has
    and we have not read counts as over. They are averaged from when all streams are busy (after the ramp) until the
    first of them has no more to send.
    """

    def __init__(self, load: Load, *, open_loop: bool) -> None:
        self._load, self._open = load, open_loop
        self.sends, self.reads, self.ticks = Delays(), Delays(), Delays()
        self.begin = self.end = 0
        self._full = self._thin = 0
        self._area = self._peak = 0
        self._cpu = 0.0

    def start(self) -> None:
        """Sending begins."""
        self._cpu = time.process_time()
        self.begin = time.perf_counter_ns()

    def sent(self, raw: Raw, busy: int, *, waited: bool) -> None:
        """A call left; `busy` are in flight with it. `waited`: for a free place, which is no lag of ours."""
        if self._open and not waited:
            self.sends.add((raw.sent_ns - raw.intended_ns) / 1e9)
        if busy > self._peak:
            self._peak = busy
            if busy == self._wanted:
                self._full = max(raw.sent_ns, self.begin + int(self._load.ramp_s * 1e9))

    def over(self, raw: Raw) -> None:
        """A call has its end."""
        for piece in raw.pieces:
            if piece.kernel_ns:
                self.reads.add((piece.read_ns - piece.kernel_ns) / 1e9)
        if not self._thin:
            self._add(raw, raw.end_ns)

    def thinner(self, flying: Iterable[Raw]) -> None:
        """From here on not all streams have something to send."""
        if not self._thin:
            self._thin = time.perf_counter_ns()
            for raw in flying:
                self._add(raw, self._thin)

    def stop(self, flying: Iterable[Raw]) -> None:
        """Sending ends."""
        self.thinner(flying)
        self.end = time.perf_counter_ns()
        self._cpu = time.process_time() - self._cpu

    def health(self, due: int, sent: int, clock_step: float) -> ClientHealth:
        """After `stop`: how well the client kept up. Open loop: of `due` calls, `sent` left in time."""
        seconds = max(1e-9, (self.end - self.begin) / 1e9)
        offered, achieved = (due / seconds, sent / seconds) if self._open else (float(self._wanted), self._busy())
        reads = self.reads.lag()
        return ClientHealth(
            send_lag=self.sends.lag(),
            read_lag=reads,
            loop_lag=self.ticks.lag(),
            cpu=self._cpu / seconds,
            processes=1,
            offered=offered,
            achieved=achieved,
            kernel_stamps=reads is not None,
            clock_step=clock_step,
        )

    @property
    def _wanted(self) -> int:
        """Streams of a closed loop that can be busy at once."""
        streams = self._load.concurrency or 1
        return streams if self._load.requests is None else min(streams, self._load.requests)

    def _busy(self) -> float:
        window = self._thin - self._full
        return self._area / window if self._full and window >= LEAST_WINDOW else float(self._peak)

    def _add(self, raw: Raw, until: int) -> None:
        if raw.sent_ns and self._full:
            self._area += max(0, until - max(raw.sent_ns, self._full))
