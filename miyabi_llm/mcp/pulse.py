"""Progress while a tool works: hosts take a silent call for a dead one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from mcp.server.mcpserver import Context

EVERY_S = 0.5


@asynccontextmanager
async def pulse(ctx: Context[Any, Any], words: Callable[[], str], every_s: float = EVERY_S) -> AsyncIterator[None]:
    """While the block runs, report the seconds it has taken and what `words` says then.

    Seconds, because progress has to grow with every report, and while a model loads nothing else does.
    """

    async def beat() -> None:
        begun = time.monotonic()
        while True:
            await asyncio.sleep(every_s)
            await ctx.report_progress(round(time.monotonic() - begun, 3), message=words())

    task = asyncio.create_task(beat())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError, Exception):  # nobody listens any more: the call itself will know
            await task
