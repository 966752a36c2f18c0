"""One run: who sends when, what is in flight, when it is over, and how late we were ourselves."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from itertools import takewhile
from typing import Any, Protocol

from miyabi_llm.bench.engine.connection import Connection
from miyabi_llm.bench.engine.meter import Meter
from miyabi_llm.bench.values import ErrorClass, Load, Raw, Run, Source

TICK = 0.02  # seconds between looks at our own lateness
SWEEP = 0.25  # seconds between looks for calls that take too long
HOPELESS_S = 5.0  # without one success while every call fails: the server is gone
PAUSE_S = 0.2  # of a stream whose call failed at once, while nothing else succeeds either
RETRY_S = 1.0  # a kept connection that closes within it, unheard, was closing when we sent
BACKLOG = 4096  # results that may wait to be read
SPARE = 16  # idle connections an open loop keeps ready: connecting is not what is measured


class Pool(Protocol):
    """Where connections come from."""

    def idle(self, target: int) -> Connection | None:
        """One that waits."""

    def spare(self, target: int) -> int:
        """How many wait."""

    def give_back(self, target: int, connection: Connection) -> None:
        """One that is free again."""

    async def connect(self, target: int) -> Connection:
        """A new one. Raises OSError, TimeoutError, ValueError."""


class Drive:
    """Drives one load to its end; `over` is set then. Lives on the running loop."""

    def __init__(self, load: Load, source: Source, pool: Pool, times: Iterator[float] | None) -> None:
        self._load, self._source, self._pool, self._times = load, source, pool, times
        self._loop = asyncio.get_running_loop()
        self.over = asyncio.Event()
        self.bug: BaseException | None = None
        self.done = self._failed = self._sent = self._unsent = self._retried = 0
        self._due = 0  # calls whose time has come, taken from the source or waiting
        self._streams = load.concurrency or 1  # closed loop: that may have more to send
        self._flying: dict[int, tuple[Raw, Connection | None]] = {}
        self._kept: set[int] = set()  # calls in flight over a connection that had waited
        self._waiting: deque[tuple[int, int]] = deque()  # open loop: (number, intended), for a free place
        self._tasks: set[asyncio.Task[None]] = set()
        self._opening = 0
        self._backlog: deque[Raw] = deque()
        self._reading = self._last = self._arrived = False
        self._aborted = ""
        self._origin = 0
        self._bad = self._good = 0  # failures in a row; when the last success ended
        self._meter = Meter(load, open_loop=times is not None)
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def begin(self, origin_ns: int = 0) -> None:
        """Start sending; an open loop's times count from `origin_ns`, or from now."""
        self._meter.start()
        self._origin = origin_ns or self._meter.begin
        self._good = self._meter.begin
        self._tick(time.perf_counter())
        self._sweep()
        if self._load.duration_s is not None:
            self._timers["end"] = self._loop.call_later(self._load.duration_s, self._stop_sending)
        if self._times is not None:
            self._arm()
            return
        for stream in range(self._streams):
            self._loop.call_later(self._load.ramp_s * stream / self._streams, self._next, stream)

    def abort(self, reason: str) -> None:
        """End it now: what is in flight is told cancelled."""
        self._aborted = self._aborted or reason
        self._stop_sending()
        self._drop()

    def broke(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler: a bug, of ours or of the source, ends the run and is raised by it."""
        self.bug = self.bug or context.get("exception") or RuntimeError(str(context.get("message")))
        self.over.set()

    def end(self, clock_step: Callable[[], float]) -> Run:
        """Stop whatever still runs, read what waits, and tell how it went."""
        self._stop_sending()
        self._drop()
        self.over.set()
        for timer in self._timers.values():
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        while self._backlog and self.bug is None:
            self._source.finished(self._backlog.popleft())
        self._backlog.clear()
        health = self._meter.health(self._due + self._late(), self._sent, clock_step())
        times = self._meter.begin, self._meter.end
        return Run(*times, self._sent, self._failed, health, self._aborted, self._unsent, self._retried)

    def _drop(self) -> None:
        for raw, connection in list(self._flying.values()):
            if connection is not None:
                connection.give_up("cancelled")
            else:
                self._lost(raw, "cancelled", "")

    def _late(self) -> int:
        """Open loop: arrivals before the end for which we found no time at all."""
        if self._times is None or self._arrived or self._load.requests is not None or self.bug is not None:
            return 0
        seconds = (self._meter.end - self._origin) / 1e9 - TICK
        return sum(1 for _ in takewhile(lambda at: at < seconds, self._times))

    # sending

    def _arm(self) -> None:
        """Open loop: set the timer of the next arrival."""
        assert self._times is not None
        at = next(self._times, None) if self._more() else None
        if at is None:
            self._arrived = True
            self._look_over()
        elif self._load.duration_s is None or at <= self._load.duration_s:  # else its timer ends the sending
            self._wait(self._origin + int(at * 1e9))

    def _wait(self, intended: int) -> None:
        """Never send early: the loop's timers count milliseconds, and may fire one before its time."""
        wait = intended - time.perf_counter_ns()
        if wait > 0:
            self._timers["due"] = self._loop.call_later(max(wait, 1_000_000) / 1e9, self._wait, intended)
        else:
            self._loop.call_soon(self._arrive, intended)  # soon: no deeper, however many are due

    def _arrive(self, intended: int) -> None:
        if self._last:
            return
        number, limit = self._due, self._load.concurrency
        self._due += 1
        if limit is not None and len(self._flying) >= limit:
            self._waiting.append((number, intended))
        else:
            self._issue(number, intended)
        self._arm()

    def _next(self, stream: int) -> None:
        """Closed loop: the next call of a stream."""
        if self._last:
            return
        if self._more():
            self._due += 1
            self._issue(stream, time.perf_counter_ns())
        else:
            self._stop_sending()

    def _more(self) -> bool:
        return self._load.requests is None or self._due < self._load.requests

    def _issue(self, stream: int, intended: int, *, waited: bool = False) -> None:
        call = self._source.next(stream)
        if call is None:
            self._due -= 1
            self._dry()
            return
        raw = Raw(call, stream, intended)
        self._sent += 1
        self._flying[id(raw)] = (raw, None)
        connection = self._pool.idle(call.target)
        if connection is None:
            self._start(self._connect(raw, waited=waited))
        else:
            self._kept.add(id(raw))
            self._send(raw, connection, waited=waited)
        self._top_up(call.target)

    def _dry(self) -> None:
        """The source has no more: for this stream, or, in an open loop, at all."""
        self._streams -= 1
        self._meter.thinner(raw for raw, _ in self._flying.values())
        if self._times is not None:
            self._due -= len(self._waiting)
            self._waiting.clear()
            self._arrived = True
        if self._times is not None or self._streams <= 0:
            self._stop_sending()

    async def _connect(self, raw: Raw, *, waited: bool) -> None:
        try:
            connection = await self._pool.connect(raw.call.target)
        except (OSError, TimeoutError, ValueError) as e:
            if id(raw) in self._flying:
                self._lost(raw, "connect", str(e) or type(e).__name__)
            return
        if id(raw) in self._flying:
            self._send(raw, connection, waited=waited)
        else:  # told cancelled meanwhile
            self._pool.give_back(raw.call.target, connection)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (bug := task.exception()) is not None:
            self.broke(self._loop, {"exception": bug})

    def _send(self, raw: Raw, connection: Connection, *, waited: bool) -> None:
        self._flying[id(raw)] = (raw, connection)
        connection.send(raw, self._answered)
        self._meter.sent(raw, len(self._flying), waited=waited)

    def _top_up(self, target: int) -> None:
        """Open loop: have connections ready before they are needed."""
        limit = self._load.concurrency
        spare = self._pool.spare(target) + self._opening
        if self._times is None or spare >= SPARE or (limit is not None and len(self._flying) + spare >= limit):
            return
        self._opening += 1
        self._start(self._open(target))

    async def _open(self, target: int) -> None:
        try:
            self._pool.give_back(target, await self._pool.connect(target))
        except (OSError, TimeoutError, ValueError):
            pass  # the call that needs it says it better
        finally:
            self._opening -= 1

    # receiving

    def _answered(self, connection: Connection, raw: Raw) -> None:
        kept = id(raw) in self._kept
        self._kept.discard(id(raw))
        quick = raw.end_ns - raw.sent_ns < RETRY_S * 1e9
        if raw.error == "broken" and kept and not connection.heard and quick and not self.over.is_set():
            raw.error, raw.detail = "", ""
            self._retried += 1
            self._flying[id(raw)] = (raw, None)
            self._start(self._connect(raw, waited=True))
            return
        self._pool.give_back(raw.call.target, connection)
        self._finish(raw)

    def _lost(self, raw: Raw, error: ErrorClass, detail: str) -> None:
        raw.error, raw.detail, raw.end_ns = error, detail, time.perf_counter_ns()
        self._finish(raw)

    def _finish(self, raw: Raw) -> None:
        self._flying.pop(id(raw), None)
        self._meter.over(raw)
        self.done += 1
        bad = bool(raw.error) or raw.status != 200
        if bad:
            self._failed += 1
            self._bad += 1
            self._judge_hope()
        else:
            self._good, self._bad = raw.end_ns, 0
        self._hand_over(raw)
        self._go_on(raw, bad=bad)

    def _hand_over(self, raw: Raw) -> None:
        if self.bug is not None:
            return
        if self._source.ordered:
            self._source.finished(raw)
            return
        self._backlog.append(raw)
        if len(self._backlog) > BACKLOG:
            self._source.finished(self._backlog.popleft())
        if not self._reading:
            self._reading = True
            self._loop.call_soon(self._read_one)

    def _go_on(self, raw: Raw, *, bad: bool) -> None:
        if self._last:
            pass
        elif self._times is not None:
            if self._waiting:
                number, intended = self._waiting.popleft()
                self._issue(number, intended, waited=True)
        elif bad and self._bad >= self._streams and raw.end_ns - raw.intended_ns < PAUSE_S * 1e9:
            self._loop.call_later(PAUSE_S, self._next, raw.stream)  # a dead server must not make us spin
        else:
            self._next(raw.stream)
        self._look_over()

    def _read_one(self) -> None:
        """Read one result, then let the sockets have their turn."""
        self._reading = False
        if self._backlog and self.bug is None:
            raw = self._backlog.popleft()
            if self._backlog:
                self._reading = True
                self._loop.call_soon(self._read_one)
            self._source.finished(raw)

    def _judge_hope(self) -> None:
        streams = self._load.concurrency or 1
        silent = time.perf_counter_ns() - self._good > HOPELESS_S * 1e9
        if silent and self._bad >= max(10, 2 * streams) and not any(raw.pieces for raw, _ in self._flying.values()):
            self._aborted = self._aborted or f"no call succeeded for {HOPELESS_S:g} s"
            self._stop_sending()

    # time

    def _tick(self, due: float) -> None:
        now = time.perf_counter()
        self._meter.ticks.add(max(0.0, now - due))
        if not self.over.is_set():
            self._timers["tick"] = self._loop.call_later(TICK, self._tick, now + TICK)

    def _sweep(self) -> None:
        limit = time.perf_counter_ns() - int(self._load.timeout_s * 1e9)
        for raw, connection in list(self._flying.values()):
            if connection is not None and raw.sent_ns < limit:
                connection.give_up("timeout", f"not whole after {self._load.timeout_s:g} s")
        if not self.over.is_set():
            self._timers["sweep"] = self._loop.call_later(SWEEP, self._sweep)

    def _stop_sending(self) -> None:
        if not self._last:
            self._last = True
            self._meter.stop(raw for raw, _ in self._flying.values())
            self._unsent = len(self._waiting)
            self._waiting.clear()
        self._look_over()

    def _look_over(self) -> None:
        if self._arrived and not self._waiting and not self._last:
            self._stop_sending()
        if self._last and not self._flying:
            self.over.set()
