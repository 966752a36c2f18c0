"""The line before the model: one generation at a time, a bounded number waiting, the others turned away."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from miyabi_llm.embedded.asked import Refused
from miyabi_llm.embedded.engine import Done, Engine, Prompt

RETRY_S = 5  # what a client that is turned away is told to wait


class Line:
    """All methods are called in the event loop; the model computes in a thread of its own."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._lock = asyncio.Lock()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="generate")
        self.waiting = 0

    @property
    def busy(self) -> bool:
        """Whether a generation is in progress."""
        return self._lock.locked()

    def check(self) -> None:
        """Raises Refused when nobody can be added."""
        if self.busy and self.waiting >= self._places:
            raise Refused(
                503, "overloaded_error", f"one request at a time; {self.waiting} are waiting already", retry_s=RETRY_S
            )

    async def generate(self, engine: Engine, prompt: Prompt, cancel: threading.Event) -> AsyncIterator[str | Done]:
        """Wait for our turn, then the pieces of text as they come, and how it ended.

        `cancel` ends it at the next token; closing the iterator sets it. What the engine raises comes out here.
        """
        self.check()
        self.waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self.waiting -= 1
        loop = asyncio.get_running_loop()
        said: asyncio.Queue[str | Done | BaseException] = asyncio.Queue()

        def put(item: str | Done | BaseException) -> None:
            loop.call_soon_threadsafe(said.put_nowait, item)

        def run() -> None:
            end: Done | BaseException
            try:
                end = engine.run(prompt, cancel, put)
            except BaseException as e:  # whatever it is, the one who waits must hear of it
                end = e
            loop.call_soon_threadsafe(self._lock.release)  # first: who reads the end finds us free
            put(end)

        self._worker.submit(run)
        try:
            while True:
                item = await said.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Done):
                    return
        finally:
            cancel.set()
