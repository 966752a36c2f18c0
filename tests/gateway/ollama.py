"""An Ollama that has models here and models elsewhere, as far as the gateway looks at it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests import clauded, openaid
from tests.gateway.recorded import ollama as lines


class Ollama(ThreadingHTTPServer):
    """`asked` are (path, body) of all requests."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """The paths."""

    protocol_version = "HTTP/1.1"
    server: Ollama

    def log_message(self, *args: Any) -> None:
        """Say nothing per request."""

    def do_GET(self) -> None:
        """What it is and has."""
        self.server.asked.append((self.path, {}))
        if self.path == "/api/version":
            self.say({"version": "0.33.1"})
        else:
            self.say({"models": [{"name": "near:latest"}, {"name": "far:latest"}]})

    def do_POST(self) -> None:
        """Whose model it is, and answers."""
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)))
        self.server.asked.append((self.path, body))
        name = body.get("model", "")
        if self.path == "/api/show":
            if name == "near:latest":
                return self.say({"details": {}, "model_info": {}})
            if name in ("far:latest", "alias-of-far"):
                return self.say({"remote_host": "https://ollama.com:443", "remote_model": "far"})
            return self.say({"error": "not found"}, 404)
        if self.path == "/api/chat":
            return self.raw(lines(), "application/x-ndjson")
        if self.path == "/v1/messages":
            return self.say(clauded.message("x"))
        if body.get("stream"):
            return self.raw(openaid.normal(), "text/event-stream")
        return self.say({"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]})

    def say(self, body: object, status: int = 200) -> None:
        """One JSON answer."""
        self.raw(json.dumps(body).encode(), "application/json", status)

    def raw(self, data: bytes, kind: str, status: int = 200) -> None:
        """One answer."""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def ollama() -> Iterator[Ollama]:
    """One for as long as the block runs."""
    server = Ollama()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
