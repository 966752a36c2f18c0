"""Send calls as a load says, over kept-alive connections, from one event loop."""

from __future__ import annotations

import asyncio
import gc
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from urllib.parse import urlsplit

from miyabi_llm.bench.engine.connection import (
    KERNEL_STAMPS,
    Connection,
    PlainConnection,
    StampedConnection,
    clock_offset,
)
from miyabi_llm.bench.engine.drive import Drive
from miyabi_llm.bench.engine.times import arrivals
from miyabi_llm.bench.values import Load, Run, Source, Target
from miyabi_llm.types import Event, OnEvent, silent

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

    def __enter__(self) -> Engine:
        self._runner.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        for pool in self._idle:
            for connection in pool:
                connection.close()
        self._runner.__exit__(kind, e, tb)

    def run(self, load: Load, source: Source, on_event: OnEvent = silent, times: Iterator[float] | None = None) -> Run:
        """Send what `source` gives, as `load` says; `times` are the arrivals of an open loop, in seconds.

        Ctrl-C ends it: what was told to `source` until then stays told. Never raises for what servers do.
        """
        self._offset = clock_offset()
        with _calm():
            return self._runner.run(self._run(load, source, on_event, times))

    async def _run(self, load: Load, source: Source, on_event: OnEvent, times: Iterator[float] | None) -> Run:
        drive = Drive(load, source, self, times or self._times(load))
        await self._open(load)
        drive.begin()
        try:
            while not drive.over.is_set():
                try:
                    await asyncio.wait_for(drive.over.wait(), 0.5)
                except TimeoutError:
                    on_event(Event("progress", "requests", done=drive.done, total=load.requests, unit="requests"))
        finally:
            run = drive.end()
        return run

    async def _open(self, load: Load) -> None:
        """Open connections beforehand: connecting is not what is measured."""
        wanted = load.concurrency if load.rate is None else min(load.concurrency or PREOPEN, PREOPEN)
        for index, pool in enumerate(self._idle):
            for stale in [c for c in pool if not c.open]:
                pool.remove(stale)
            for _ in range(max(0, (wanted or 1) - len(pool))):
                try:
                    pool.append(await self.connect(index))
                except (OSError, TimeoutError):
                    break  # the first call says it better

    def idle(self, target: int) -> Connection | None:
        """An open connection that waits, if there is one."""
        pool = self._idle[target]
        while pool:
            connection = pool.pop()
            if connection.open:
                return connection
        return None

    def give_back(self, target: int, connection: Connection) -> None:
        """A connection whose call is over."""
        if connection.open:
            self._idle[target].append(connection)

    @staticmethod
    def _times(load: Load) -> Iterator[float] | None:
        return None if load.rate is None else arrivals(load.rate, load.arrival, load.seed)

    async def connect(self, target: int) -> Connection:
        """A new connection. Raises OSError, TimeoutError."""
        url = urlsplit(self._targets[target].endpoint.base_url)
        host, port = url.hostname or "127.0.0.1", url.port or (443 if url.scheme == "https" else 80)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_S):
            if url.scheme == "https":
                import ssl

                plain = PlainConnection(loop)
                await plain.connect(host, port, ssl.create_default_context())
                return plain
            made = StampedConnection(loop) if self._stamps else PlainConnection(loop)
            await made.connect(host, port)
            made.offset = self._offset
            return made


@contextmanager
def _calm() -> Iterator[None]:
    """No garbage collection while we measure: what exists is set aside, what comes is freed by its counts."""
    was = gc.isenabled()
    gc.collect()
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
