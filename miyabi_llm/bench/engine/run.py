"""Send calls as a load says, over kept-alive connections, from one event loop."""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from miyabi_llm.bench.engine.connection import (
    KERNEL_STAMPS,
    Address,
    Connection,
    PlainConnection,
    StampedConnection,
    clock_offset,
)
from miyabi_llm.bench.engine.drive import Drive
from miyabi_llm.bench.engine.times import arrivals
from miyabi_llm.bench.values import Load, Run, Source, Target
from miyabi_llm.types import Event, OnEvent, silent

if TYPE_CHECKING:
    import ssl

CONNECT_S = 10.0
PREOPEN = 64  # connections that are opened before an open loop begins


class Engine:
    """A client for some targets; connections stay open from run to run. Use it as a context manager.

    `stamps` False leaves the kernel's receive times alone (they cost a little).
    """

    def __init__(self, targets: Sequence[Target], *, stamps: bool = True) -> None:
        self._targets = tuple(targets)
        self._stamps = stamps and KERNEL_STAMPS
        self._offset = clock_offset()
        self._runner = asyncio.Runner(loop_factory=loop_factory())
        self._idle: list[deque[Connection]] = [deque() for _ in targets]
        self._addresses: dict[int, Sequence[Address]] = {}
        self._drive: Drive | None = None

    def __enter__(self) -> Engine:
        self._runner.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        for pool in self._idle:
            for connection in pool:
                connection.close()
        self._runner.__exit__(kind, e, tb)

    def run(
        self,
        load: Load,
        source: Source,
        on_event: OnEvent = silent,
        times: Iterator[float] | None = None,
        *,
        at_ns: int = 0,
    ) -> Run:
        """Send what `source` gives, as `load` says; `times` are the arrivals of an open loop, in seconds.

        `at_ns` is when to begin, by `time.perf_counter_ns`; at once when it is past. Ctrl-C ends it: what was told to
        `source` until then stays told. Never raises for what servers do; what `source` raises ends the run.
        """
        self._offset = clock_offset()
        for pool in self._idle:
            for connection in pool:
                connection.offset = self._offset
        if times is None and load.rate is not None:
            times = arrivals(load.rate, load.arrival, load.seed)
        with _calm():
            return self._runner.run(self._run(load, source, on_event, times, at_ns))

    def stop(self, why: str) -> None:
        """End the run in progress now, from a signal handler or another thread; what is in flight is cancelled."""
        drive = self._drive
        if drive is not None:
            self._runner.get_loop().call_soon_threadsafe(drive.abort, why)

    async def _run(
        self, load: Load, source: Source, on_event: OnEvent, times: Iterator[float] | None, at_ns: int
    ) -> Run:
        loop = asyncio.get_running_loop()
        self._drive = drive = Drive(load, source, self, times)
        loop.set_exception_handler(drive.broke)
        try:
            await self._open(load, PREOPEN if times is not None else load.concurrency or 1)
            while (left := at_ns - time.perf_counter_ns()) > 0:
                await asyncio.sleep(left / 1e9)
            drive.begin(at_ns)
            while not drive.over.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(drive.over.wait(), 0.5)
                on_event(Event("progress", "requests", done=drive.done, total=load.requests, unit="requests"))
        finally:
            self._drive = None
            run = drive.end(lambda: (clock_offset() - self._offset) / 1e9)
            loop.set_exception_handler(None)
        if drive.bug is not None:
            raise drive.bug
        return run

    async def _open(self, load: Load, wanted: int) -> None:
        """Open connections beforehand: connecting is not what is measured."""
        wanted = min(wanted, load.concurrency or wanted)
        await asyncio.sleep(0.001)  # the loop hears which servers have closed since the last run
        for index, pool in enumerate(self._idle):
            for stale in [c for c in pool if not c.open]:
                pool.remove(stale)
            for _ in range(max(0, wanted - len(pool))):
                try:
                    pool.append(await self.connect(index))
                except (OSError, TimeoutError, ValueError):
                    break  # the first call says it better

    def idle(self, target: int) -> Connection | None:
        """An open connection that waits, if there is one."""
        pool = self._idle[target]
        while pool:
            connection = pool.pop()
            if connection.open:
                return connection
        return None

    def spare(self, target: int) -> int:
        """How many connections wait."""
        return len(self._idle[target])

    def give_back(self, target: int, connection: Connection) -> None:
        """A connection whose call is over."""
        if connection.open:
            self._idle[target].append(connection)

    async def connect(self, target: int) -> Connection:
        """A new connection. Raises OSError, TimeoutError; ValueError for an address that is none."""
        url = urlsplit(self._targets[target].endpoint.base_url)
        host, port = url.hostname or "127.0.0.1", url.port or (443 if url.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            if url.scheme == "https" or not self._stamps:
                plain = PlainConnection(loop)
                await plain.connect(host, port, _tls() if url.scheme == "https" else None)
                return plain
            if target not in self._addresses:  # asked for once: a name server is not what is measured
                self._addresses[target] = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            made = StampedConnection(loop)
            await made.connect(self._addresses[target])
            made.offset = self._offset
            return made


def _tls() -> ssl.SSLContext:
    import ssl

    return ssl.create_default_context()


@contextmanager
def _calm() -> Iterator[None]:
    """No garbage collection while we measure: what exists is set aside, what comes is freed by its counts."""
    was = gc.isenabled()
    gc.collect(1)  # the old generation takes long and is set aside all the same
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if was:
            gc.enable()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop where it is installed: its timers are about ten times as exact."""
    try:
        import uvloop
    except ImportError:  # no such package on Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop
