"""A real little OpenAI-compatible server with a memory, whose prompts say how it shall behave."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Memory:
    """What outlives a restart: how often each prompt came and was answered, the bodies, and what is to be refused.

    `storm` requests are answered with 429 before one is taken; `delay` seconds pass before each answer.
    """

    asked: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    slots: int | None = 4
    storm: int = 0
    delay: float = 0.0
    key: str | None = None
    most: int = 0
    now: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class Standin(ThreadingHTTPServer):
    """One life of the server: `crash` resets every connection and frees the port."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, memory: Memory, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.memory = memory
        self.open: set[socket.socket] = set()
        self.dead = False
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests do."""

    def crash(self) -> None:
        """End as a killed process does."""
        self.dead = True
        self.shutdown()
        self.server_close()
        self._thread.join()
        for connection in list(self.open):
            with suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.shutdown(socket.SHUT_RDWR)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Standin

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        if self.path == "/props" and self.server.memory.slots:
            self.json({"default_generation_settings": {"n_ctx": 4096}, "total_slots": self.server.memory.slots})
        elif self.path == "/v1/models":
            self.json({"data": [{"id": "m", "owned_by": "tests"}]})
        else:
            self.json({"error": {"message": "no such page"}}, 404)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        memory, prompt = self.server.memory, _prompt(body)
        with memory.lock:
            memory.asked[prompt] += 1
            memory.bodies.append(body)
            memory.paths.append(self.path)
            times = memory.asked[prompt]
            stormy = memory.storm > 0
            memory.storm -= stormy
            memory.now += 1
            memory.most = max(memory.most, memory.now)
        try:
            if memory.key and self.headers["authorization"] != f"Bearer {memory.key}":
                self.json({"error": {"message": "who are you?"}}, 401)
            elif stormy:
                self.json({"error": {"message": "slower"}}, 429, retry_after="0.05")
            else:
                time.sleep(memory.delay)
                behaviour = BEHAVIOURS.get(prompt.partition(":")[0], normal)
                if not self.server.dead:
                    behaviour(self, prompt, times)
        except OSError:
            self.close_connection = True
        finally:
            with memory.lock:
                memory.now -= 1

    def json(self, body: object, status: int = 200, **headers: str) -> None:
        self.whole(json.dumps(body).encode(), status, **headers)

    def whole(self, data: bytes, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data) if length is None else length))
        self.send_header("x-request-id", "req-1")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def drop(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *args: Any) -> None:
        pass


def right(prompt: str) -> str:
    """The one right answer to a prompt."""
    return f"«{prompt[::-1]}» 日本"


def _prompt(body: dict[str, Any]) -> str:
    asked = body["messages"][-1]["content"] if "messages" in body else body.get("prompt", body.get("input"))
    return asked if isinstance(asked, str) else json.dumps(asked)


def answer(prompt: str, path: str, text: str | None = None) -> dict[str, Any]:
    usage = {"prompt_tokens": len(prompt), "completion_tokens": 3}
    text = right(prompt) if text is None else text
    if path == "/v1/embeddings":
        return {"data": [{"index": 0, "embedding": [0.5, -1.0]}], "usage": {"prompt_tokens": len(prompt)}}
    said = {"text": text} if path == "/v1/completions" else {"message": {"role": "assistant", "content": text}}
    reason = "length" if prompt.startswith("long") else "stop"
    return {"id": "c1", "choices": [said | {"index": 0, "finish_reason": reason}], "usage": usage}


def normal(h: Handler, prompt: str, times: int) -> None:
    h.json(answer(prompt, h.path))
    with h.server.memory.lock:
        h.server.memory.answered[prompt] += 1


def _flaky(h: Handler, prompt: str, times: int) -> None:
    """Three failures of different kinds, then the answer."""
    whole = json.dumps(answer(prompt, h.path)).encode()
    if times == 1:
        h.json({"error": {"message": "out of memory"}}, 500)
    elif times == 2:
        h.whole(whole[:-9], length=len(whole))  # breaks off
        h.drop()
    elif times == 3:
        h.json({"error": "model crashed"})
    else:
        normal(h, prompt, times)


def _cut_chunked(h: Handler, prompt: str, times: int) -> None:
    """A chunked body whose end never comes, though what came is whole JSON."""
    data = json.dumps(answer(prompt, h.path)).encode()
    h.send_response(200)
    h.send_header("transfer-encoding", "chunked")
    h.end_headers()
    h.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    h.drop()


def _silent(h: Handler, prompt: str, times: int) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end and not h.server.dead:
        time.sleep(0.02)
    h.close_connection = True


BEHAVIOURS: dict[str, Callable[[Handler, str, int], None]] = {
    "flaky": _flaky,
    "cut": lambda h, p, n: (h.whole(b'{"choices": [', length=400), h.drop())[0],
    "chunked": _cut_chunked,
    "error200": lambda h, p, n: h.json({"error": {"message": "model crashed"}}),
    "empty200": lambda h, p, n: h.json({"choices": []}),
    "nan": lambda h, p, n: h.whole(b'{"choices": [{"x": NaN}]}'),
    "html": lambda h, p, n: h.whole(b"<html>log in</html>"),
    "400": lambda h, p, n: h.json({"error": {"message": "bad request", "type": "invalid_request_error"}}, 400),
    "500": lambda h, p, n: h.json({"error": {"message": "oops"}}, 500),
    "busy": lambda h, p, n: h.json({"error": {"message": "busy for you"}}, 503),
    "drop": lambda h, p, n: h.drop(),
    "silent": _silent,
    "surrogate": lambda h, p, n: h.whole(json.dumps(answer(p, h.path, "\ud83d")).encode()),
    "json": lambda h, p, n: h.json(answer(p, h.path, '{"n": 1}')),
}


@contextmanager
def serving(memory: Memory | None = None) -> Iterator[Standin]:
    """A server for as long as the block runs."""
    server = Standin(memory or Memory())
    try:
        yield server
    finally:
        if not server.dead:
            server.crash()
