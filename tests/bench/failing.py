"""A real little chat server whose answers fail as a test says, request by request."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Way = Literal["ok", "500", "error-200", "hang", "cut"]
USAGE = {"prompt_tokens": 9, "completion_tokens": 3}


def event(body: object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def stream() -> bytes:
    words = (event({"choices": [{"index": 0, "delta": {"content": w}, "finish_reason": None}]}) for w in "あい。")
    end = event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    return b"".join([*words, end, event({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"])


class Server(ThreadingHTTPServer):
    """`way(number)` says what becomes of a request, numbered from 0; `release` ends those that hang."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, way: Callable[[int], Way]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.way, self.count, self.lock, self.release = way, 0, threading.Lock(), threading.Event()
        self.asked: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests do."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "failing"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            number, self.server.count = self.server.count, self.server.count + 1
            self.server.asked.append(body)
        way = self.server.way(number)
        if way == "hang":
            self.server.release.wait(60)
            self.close_connection = True
        elif way == "500":
            self.answer(500, b'{"error": {"message": "out of memory"}}')
        elif way == "error-200":
            self.answer(200, event({"error": {"message": "slot lost"}}))
        else:
            self.answer(200, stream(), cut=way == "cut")

    def answer(self, status: int, data: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""


@contextmanager
def failing(way: Callable[[int], Way]) -> Iterator[Server]:
    """The server, for as long as the block runs."""
    server = Server(way)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
