"""A stand-in for Claude's API, written from its published event shapes, that fails on command.

Not the real service: it computes no token, and where it is wrong about the real one, so are the tests. As a program
(`python -m tests.clauded --port N`) it prints its port and serves until stdin ends.

What it does is scripted by `Clauded.script`, one entry a request, the last one for all that follow, or by the header
`x-clauded` of a request (which a gateway does not pass on to a cloud). Words: `ok`; `429` (with retry-after 7);
`429-bare`; `spend` (the month's limit); `400`, `401`, `402`, `403`, `404`, `413`, `500`, `529`; `cut=N` (breaks the
connection after N bytes of the stream); `reset=N` (the same with RST); `end=N` (ends the body in good order after N
bytes); `drop` (no answer at all); `silent=N` (N bytes, then nothing); `error` (an error event after the first words);
`error-first` (the error event comes first); `error-200` (an error as JSON under status 200); `half-json` (a whole
answer whose JSON is cut); `redirect`; `slow` (a word each 50 ms); `tool` and `tool-cut` (a call; one with half its
arguments); `call=JSON` (a call of `Clauded.tool` with these arguments); `html`; `gzip`.
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = ["Hello", ", ", "世界", " 🎌", "."]
MODEL = "claude-sonnet-5-5"
ERRORS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    529: "overloaded_error",
}


def event(name: str, body: dict[str, Any]) -> bytes:
    """One event as the API writes it."""
    return f"event: {name}\ndata: {json.dumps({'type': name} | body, ensure_ascii=False)}\n\n".encode()


OVERLOADED = event("error", {"error": {"type": "overloaded_error", "message": "x"}})


def beginning(model: str = MODEL) -> bytes:
    """message_start."""
    usage = {"input_tokens": 25, "cache_read_input_tokens": 5, "cache_creation_input_tokens": 0, "output_tokens": 1}
    message = {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model, "content": [],
        "stop_reason": None, "stop_sequence": None, "usage": usage,
    }  # fmt: skip
    return event("message_start", {"message": message})


def ending(reason: str = "end_turn", tokens: int = 15) -> bytes:
    """message_delta and message_stop."""
    delta = {"stop_reason": reason, "stop_sequence": None}
    return event("message_delta", {"delta": delta, "usage": {"output_tokens": tokens}}) + event("message_stop", {})


def text_block(words: list[str], index: int = 0) -> list[bytes]:
    """A block of text: its start, its words, its end."""
    deltas = [event("content_block_delta", {"index": index, "delta": {"type": "text_delta", "text": w}}) for w in words]
    start = event("content_block_start", {"index": index, "content_block": {"type": "text", "text": ""}})
    return [start, *deltas, event("content_block_stop", {"index": index})]


def tool_block(index: int, parts: list[str], name: str = "get_weather") -> list[bytes]:
    """A call whose arguments come in `parts`."""
    block = {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}}
    deltas = [
        event("content_block_delta", {"index": index, "delta": {"type": "input_json_delta", "partial_json": p}})
        for p in parts
    ]
    start = event("content_block_start", {"index": index, "content_block": block})
    return [start, *deltas, event("content_block_stop", {"index": index})]


def pieces(words: list[str] = WORDS, model: str = MODEL) -> list[bytes]:
    """A whole good stream, event by event."""
    return [beginning(model), event("ping", {}), *text_block(words), ending()]


def tool_stream(parts: list[str], name: str = "get_weather") -> bytes:
    """A good stream with a call."""
    return b"".join([beginning(), *text_block(["Let me see."]), *tool_block(1, parts, name), ending("tool_use")])


def error(status: int, message: str = "as asked", **details: Any) -> dict[str, Any]:
    """An error body."""
    body: dict[str, Any] = {"type": ERRORS.get(status, "api_error"), "message": message}
    return {"type": "error", "error": body | ({"details": details} if details else {}), "request_id": "req_1"}


def message(text: str, model: str = MODEL) -> dict[str, Any]:
    """A whole answer."""
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": model,
        "content": [{"type": "text", "text": text}], "stop_reason": "end_turn", "stop_sequence": None,
        "usage": {"input_tokens": 25, "output_tokens": 15},
    }  # fmt: skip


class Clauded(ThreadingHTTPServer):
    """`asked` are (path, headers, body bytes) of all requests; `bytes` counts what came in connections at all."""

    daemon_threads = True
    request_queue_size = 1024

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.connections = 0
        self.script: list[str] = ["ok"]
        self.tool = ""
        self.gone = threading.Event()
        self.left_at = 0.0
        self.release = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def word(self) -> str:
        """What the next request gets."""
        with self._lock:
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def get_request(self) -> Any:
        """Count connections: a leak would be one."""
        found = super().get_request()
        self.connections += 1
        return found

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what some tests do."""


class Handler(BaseHTTPRequestHandler):
    """The paths."""

    protocol_version = "HTTP/1.1"
    server: Clauded

    def log_message(self, *args: Any) -> None:
        """Say nothing per request."""

    def do_GET(self) -> None:
        """Nothing is read here; a redirect that is followed ends here."""
        self.server.asked.append((self.path, dict(self.headers), b""))
        self.json({"data": [{"type": "model", "id": MODEL}], "has_more": False})

    def do_POST(self) -> None:
        """Messages and token counts."""
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {k.lower(): v for k, v in self.headers.items()}
        self.server.asked.append((self.path, headers, data))
        path = self.path.partition("?")[0]
        if not headers.get("x-api-key") and not headers.get("authorization"):
            return self.json(error(401, "no key"), 401)
        body = json.loads(data)
        if path == "/v1/messages/count_tokens":
            return self.json({"input_tokens": len(data) // 4})
        if path == "/v1/messages":
            return self.act(self.server.word(), body)
        return self.json(error(404), 404)

    def act(self, word: str, body: dict[str, Any]) -> None:
        """Do what the script says."""
        name, _, number = word.partition("=")
        good = b"".join(pieces(model=body.get("model", MODEL)))
        if name in ("ok", "slow"):
            self.good(body, slow=name == "slow")
        elif name.partition("-")[0].isdigit():
            self.fail(name)
        elif name == "spend":
            self.json(error(429, "monthly limit", error_code="enforced_spend_limit_reached"), 429)
        elif name in ("cut", "reset", "end", "silent"):
            self.partly(name, good[: int(number)])
        elif name == "drop":
            self.drop()
        elif name == "error":
            self.stream(
                b"".join(pieces()[:4]) + event("error", {"error": {"type": "overloaded_error", "message": "x"}})
            )
        elif name == "error-first":
            self.stream(event("error", {"error": {"type": "overloaded_error", "message": "x"}}))
        elif name == "error-200":
            self.json(error(529))
        elif name == "half-json":
            self.whole(json.dumps(message("".join(WORDS))).encode()[:-20], "application/json")
        elif name == "redirect":
            self.whole(b"", "text/plain", 307, location=f"{self.server.url}/v1/messages")
        elif name in ("tool", "tool-cut"):
            self.stream(tool_stream(['{"city": ', '"東京"}'] if name == "tool" else ['{"city": "東']))
        elif name == "call":
            self.stream(tool_stream([number], self.server.tool))
        elif name == "html":
            self.whole(b"<html>log in</html>", "text/html")
        elif name == "gzip":
            self.whole(b"\x1f\x8b nonsense", "application/json", 200, content_encoding="gzip")
        else:
            raise AssertionError(word)

    def good(self, body: dict[str, Any], *, slow: bool) -> None:
        """A whole answer."""
        model = body.get("model", MODEL)
        if not body.get("stream"):
            return self.json(message("".join(WORDS), model))
        self.begin()
        try:
            for piece in pieces(WORDS if not slow else [f"w{i} " for i in range(1200)], model):
                self.piece(piece)
                time.sleep(0.05 if slow else 0)
            self.wfile.write(b"0\r\n\r\n")
        except OSError:
            self.server.left_at = time.monotonic()
            self.server.gone.set()
            self.close_connection = True

    def fail(self, word: str) -> None:
        """An error by its status."""
        status, _, bare = word.partition("-")
        headers = {"retry-after": "7"} if status == "429" and not bare else {}
        self.json(error(int(status)), int(status), **headers)

    def partly(self, how: str, data: bytes) -> None:
        """A part of a good stream, and then a way not to go on."""
        self.begin()
        if data:
            self.piece(data)
        if how == "end":
            self.wfile.write(b"0\r\n\r\n")
        elif how == "silent":
            self.server.release.wait(30)
            self.drop()
        elif how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()
        else:
            self.drop()

    def json(self, body: object, status: int = 200, **headers: str) -> None:
        """A JSON answer."""
        self.whole(json.dumps(body, ensure_ascii=False).encode(), "application/json", status, **headers)

    def stream(self, data: bytes) -> None:
        """A whole event stream."""
        self.begin()
        self.piece(data)
        self.wfile.write(b"0\r\n\r\n")

    def whole(self, data: bytes, kind: str, status: int = 200, **headers: str) -> None:
        """An answer of known length."""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.send_header("request-id", "req_1")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def begin(self) -> None:
        """The head of a stream."""
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("request-id", "req_1")
        self.end_headers()

    def piece(self, data: bytes) -> None:
        """One chunk."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def drop(self) -> None:
        """Break the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(*script: str, port: int = 0) -> Iterator[Clauded]:
    """A stand-in for as long as the block runs."""
    server = Clauded(port)
    server.script = list(script) or ["ok"]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Serve until stdin ends; the first line of stdout is the port, the last what was asked."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", default="ok")
    args = parser.parse_args()
    with serving(*args.script.split(","), port=args.port) as server:
        print(server.server_address[1], flush=True)
        sys.stdin.read()
        told = {"connections": server.connections, "requests": len(server.asked)}
        print(json.dumps(told | {"bytes": sum(len(b) for _, _, b in server.asked)}), flush=True)


if __name__ == "__main__":
    main()
