"""A small HTTP/1.1 client for one kind of work: pass a request on, and give its answer back as it comes.

No redirect, no proxy, no cookie, no decompression, no limit of time but those said; a cut answer is never a whole one.
Reading stops at the sender when the receiver is slow.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from dataclasses import dataclass
from typing import Final, Literal, cast
from urllib.parse import urlsplit

import httptools

from miyabi_llm.gateway.headers import Pairs

Why = Literal["name", "connect", "tls", "timeout", "cut", "garbled", "permit", "elsewhere"]

HIGH: Final = 256 << 10  # bytes held of an answer before reading stops
HEADERS: Final = 256  # header fields of an answer, at most
KEEP_S: Final = 4.0  # an idle connection is used again for so long: llama-server closes them after five seconds


class Failed(Exception):
    """No answer, or the answer broke off. `why` is where it failed; `begun` says that a part of it had come."""

    def __init__(self, why: Why, message: str, *, begun: bool = False) -> None:
        super().__init__(message)
        self.why, self.message, self.begun = why, message, begun


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds: to connect, to the head of the answer, and between two pieces of it."""

    connect: float = 10.0
    head: float = 600.0
    idle: float = 300.0


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go: `addresses` are tried in order; `name` is checked against the certificate.

    `prefix` comes before every path.
    """

    addresses: tuple[str, ...]
    port: int
    host: str
    name: str = ""  # not empty: TLS
    prefix: str = ""

    @property
    def authority(self) -> str:
        """The Host header."""
        usual = 443 if self.name else 80
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == usual else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Order:
    """One request. `path` has its query; `headers` are without Host and Content-Length."""

    method: str
    path: str
    headers: Pairs
    body: bytes = b""


def origin(url: str, addresses: tuple[str, ...] = ()) -> Origin:
    """The origin of a base URL; without `addresses` its name is looked up at each connection."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    secure = parts.scheme == "https"
    port = parts.port or (443 if secure else 80)
    return Origin(addresses or (host,), port, host, host if secure else "", parts.path.rstrip("/"))


class _Connection(asyncio.Protocol):
    """One connection: one answer at a time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.transport: asyncio.Transport | None = None
        self.lost = False
        self.since = 0.0  # of its idle time
        self._wake: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget the last answer."""
        self._parser = httptools.HttpResponseParser(self)
        self.pieces: deque[bytes] = deque()
        self.held = 0
        self.headers: list[tuple[str, str]] = []
        self.reason = b""
        self.status = 0
        self.head = self.complete = self.garbled = self.keep = self.to_eof = self._surplus = False
        self._paused = False

    def usable(self, now: float) -> bool:
        """Whether an idle connection may be used again."""
        return not (self.lost or self.garbled or self.head or self.pieces) and now - self.since < KEEP_S

    def end(self) -> None:
        """Break it off."""
        if self.transport is not None:
            self.transport.abort()

    # asyncio
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Over, in good order or not."""
        self.lost = True
        if exc is None and self.head and self.to_eof:
            self.complete = True
        self._ring()
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.garbled = True
        if self.held > HIGH and not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
        self._ring()

    def pause_writing(self) -> None:
        """The server reads slowly."""
        self._drained = self._loop.create_future()

    def resume_writing(self) -> None:
        """It caught up."""
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    # httptools
    def on_message_begin(self) -> None:
        """A second answer that nobody asked for is not looked at, and the connection not used again."""
        if self.complete:
            self._surplus, self.keep = True, False

    def on_status(self, status: bytes) -> None:
        """The words of the status line."""
        self.reason = self.reason if self._surplus else status

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        if self._surplus:
            return
        if len(self.headers) >= HEADERS:
            raise ValueError("too many headers")
        self.headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """The head is here; an interim one is not the answer's."""
        status = int(self._parser.get_status_code())
        if self._surplus or status < 200:
            if not self._surplus:
                self.headers.clear()
            return
        self.head, self.status = True, status
        self.keep = self._parser.should_keep_alive()
        names = {k.lower() for k, _ in self.headers}
        self.to_eof = not names & {"content-length", "transfer-encoding"} and self.status not in (204, 304)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        if not self._surplus:
            self.pieces.append(data)
            self.held += len(data)

    def on_message_complete(self) -> None:
        """The last byte is here."""
        if self.head:
            self.complete = True

    # the answer's reader
    def take(self) -> bytes:
        """All that is held."""
        data = self.pieces[0] if len(self.pieces) == 1 else b"".join(self.pieces)
        self.pieces.clear()
        self.held = 0
        if self._paused and self.transport is not None and not self.lost:
            self._paused = False
            self.transport.resume_reading()
        return data

    async def more(self) -> None:
        """Wait for the next thing to happen."""
        self._wake = self._loop.create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    async def drain(self) -> None:
        """Wait until what was written has left."""
        if self._drained is not None:
            await self._drained

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class Answer:
    """An answer whose head is here. Read it to its end, or `close` it: the server then stops working on it."""

    def __init__(self, pool: Pool, at: Origin, connection: _Connection, idle: float) -> None:
        self._pool, self._at, self._connection, self._idle = pool, at, connection, idle
        self.status = connection.status
        self.reason = connection.reason.decode("latin-1")
        self.headers: Pairs = tuple(connection.headers)

    def header(self, name: str) -> str:
        """The first value of a header, empty when there is none."""
        return next((v for k, v in self.headers if k.lower() == name), "")

    async def chunk(self) -> bytes:
        """The next bytes, empty at the end. Raises Failed when the answer breaks off or falls silent."""
        connection = self._connection
        while True:
            if connection.pieces:
                return connection.take()
            if connection.garbled:
                raise Failed("garbled", "the answer is no HTTP", begun=True)
            if connection.complete:
                return b""
            if connection.lost:
                raise Failed("cut", "the connection broke in the middle of the answer", begun=True)
            try:
                async with asyncio.timeout(self._idle):
                    await connection.more()
            except TimeoutError:
                raise Failed("timeout", f"no byte for {self._idle:g} s", begun=True) from None

    async def read(self, most: int) -> bytes:
        """The whole body. Raises Failed, also when it is longer than `most` bytes."""
        parts, size = [], 0
        while data := await self.chunk():
            parts.append(data)
            size += len(data)
            if size > most:
                raise Failed("garbled", f"an answer of more than {most:,} bytes", begun=True)
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back when the answer is whole, else break it off."""
        self._pool.give(self._at, self._connection)


class Pool:
    """Connections, kept for a short while after use."""

    def __init__(self, times: Times | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.times = times or Times()
        self._tls = tls
        self._idle: dict[Origin, list[_Connection]] = {}

    async def send(self, at: Origin, order: Order) -> Answer:
        """Send a request and wait for the head of its answer. Raises Failed.

        A kept connection that the server closed meanwhile is replaced by a new one, once, if nothing came.
        """
        connection = self._kept(at)
        if connection is not None:
            try:
                return await self._ask(connection, at, order)
            except Failed as e:
                if e.why != "cut":
                    raise
        return await self._ask(await self._connect(at), at, order)

    def give(self, at: Origin, connection: _Connection) -> None:
        """Take a connection back, or end it."""
        if connection.transport is None:
            return
        if connection.complete and connection.keep and not connection.lost and not connection.garbled:
            connection.begin()
            connection.since = asyncio.get_running_loop().time()
            found = self._idle.setdefault(at, [])
            while found and not found[0].usable(connection.since):
                found.pop(0).end()
            found.append(connection)
        else:
            connection.end()

    def close(self) -> None:
        """End all kept connections."""
        for found in self._idle.values():
            for connection in found:
                connection.end()
        self._idle.clear()

    def _kept(self, at: Origin) -> _Connection | None:
        found = self._idle.get(at, [])
        now = asyncio.get_running_loop().time()
        while found:
            connection = found.pop()
            if connection.usable(now):
                return connection
            connection.end()
        return None

    async def _ask(self, connection: _Connection, at: Origin, order: Order) -> Answer:
        assert connection.transport is not None
        try:
            async with asyncio.timeout(self.times.head):
                connection.transport.writelines((_head(at, order), order.body))
                await connection.drain()
                while not connection.head:
                    if connection.garbled:
                        raise Failed("garbled", "the answer is no HTTP")
                    if connection.lost:
                        raise Failed("cut", "the connection broke before an answer")
                    await connection.more()
        except TimeoutError:
            connection.transport.abort()
            raise Failed("timeout", f"no answer within {self.times.head:g} s") from None
        except BaseException:
            connection.transport.abort()
            raise
        return Answer(self, at, connection, self.times.idle)

    async def _connect(self, at: Origin) -> _Connection:
        loop = asyncio.get_running_loop()
        failure = Failed("connect", f"{at.authority}: no address")
        for address in at.addresses:
            try:
                async with asyncio.timeout(self.times.connect):
                    _, connection = await loop.create_connection(
                        lambda: _Connection(loop),
                        address,
                        at.port,
                        ssl=(self._tls or ssl.create_default_context()) if at.name else None,
                        server_hostname=at.name or None,
                    )
                return connection
            except TimeoutError:
                failure = Failed("connect", f"{at.authority} does not answer within {self.times.connect:g} s")
            except OSError as e:
                failure = Failed(_why(e), f"{at.authority}: {e.strerror or type(e).__name__}")
        raise failure


def _why(e: OSError) -> Why:
    import socket

    if isinstance(e, socket.gaierror):
        return "name"
    return "tls" if isinstance(e, ssl.SSLError) else "connect"


def _head(at: Origin, order: Order) -> bytes:
    lines = [f"{order.method} {at.prefix}{order.path} HTTP/1.1", f"host: {at.authority}"]
    lines += [f"{name}: {value}" for name, value in order.headers]
    if order.body or order.method != "GET":
        lines.append(f"content-length: {len(order.body)}")
    if any(c in line for line in lines for c in "\r\n\0"):
        raise Failed("garbled", "a header holds a line break")
    return "\r\n".join((*lines, "", "")).encode("utf-8", "surrogateescape")
