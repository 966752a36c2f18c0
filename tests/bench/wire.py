"""Little servers for the load engine: each connection is handled by a function of the test, in a thread of its own."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from miyabi_llm.bench.values import Call, Raw, Target
from miyabi_llm.types import Endpoint

BODY = b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
OK = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
ASK = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhi"


class Wire:
    """A server's side of one connection. `number` counts connections from 0."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock, self.number, self._left = sock, number, b""

    def heard(self) -> bytes:
        """The next whole request; empty when the client has closed."""
        while True:
            head, blank, rest = self._left.partition(b"\r\n\r\n")
            length = int(found[1]) if (found := re.search(rb"content-length: (\d+)", head)) else 0
            if blank and len(rest) >= length:
                self._left = rest[length:]
                return head + blank + rest[:length]
            try:
                data = self.sock.recv(1 << 16)
            except OSError:
                return b""
            if not data:
                return b""
            self._left += data

    def say(self, *parts: bytes) -> None:
        """Send."""
        for part in parts:
            with contextlib.suppress(OSError):
                self.sock.sendall(part)


@contextmanager
def serving(handle: Callable[[Wire], None], *, host: str = "127.0.0.1", port: int = 0) -> Iterator[Target]:
    """A target whose every connection `handle` answers; the connection closes when it returns."""
    over = threading.Event()
    open_: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(sock: socket.socket, number: int) -> None:
        with sock:
            handle(Wire(sock, number))
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def accept() -> None:
        while not over.is_set():
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            open_.append(sock)
            threads.append(threading.Thread(target=one, args=(sock, len(open_) - 1)))
            threads[-1].start()

    with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        threads.append(threading.Thread(target=accept))
        threads[0].start()
        name = f"[{host}]" if ":" in host else host
        try:
            yield Target("t", Endpoint(f"http://{name}:{listener.getsockname()[1]}", "m"))
        finally:
            over.set()
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            for sock in open_:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(5)


def answers(wire: Wire) -> None:
    """A server without faults."""
    while wire.heard():
        wire.say(OK)


@dataclass
class Asker:
    """A source of the same call over and over, `most` in all; keeps what came back."""

    data: bytes = ASK
    most: int | None = None
    ordered: bool = False
    targets: int = 1
    asked: list[int] = field(default_factory=list)
    got: list[Raw] = field(default_factory=list)

    def next(self, stream: int) -> Call | None:
        if self.most is not None and len(self.asked) >= self.most:
            return None
        self.asked.append(stream)
        return Call(self.data, target=len(self.asked) % self.targets)

    def finished(self, raw: Raw) -> None:
        self.got.append(raw)

    @property
    def errors(self) -> list[str]:
        return [raw.error for raw in self.got if raw.error]


@contextmanager
def mock(*args: str) -> Iterator[Target]:
    """The product's mock server in a process of its own."""
    command = [sys.executable, "-m", "miyabi_llm.bench.mock", "--watch", *args]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        try:
            yield Target("mock", Endpoint(f"http://127.0.0.1:{port}", "mock"))
        finally:
            process.stdin.close()
            process.wait(10)
