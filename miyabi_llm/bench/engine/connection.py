"""One kept-alive HTTP/1.1 connection: bytes out, stamped pieces in; the framing is httptools', the meaning nobody's."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import httptools

from miyabi_llm.bench.values import ErrorClass, Piece, Raw

if TYPE_CHECKING:
    import ssl

READ = 1 << 18  # bytes of one read
_STAMP = struct.Struct("@qq")
# Linux's number for it; Python names it from 3.13 on only.
SO_TIMESTAMPNS = 35
KERNEL_STAMPS = sys.platform == "linux" and struct.calcsize("@l") == 8
_ROOM = socket.CMSG_SPACE(_STAMP.size) if hasattr(socket, "CMSG_SPACE") else 0

Address = tuple[Any, Any, int, str, Any]  # as getaddrinfo tells it
OnDone = Callable[["Connection", Raw], None]


def clock_offset() -> int:
    """Nanoseconds to take off the kernel's wall clock to get `time.perf_counter_ns`; the tightest of a few looks."""
    best, offset = 1 << 62, 0
    for _ in range(9):
        before = time.perf_counter_ns()
        wall = time.time_ns()
        after = time.perf_counter_ns()
        if after - before < best:
            best, offset = after - before, wall - (before + after) // 2
    return offset


class Connection:
    """Carries one call at a time.

    After a loss, or when the server closes, `open` is False: make another one. `heard` tells whether one byte of the
    current answer came. `offset` is what the kernel's clock is ahead of ours, in nanoseconds.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._on_done: OnDone = lambda connection, raw: None
        self._raw: Raw | None = None
        self._now = (0, 0)
        self._parser: Any = None
        self._keep = self._framed = self._headed = self._whole = False
        self.open = self.heard = False
        self.offset = 0

    # httptools calls these; an exception of theirs would be taken for bad HTTP, so they only note
    def on_header(self, name: bytes, value: bytes) -> None:
        """Whether the body says where it ends."""
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._framed = True

    def on_headers_complete(self) -> None:
        """The answer proper has begun; what informs beforehand (1xx) does not count."""
        self._headed = self._parser.get_status_code() >= 200

    def on_body(self, data: bytes) -> None:
        """A fragment of the body, without the chunk framing."""
        if self._raw is not None and not self._whole:
            self._raw.pieces.append(Piece(*self._now, data))

    def on_message_complete(self) -> None:
        """The answer is whole, or was a word beforehand (1xx)."""
        if self._headed and not self._whole:
            self._whole, self._keep = True, self._parser.should_keep_alive()

    def send(self, raw: Raw, on_done: OnDone) -> None:
        """Send a call; `on_done` is told when its answer is whole or lost. Only when open and idle."""
        self._raw, self._on_done = raw, on_done
        self._framed = self._headed = self._whole = self.heard = False
        self._parser = httptools.HttpResponseParser(self)
        raw.sent_ns = time.perf_counter_ns()
        self._write(raw.call.data)

    def give_up(self, error: ErrorClass, detail: str = "") -> None:
        """End the connection; the call in flight, if any, is told lost."""
        status = self._parser.get_status_code() if self._parser is not None and self._headed else 0
        self.close()
        raw, self._raw, self._parser = self._raw, None, None
        if raw is not None:
            raw.error, raw.detail, raw.status, raw.end_ns = error, detail, status, time.perf_counter_ns()
            self._on_done(self, raw)

    def close(self) -> None:
        """Close it; nobody is told."""
        self.open = False

    def _feed(self, data: bytes, read_ns: int, kernel_ns: int) -> None:
        self._now = (read_ns, kernel_ns)
        if self._raw is None:  # bytes nobody asked for: not an HTTP server, or one that is confused
            self.close()
            return
        self.heard = True
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            if not self._whole:
                self.give_up("garbled", str(e)[:200])
                return
            self._keep = False  # the answer is whole; what followed it is not ours
        if self._whole:
            self._complete(kernel_ns or read_ns)

    def _complete(self, at: int) -> None:
        raw, parser = self._raw, self._parser
        self._raw = self._parser = None  # the parser holds us: a circle that no collector would open
        assert raw is not None
        raw.status, raw.end_ns = parser.get_status_code(), at
        if not self._keep or self._unsent():
            self.close()
        self._on_done(self, raw)

    def _ended(self) -> None:
        """The server closed its side: the end of a body without a length, a cut, or a quiet goodbye."""
        self.close()
        if self._raw is None:
            return
        if self._headed and not self._framed:  # a body that ends with its connection
            self._complete(time.perf_counter_ns())
        else:
            self._lost("the server closed the connection")

    def _lost(self, detail: str) -> None:
        self.give_up("cut" if self._headed else "broken", detail)

    def _write(self, data: bytes) -> None:
        raise NotImplementedError

    def _unsent(self) -> bool:
        """Whether a part of the request still waits: the server answered before it had heard all."""
        raise NotImplementedError


class StampedConnection(Connection):
    """Over a plain socket that we read ourselves, for the kernel's receive times. Linux."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._socket: socket.socket | None = None
        self._left = memoryview(b"")

    async def connect(self, addresses: Sequence[Address]) -> None:
        """Open it to the first address that answers. Raises OSError."""
        for last, (family, kind, protocol, _, address) in zip(
            range(len(addresses) - 1, -1, -1), addresses, strict=True
        ):
            try:
                await self._try(socket.socket(family, kind, protocol), address)
                return
            except OSError:
                if not last:
                    raise

    async def _try(self, sock: socket.socket, address: Any) -> None:
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            await self._loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        self._socket, self.open = sock, True
        self._loop.add_reader(sock.fileno(), self._readable)

    def close(self) -> None:
        """Close the socket."""
        self.open, self._left = False, memoryview(b"")
        if self._socket is not None:
            self._loop.remove_reader(self._socket.fileno())
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data, notes, _, _ = self._socket.recvmsg(READ, _ROOM)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._lost(str(e))
            return
        now = time.perf_counter_ns()
        if not data:
            self._ended()
            return
        kernel = 0
        for level, kind, note in notes:
            if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(note) >= _STAMP.size:
                seconds, nanoseconds = _STAMP.unpack_from(note)
                kernel = seconds * 1_000_000_000 + nanoseconds - self.offset
        self._feed(data, now, kernel)

    def _write(self, data: bytes) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as e:
            self._lost(str(e))
            return
        if sent < len(data):
            self._left = memoryview(data)[sent:]
            self._loop.add_writer(self._socket.fileno(), self._writable)

    def _unsent(self) -> bool:
        return bool(self._left)

    def _writable(self) -> None:
        assert self._socket is not None
        try:
            self._left = self._left[self._socket.send(self._left) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._lost(str(e))
            return
        if not self._left:
            self._loop.remove_writer(self._socket.fileno())


class PlainConnection(Connection, asyncio.Protocol):
    """Over the loop's own transport: TLS, and systems whose kernel tells no times."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._transport: asyncio.Transport | None = None

    async def connect(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Open it. Raises OSError, ssl.SSLError."""
        await self._loop.create_connection(lambda: self, host, port, ssl=tls)
        self.open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has connected."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        """Bytes came: stamp, then look."""
        self._feed(data, time.perf_counter_ns(), 0)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server, or we, closed."""
        if exc is not None:
            self._lost(str(exc))
        else:
            self._ended()

    def close(self) -> None:
        """Close the transport."""
        self.open = False
        if self._transport is not None:
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def _unsent(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > 0
