"""One run: who sends when, what is in flight, when it is over, and how late we were ourselves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from miyabi_llm.bench.engine.connection import Connection
from miyabi_llm.bench.engine.health import Delays
from miyabi_llm.bench.values import Call, ClientHealth, Load, Raw, Run, Source

TICK = 0.02  # seconds between looks at our own lateness
SWEEP = 0.25  # seconds between looks for calls that take too long
HOPELESS_S = 5.0  # without one success while every call fails: the server is gone
PAUSE_S = 0.2  # of a stream whose call failed at once
BACKLOG = 4096  # results that may wait to be read


class Pool(Protocol):
    """Where connections come from."""

    def idle(self, target: int) -> Connection | None:
        """One that waits."""

    def give_back(self, target: int, connection: Connection) -> None:
        """One that is free again."""

    async def connect(self, target: int) -> Connection:
        """A new one."""


class Drive:
    """Drives one load to its end; `over` is set then. Lives on the running loop."""

    def __init__(self, load: Load, source: Source, pool: Pool, times: Iterator[float] | None) -> None:
        self._load, self._source, self._pool, self._times = load, source, pool, times
        self._loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        self.done = self.failed = self._issued = 0
        self._flying: dict[int, tuple[Raw, Connection | None]] = {}
        self._waiting: deque[tuple[int, int]] = deque()  # open loop: (number, intended), for a free place
        self._tasks: set[asyncio.Task[None]] = set()
        self._backlog: deque[Raw] = deque()
        self._reading = self._last = False
        self._aborted = ""
        self._send_lag, self._read_lag, self._loop_lag = Delays(), Delays(), Delays()
        self._begin = self._end = self._good = self._full = 0
        self._area, self._changed = 0.0, 0  # streams in flight, integrated over time
        self._cpu = 0.0
        self._timers: list[asyncio.TimerHandle] = []
        self._origin, self._origin_ns = 0.0, 0

    def begin(self) -> None:
        """Start sending."""
        self._cpu = time.process_time()
        self._begin = self._good = self._changed = time.perf_counter_ns()
        self._full = self._begin + int(self._load.ramp_s * 1e9)
        self._loop.call_later(TICK, self._tick, time.perf_counter() + TICK)
        self._sweep()
        if self._load.duration_s is not None:
            self._timers.append(self._loop.call_later(self._load.duration_s, self._stop_sending))
        if self._times is not None:
            self._origin = self._loop.time() + 0.01
            self._origin_ns = time.perf_counter_ns() + 10_000_000
            self._arm()
            return
        streams = self._load.concurrency or 1
        for stream in range(streams):
            delay = self._load.ramp_s * stream / streams
            self._loop.call_later(delay, self._next, stream)

    def end(self) -> Run:
        """Stop whatever still runs, read what waits, and tell how it went."""
        self._stop_sending()
        for timer in self._timers:
            timer.cancel()
        for raw, connection in list(self._flying.values()):
            if connection is not None:
                connection.give_up("cancelled")
            elif not raw.end_ns:
                self._lost(raw, "cancelled", "")
        for task in self._tasks:
            task.cancel()
        while self._backlog:
            self._source.finished(self._backlog.popleft())
        return Run(self._begin, self._end, self._issued, self.failed, self._health(), self._aborted)

    def _health(self) -> ClientHealth:
        seconds = max(1e-9, (time.perf_counter_ns() - self._begin) / 1e9)
        sending = max(1e-9, (self._end - self._begin) / 1e9)
        if self._load.rate is None:
            full = max(1e-9, (self._end - self._full) / 1e9)
            offered, achieved = float(self._load.concurrency or 1), self._area / full
        else:
            offered, achieved = self._load.rate, self._issued / sending
        return ClientHealth(
            send_lag=self._send_lag.lag() if self._times is not None else None,
            read_lag=self._read_lag.lag(),
            loop_lag=self._loop_lag.lag(),
            cpu=(time.process_time() - self._cpu) / seconds,
            processes=1,
            offered=offered,
            achieved=achieved,
            kernel_stamps=self._read_lag.lag() is not None,
        )

    # sending

    def _arm(self) -> None:
        """Open loop: set the timer of the next arrival."""
        assert self._times is not None
        if self._last or not self._more():
            self._stop_sending()
            return
        at = next(self._times)
        if self._load.duration_s is not None and at > self._load.duration_s:
            return  # the timer of the duration ends the sending
        self._timers[1:] = [self._loop.call_at(self._origin + at, self._arrive, self._origin_ns + int(at * 1e9))]

    def _arrive(self, intended: int) -> None:
        limit = self._load.concurrency
        if limit is not None and len(self._flying) >= limit:
            self._waiting.append((self._issued, intended))
            self._issued += 1
        else:
            self._issue(self._issued, intended)
        self._arm()

    def _next(self, stream: int) -> None:
        """Closed loop: the next call of a stream."""
        if not self._last and self._more():
            self._issue(stream, time.perf_counter_ns())
        else:
            self._stop_sending()

    def _more(self) -> bool:
        return self._load.requests is None or self._issued < self._load.requests

    def _issue(self, stream: int, intended: int, *, counted: bool = False) -> None:
        call = self._source.next(stream)
        if call is None:
            if not self._flying and not self._waiting:
                self._stop_sending()
            return
        self._issued += not counted
        raw = Raw(call, stream, intended)
        self._count(+1, raw)
        connection = self._pool.idle(call.target)
        if connection is not None:
            self._send(raw, connection)
            return
        task = self._loop.create_task(self._connect(raw, call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, raw: Raw, call: Call) -> None:
        try:
            connection = await self._pool.connect(call.target)
        except (OSError, TimeoutError) as e:
            self._lost(raw, "connect", str(e) or type(e).__name__)
            return
        self._send(raw, connection)

    def _send(self, raw: Raw, connection: Connection) -> None:
        self._flying[id(raw)] = (raw, connection)
        connection.send(raw, self._answered)
        if self._times is not None:
            self._send_lag.add((raw.sent_ns - raw.intended_ns) / 1e9)

    # receiving

    def _answered(self, connection: Connection, raw: Raw) -> None:
        self._pool.give_back(raw.call.target, connection)
        self._finish(raw)

    def _lost(self, raw: Raw, error: str, detail: str) -> None:
        raw.error, raw.detail, raw.end_ns = error, detail, time.perf_counter_ns()  # type: ignore[assignment]
        self._finish(raw)

    def _finish(self, raw: Raw) -> None:
        self._count(-1, raw)
        self.done += 1
        bad = bool(raw.error) or raw.status != 200
        if bad:
            self.failed += 1
            self._judge_hope()
        else:
            self._good = raw.end_ns
        for piece in raw.pieces:
            if piece.kernel_ns:
                self._read_lag.add((piece.read_ns - piece.kernel_ns) / 1e9)
        if self._source.ordered:
            self._source.finished(raw)
        else:
            self._backlog.append(raw)
            if len(self._backlog) > BACKLOG:
                self._source.finished(self._backlog.popleft())
            if not self._reading:
                self._reading = True
                self._loop.call_soon(self._read_one)
        self._go_on(raw, bad=bad)

    def _go_on(self, raw: Raw, *, bad: bool) -> None:
        if self._times is not None:
            if self._waiting and not self._last:
                number, intended = self._waiting.popleft()
                self._issue(number, intended, counted=True)
        elif bad and raw.end_ns - raw.intended_ns < PAUSE_S * 1e9:
            self._loop.call_later(PAUSE_S, self._next, raw.stream)  # a dead server must not make us spin
        else:
            self._next(raw.stream)
        self._look_over()

    def _read_one(self) -> None:
        """Read one result, then let the sockets have their turn."""
        if self._backlog:
            self._source.finished(self._backlog.popleft())
        self._reading = bool(self._backlog)
        if self._reading:
            self._loop.call_soon(self._read_one)

    def _judge_hope(self) -> None:
        streams = self._load.concurrency or 1
        if self.failed >= max(10, 2 * streams) and time.perf_counter_ns() - self._good > HOPELESS_S * 1e9:
            self._aborted = self._aborted or f"no call succeeded for {HOPELESS_S:g} s"
            self._stop_sending()

    # time

    def _count(self, change: int, raw: Raw) -> None:
        if not self._last:
            self._integrate(time.perf_counter_ns())
        if change > 0:
            self._flying[id(raw)] = (raw, None)
        else:
            self._flying.pop(id(raw), None)

    def _integrate(self, now: int) -> None:
        """Streams in flight times seconds, from the end of the ramp on."""
        if now > self._full:
            self._area += len(self._flying) * (now - max(self._changed, self._full)) / 1e9
            self._changed = now

    def _tick(self, due: float) -> None:
        now = time.perf_counter()
        self._loop_lag.add(max(0.0, now - due))
        if not self.over.is_set():
            self._loop.call_later(TICK, self._tick, now + TICK)

    def _sweep(self) -> None:
        limit = time.perf_counter_ns() - int(self._load.timeout_s * 1e9)
        for raw, connection in list(self._flying.values()):
            if connection is not None and raw.sent_ns < limit:
                connection.give_up("timeout", f"not whole after {self._load.timeout_s:g} s")
        if not self.over.is_set():
            self._loop.call_later(SWEEP, self._sweep)

    def _stop_sending(self) -> None:
        if not self._last:
            self._last, self._end = True, time.perf_counter_ns()
            self._integrate(self._end)
            self._waiting.clear()
        self._look_over()

    def _look_over(self) -> None:
        if self._last and not self._flying:
            self.over.set()
