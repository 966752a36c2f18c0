"""A real little OpenAI-compatible server on loopback whose model names are its behaviours."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Hello", ", ", "世界", " 🎌", "."]
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 2}}


def chunk(**delta: Any) -> bytes:
    return sse({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def finish(reason: str = "stop") -> bytes:
    return sse({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})


def sse(body: object) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode() + b"\n\n"


def normal(words: list[str] = WORDS, reason: str = "stop") -> bytes:
    """The whole of a good stream."""
    parts = [chunk(role="assistant", content=None), *(chunk(content=w) for w in words), finish(reason)]
    return b"".join([*parts, sse({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"])


class Openaid(ThreadingHTTPServer):
    """`asked` are the bodies of chat requests; `gone` is set when a client leaves a stream early.

    With `context` it answers /props and counts tokens as llama-server does: one per word.
    """

    daemon_threads = True

    def __init__(self, context: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.context = context
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.gone = threading.Event()
        self.cut_at: int | None = None
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests do."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Openaid

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.path.startswith("/props") and self.server.context:
            self.json({"default_generation_settings": {"n_ctx": self.server.context}})
        elif self.path == "/v1/models":
            self.json({"data": [{"id": "normal", "owned_by": "tests"}, {"id": "slow"}]})
        else:
            self.json({"error": {"message": "no such page"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.paths.append(self.path)
        if self.path == "/v1/chat/completions/input_tokens" and self.server.context:
            self.json({"input_tokens": sum(len(m["content"].split()) for m in body["messages"])})
        elif self.path == "/v1/chat/completions":
            self.server.asked.append(body)
            self.server.headers.append(dict(self.headers))
            BEHAVIOURS[body["model"]](self)
        else:
            self.json({"error": {"message": "no such page"}}, 404)

    def json(self, body: object, status: int = 200, **headers: str) -> None:
        self.whole(json.dumps(body).encode(), status, "application/json", **headers)

    def whole(self, data: bytes, status: int = 200, kind: str = "text/event-stream", **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()

    def piece(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def end(self) -> None:
        self.wfile.write(b"0\r\n\r\n")

    def drop(self) -> None:
        """Break the connection: no last chunk."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


def _cut(h: Handler) -> None:
    """Break off after `cut_at` bytes of a good stream."""
    h.begin()
    if data := normal()[: h.server.cut_at]:
        h.piece(data)
    h.drop()


def _reset(h: Handler) -> None:
    h.begin()
    h.piece(chunk(content="Hel"))
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.close_connection = True
    h.connection.close()


def _slow(h: Handler) -> None:
    """A word each 50 ms, for a minute; notes when the client leaves."""
    h.begin()
    try:
        for i in range(1200):
            h.piece(chunk(content=f"w{i} "))
            time.sleep(0.05)
        h.piece(finish())
        h.end()
    except OSError:
        h.server.gone.set()
        h.close_connection = True


def _silent(h: Handler) -> None:
    h.begin()
    h.piece(chunk(content="Hel"))
    h.server.release.wait(20)
    h.close_connection = True


def _counted(h: Handler) -> None:
    """Progress, reasoning and timings as llama-server sends them."""
    words = chunk(content="42")
    timings = {"predicted_per_second": 12.5, "prompt_per_second": 100.0}
    progress = sse({"choices": [], "prompt_progress": {"total": 4, "processed": 2, "cache": 0}})
    end = sse({"choices": [], "usage": USAGE, "timings": timings})
    h.whole(progress + chunk(reasoning_content="hm") + words + finish() + end + b"data: [DONE]\n\n")


def _error_event(h: Handler) -> None:
    h.whole(chunk(content="Hel") + b"event: error\n" + sse({"type": "error", "message": "overloaded"}))


def _answer(text: str, reason: str = "stop") -> Callable[[Handler], None]:
    return lambda h: h.whole(normal([text], reason))


def _tight(h: Handler) -> None:
    error = {"type": "exceed_context_size_error", "message": "too long", "n_prompt_tokens": 4096, "n_ctx": 2048}
    h.json({"error": error}, 400)


def _call(**function: str) -> bytes:
    return chunk(tool_calls=[{"index": 0, "id": "call_1", "type": "function", "function": function}])


_END = finish("tool_calls") + b"data: [DONE]\n\n"

BEHAVIOURS: dict[str, Callable[[Handler], None]] = {
    "normal": lambda h: h.whole(normal()),
    "length": _answer("and then", "length"),
    "bare": lambda h: h.whole(chunk(content="Hi") + finish()),  # no usage, no [DONE]
    "done-only": lambda h: h.whole(chunk(content="Hi") + b"data: [DONE]\n\n"),
    "endless": lambda h: h.whole(chunk(content="Hi")),
    "cut": _cut,
    "reset": _reset,
    "error": lambda h: h.whole(chunk(content="Hel") + sse({"error": {"message": "out of memory"}})),
    "error-event": _error_event,
    "error-200": lambda h: h.json({"error": "model crashed"}),
    "whole": lambda h: h.json({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}], "usage": USAGE}),
    "garbage": lambda h: h.whole(chunk(content="Hel") + b"data: {nonsense\n\n"),
    "deep": lambda h: h.whole(b"data: " + b"[" * 100_000 + b"\n\n"),
    "latin": lambda h: h.whole(b"data: \xff\xfe\n\n"),
    "long": lambda h: h.whole(b"data: " + b"x" * (11 * 2**20)),
    "html": lambda h: h.whole(b"<html>log in</html>", kind="text/html"),
    "redirect": lambda h: h.whole(b"", 302, location="http://127.0.0.1:1/"),
    "slow": _slow,
    "silent": _silent,
    "counted": _counted,
    "escape": _answer("red \x1b[31mtext\x1b]52;c;AAAA\x07"),
    "json": _answer('{"answer": 42}'),
    "call": lambda h: h.whole(_call(name="weather", arguments='{"city": ') + _call(arguments='"東京"}') + _END),
    "tight": _tight,
    "401": lambda h: h.json({"error": {"message": "who are you?"}}, 401),
    "404": lambda h: h.json({"error": {"message": "model '404' not found"}}, 404),
    "429": lambda h: h.json({"error": {"message": "slower"}}, 429, retry_after="7"),
    "500": lambda h: h.whole(b"<html>oops</html>", 500, "text/html"),
    "503": lambda h: h.json({"error": {"code": 503, "message": "Loading model"}}, 503),
}


@contextmanager
def serving(context: int | None = None) -> Iterator[Openaid]:
    """A server for as long as the block runs."""
    server = Openaid(context)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()
