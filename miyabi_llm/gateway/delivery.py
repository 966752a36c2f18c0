"""An opened answer to its client: as it comes, only whole events; a cut is told and never ended as if it were whole."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web
from multidict import CIMultiDict

from miyabi_llm.gateway import dialects
from miyabi_llm.gateway.asked import Asked, Opened
from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.gateway.http1 import Failed
from miyabi_llm.gateway.streams import Broken

WRITE_S: Final = 60.0  # seconds a client may take nothing of what is there for it
FLUSH_S: Final = 5.0  # seconds for the last words to leave


class Slow(Exception):
    """The client does not read."""


async def deliver(
    request: web.BaseRequest, asked: Asked, opened: Opened, told: Pairs
) -> tuple[web.StreamResponse, Broken | None]:
    """Pass an answer on; returns what broke it after it had begun, None when it is whole. `told` are our headers.

    Raises Slow when the client takes nothing for WRITE_S, ConnectionError when it is gone.
    """
    headers = CIMultiDict((*opened.headers, *told))
    if opened.rest is None:
        whole = web.Response(status=opened.status, reason=opened.reason or None, body=opened.data, headers=headers)
        async with _patience():
            await whole.prepare(request)
            await whole.write_eof()
        return whole, None
    down = web.StreamResponse(status=opened.status, reason=opened.reason or None, headers=headers)
    try:
        down.headers.setdefault("x-accel-buffering", "no")
        await down.prepare(request)
        await _write(down, opened.data)
        opened.passed = opened.watch is not None and opened.watch.whole and not opened.left
        broken = opened.broken or await _pump(down, opened)
    finally:
        opened.rest.close()
    if broken is None:
        await down.write_eof()
        return down, None
    await _write(down, broken.said or dialects.error_event(asked.path, broken.kind, broken.message))
    await _hang_up(request)
    return down, broken


async def _pump(down: web.StreamResponse, opened: Opened) -> Broken | None:
    assert opened.rest is not None
    assert opened.watch is not None
    left = opened.left
    while True:
        try:
            data, left = left or await opened.rest.chunk(), b""
        except Failed as e:
            if opened.watch.whole:  # the last event is there: what broke was only the connection
                return None
            kind = "timeout_error" if e.why == "timeout" else "api_error"
            return Broken(kind, f"{opened.target.name} broke off: {e.message}")
        fed = opened.watch.feed(data) if data else opened.watch.end()
        if fed.good:
            await _write(down, fed.good)
        opened.passed = opened.watch.whole
        if fed.broken is not None or not data:
            return fed.broken


async def _write(down: web.StreamResponse, data: bytes) -> None:
    if data:
        async with _patience():
            await down.write(data)


@asynccontextmanager
async def _patience() -> AsyncIterator[None]:
    """Raise Slow when the block takes WRITE_S."""
    try:
        async with asyncio.timeout(WRITE_S):
            yield
    except TimeoutError:
        raise Slow(f"the client took nothing for {WRITE_S:g} s") from None


async def _hang_up(request: web.BaseRequest) -> None:
    """Close the connection in the middle of the body, after what was written has left: the client sees a cut."""
    transport = request.transport
    if transport is None:
        return
    until = asyncio.get_running_loop().time() + FLUSH_S
    while transport.get_write_buffer_size() and asyncio.get_running_loop().time() < until:
        await asyncio.sleep(0.01)
    transport.close()
