"""The stdio transport: nothing but JSON-RPC ever reaches standard output, and every line that comes in is answered.

The SDK drops a line it cannot parse, and reads lines of any length. Here each gets the error JSON-RPC has for it, and
a line longer than the limit costs no more memory than the limit.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, BinaryIO, cast

import anyio
import mcp_types
from mcp.server import MCPServer
from mcp.server.stdio import stdio_server
from pydantic import ValidationError

LINE_MOST = 16 << 20  # bytes
PARENT_S = 1.0  # how often it is looked whether whoever started us is still there
PARSE_ERROR, INVALID_REQUEST = -32700, -32600


class Wire:
    """Standard output as the protocol's own: what anything else prints from now on goes to standard error."""

    def __init__(self) -> None:
        self._file = os.fdopen(_moved(1, to=2), "wb", buffering=0)
        self._lock = threading.Lock()
        self.broken = False

    async def write(self, text: str) -> None:
        """One whole line."""
        await anyio.to_thread.run_sync(self.put, text, abandon_on_cancel=True)

    async def flush(self) -> None:
        """Nothing is kept back."""

    def put(self, text: str) -> None:
        """Write a line from any thread; once the reader is gone, lines go nowhere."""
        data = memoryview(text.encode("utf-8", "replace"))
        with self._lock:
            while data and not self.broken:
                try:
                    data = data[self._file.write(data) or 0 :]
                except OSError:
                    self.broken = True


class Lines:
    """Standard input line by line; one that is no message is answered here and goes no further."""

    def __init__(self, wire: Wire, most: int = LINE_MOST) -> None:
        self._wire, self._most = wire, most
        self._file = os.fdopen(_moved(0, to=None), "rb")
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[str | None] = asyncio.Queue(8)
        threading.Thread(target=self._read, name="stdin", daemon=True).start()  # a blocked read must not hold the exit

    def __aiter__(self) -> Lines:
        """Itself."""
        return self

    async def __anext__(self) -> str:
        """The next message, as text."""
        line = await self._queue.get()
        if line is None:
            raise StopAsyncIteration
        return line

    def _read(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            for line in bounded(self._file, self._most):
                if isinstance(line, Reply):
                    self._wire.put(line.text)
                elif (answer := judge(line)) is not None:
                    self._wire.put(answer.text)
                elif line.strip():
                    self._give(line.decode("utf-8"))
            self._give(None)

    def _give(self, line: str | None) -> None:
        asyncio.run_coroutine_threadsafe(self._queue.put(line), self._loop).result()


class Reply:
    """A JSON-RPC error, as the line that is written."""

    def __init__(self, code: int, message: str, number: int | str | None = None) -> None:
        self.code, self.number = code, number
        body = {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message}}
        self.text = json.dumps(body) + "\n"


def bounded(file: BinaryIO, most: int) -> Any:
    """The lines of `file` as bytes; for one longer than `most` bytes an error, its rest is read and forgotten."""
    while line := file.readline(most + 1):
        if len(line) <= most or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(1 << 20)) and not rest.endswith(b"\n"):
            pass
        yield Reply(INVALID_REQUEST, f"a message may have {most} bytes at most")


def judge(line: bytes) -> Reply | None:
    """What is wrong with a line, as the error to answer; None when it is a message, or blank. Pure."""
    if not line.strip():
        return None
    try:
        mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        line.decode("utf-8")
        return None
    except (ValidationError, UnicodeDecodeError, RecursionError):
        pass
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return Reply(PARSE_ERROR, "not JSON")
    if isinstance(value, list):
        return Reply(INVALID_REQUEST, "batches are not part of this protocol: send one message a line")
    number = value.get("id") if isinstance(value, dict) else None
    known = isinstance(number, int | str) and not isinstance(number, bool)
    return Reply(INVALID_REQUEST, "not a JSON-RPC 2.0 message", number if known else None)


def serve(server: MCPServer[Any], close: Callable[[], None]) -> None:
    """Serve until standard input ends, the parent is gone, or a signal comes; then `close` what was started."""
    try:
        asyncio.run(_serve(server))
    finally:
        close()


async def _serve(server: MCPServer[Any]) -> None:
    wire = Wire()
    lines = Lines(wire)
    me, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert me is not None
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, me.cancel)
    watch = asyncio.create_task(_parent(me))
    try:
        async with stdio_server(cast(Any, lines), cast(Any, wire)) as (read, write):
            low = server._lowlevel_server  # `run_stdio_async` takes no streams
            await low.run(read, write, low.create_initialization_options())
    except asyncio.CancelledError:
        pass  # a signal, or nobody is there any more: an orderly end
    finally:
        watch.cancel()


async def _parent(me: asyncio.Task[Any]) -> None:
    """End the server when the process that started it is gone, though another may still hold its pipe."""
    parent = os.getppid()
    while os.getppid() == parent:
        await asyncio.sleep(PARENT_S)
    me.cancel()


def _moved(fd: int, *, to: int | None) -> int:
    """A private copy of a standard stream; its number then means `to`, or nothing."""
    private = os.dup(fd)
    other = os.open(os.devnull, os.O_RDWR) if to is None else to
    os.dup2(other, fd)
    if to is None:
        os.close(other)
    return private
