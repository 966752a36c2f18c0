"""One loopback server with scripted faults: plain URLs, the hub's API and the Ollama registry.

    with Faultd() as server:
        url = server.put("/m.gguf", data)                # a file with a strong ETag and ranges
        server.script("/m.gguf", Fault(cut=1000), OK)    # the first request is cut, the next ones are fine
        ...
        server.requests                                  # what was asked, in order

A fault list is used up request by request; when it is empty, requests are answered well (or as `always` says).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 64 * 1024
PAGE = b"<!DOCTYPE html><html><body>Please log in to the hotel network</body></html>"


@dataclass(frozen=True)
class Fault:
    """How one request is answered. Offsets and counts in body bytes, times in seconds."""

    status: int | None = None
    delay: float = 0  # before the headers
    cut: int | None = None  # close the connection after this many body bytes
    reset: bool = False  # with `cut`: a TCP reset instead of a close
    hang: float = 0  # with `cut`: silence instead of a close
    flip: int | None = None  # invert the byte at this offset of the file
    drip: tuple[int, float] | None = None  # (bytes, pause)
    no_range: bool = False  # ignore Range
    no_if_range: bool = False  # ignore If-Range
    content_range: str | None = None
    content_length: int | None = None
    extra: bytes = b""  # after the body; declared
    chunked: bool = False  # no Content-Length
    close_delimited: bool = False  # neither Content-Length nor chunks: the end of the connection is the end
    redirect: str | None = None
    html: bool = False
    gzip: bool = False
    retry_after: str | None = None
    etag: str | None = None  # "" for none
    headers: Mapping[str, str] = field(default_factory=dict)


OK = Fault()


@dataclass(frozen=True)
class Request:
    """What was asked."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes = b""

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass(frozen=True)
class Answer:
    """What a route gives: a body and how it is described."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    etag: str | None = None
    ranges: bool = False


Route = Callable[[Request, re.Match[str]], Answer]


class Faultd:
    """The server; a context manager. `tls` makes it speak https."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[Request] = []
        self.sent: dict[str, int] = defaultdict(int)
        self._files: dict[str, Answer] = {}
        self._routes: list[tuple[re.Pattern[str], Route]] = []
        self._scripts: dict[str, deque[Fault]] = {}
        self._always: dict[str, Fault] = {}
        self._after: tuple[int, Callable[[], object]] | None = None
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self.stopped = threading.Event()
        server = self

        class Handler(_Handler):
            faultd = server

        self._http = _Server(("127.0.0.1", 0), Handler)
        if tls:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.port: int = self._http.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Faultd:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._http.shutdown()
        self._thread.join()
        with self._lock:
            live = list(self._open)
        for connection in live:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._http.server_close()

    def put(self, path: str, body: bytes, etag: str | None = "auto", **headers: str) -> str:
        """Serve `body` at `path`; gives its URL. `etag` None for none."""
        if etag == "auto":
            etag = f'"{hashlib.sha256(body).hexdigest()}"'
        self._files[path] = Answer(body, headers=headers, etag=etag, ranges=True)
        return self.url + path

    def route(self, pattern: str, make: Route) -> None:
        """Answer every path that matches `pattern` in full by `make`."""
        self._routes.append((re.compile(pattern), make))

    def script(self, path: str, *faults: Fault) -> None:
        """The next requests for `path` are answered so, one fault each."""
        self._scripts[path] = deque(faults)

    def always(self, path: str, fault: Fault) -> None:
        """Every request for `path` beyond its script is answered so."""
        self._always[path] = fault

    def asked(self, path: str) -> list[Request]:
        """The requests for `path`."""
        return [r for r in self.requests if r.path == path]

    def after(self, count: int, do: Callable[[], object]) -> None:
        """Run `do` before the request that comes after `count` more."""
        self._after = (len(self.requests) + count, do)

    # used by the handler

    def next_fault(self, request: Request) -> Fault:
        with self._lock:
            if self._after and len(self.requests) >= self._after[0]:
                self._after[1]()
                self._after = None
            self.requests.append(request)
            script = self._scripts.get(request.path)
            return script.popleft() if script else self._always.get(request.path, OK)

    def find(self, request: Request) -> Answer:
        if request.path in self._files:
            return self._files[request.path]
        for pattern, make in self._routes:
            if match := pattern.fullmatch(request.path):
                return make(request, match)
        return Answer(b'{"error":"Not Found"}', 404)

    def count(self, path: str, sent: int) -> None:
        with self._lock:
            self.sent[path] += sent

    def track(self, connection: socket.socket, *, live: bool) -> None:
        with self._lock:
            (self._open.add if live else self._open.discard)(connection)


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faultd: Faultd

    def setup(self) -> None:
        self.faultd.track(self.request, live=True)
        super().setup()

    def finish(self) -> None:
        self.faultd.track(self.request, live=False)
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        headers = {k.lower(): v for k, v in self.headers.items()}
        request = Request(
            self.command, unquote(url.path), parse_qs(url.query), headers, self.rfile.read(length) if length else b""
        )
        fault = self.faultd.next_fault(request)
        self.faultd.stopped.wait(fault.delay) if fault.delay else None
        with contextlib.suppress(OSError):
            self._answer(request, fault, self.faultd.find(request))

    do_HEAD = do_POST = do_GET

    def _answer(self, request: Request, fault: Fault, answer: Answer) -> None:
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        etag = fault.etag if fault.etag is not None else answer.etag
        if fault.flip is not None:
            changed = bytearray(body)
            changed[fault.flip] ^= 0xFF
            body = bytes(changed)
        if fault.redirect:
            status, body = fault.status or 302, b"moved"
            headers["Location"] = fault.redirect
        elif fault.status:
            status, body, headers = fault.status, b"scripted", {}
        elif fault.html:
            body, headers["Content-Type"] = PAGE, "text/html; charset=utf-8"
        elif answer.ranges and not fault.no_range:
            headers.setdefault("Accept-Ranges", "bytes")
            status, body, more = _cut_range(request, body, None if fault.no_if_range else etag)
            headers |= more
        if fault.content_range:
            headers["Content-Range"] = fault.content_range
        if fault.gzip:
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        if etag:
            headers["ETag"] = etag
        if fault.retry_after:
            headers["Retry-After"] = fault.retry_after
        body += fault.extra
        self._send(request, fault, (status, body, headers | dict(fault.headers)))

    def _send(self, request: Request, fault: Fault, answer: tuple[int, bytes, dict[str, str]]) -> None:
        status, body, headers = answer
        self.send_response(status)
        headers.setdefault("Content-Type", "application/octet-stream")
        if fault.close_delimited:
            headers["Connection"] = "close"
        elif fault.chunked:
            headers["Transfer-Encoding"] = "chunked"
        else:
            headers["Content-Length"] = str(len(body) if fault.content_length is None else fault.content_length)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method == "HEAD":
            return
        end = len(body) if fault.cut is None else min(fault.cut, len(body))
        self._body(request.path, fault, body[:end])
        if fault.cut is not None and fault.cut <= len(body):
            self._break(fault)
        elif fault.chunked:
            self.wfile.write(b"0\r\n\r\n")
        if fault.close_delimited:
            self.close_connection = True

    def _body(self, path: str, fault: Fault, body: bytes) -> None:
        step, pause = fault.drip or (PIECE, 0.0)
        for at in range(0, len(body), step):
            piece = body[at : at + step]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if fault.chunked else piece)
            self.faultd.count(path, len(piece))
            if pause:
                self.wfile.flush()
                time.sleep(pause)

    def _break(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.hang:
            self.wfile.flush()
            self.faultd.stopped.wait(fault.hang)
        if fault.reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)


def _cut_range(request: Request, body: bytes, etag: str | None) -> tuple[int, bytes, dict[str, str]]:
    match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.range or "")
    condition = request.headers.get("if-range")
    if not match or (condition and etag and condition != etag):
        return 200, body, {}
    start, end = int(match[1]), min(int(match[2] or len(body) - 1) + 1, len(body))
    if start >= len(body):
        return 416, b"", {"Content-Range": f"bytes */{len(body)}"}
    return 206, body[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(body)}"}


def json_answer(value: object, status: int = 200, **headers: str) -> Answer:
    """A JSON body."""
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **headers})
