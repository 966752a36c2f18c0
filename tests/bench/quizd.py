"""A server that knows the answers to the shipped task sets, and can be told which to get wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from miyabi_llm.bench.quality import BUILT_IN, load_tasks
from miyabi_llm.types import Endpoint


def value_of(schema: Mapping[str, Any]) -> Any:
    """The one value a check's schema allows."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "array":
        return [value_of(s) for s in schema.get("prefixItems", [])]
    return {key: value_of(s) for key, s in schema["properties"].items()}


def right_answer(check: Mapping[str, Any]) -> str:
    """An answer that is right by the check itself."""
    if check["kind"] == "review":
        return f"BUG {check['lines'][0]} {check['kinds'][0]}" if check["lines"] else "OK"
    if check["kind"] == "json":
        return json.dumps(value_of(check["schema"]), ensure_ascii=False)
    return str(check["answers"][0])


class Quiz(ThreadingHTTPServer):
    """`wrong` and `broken` are ids; `echo` returns the prompt with log-probabilities; `wander` varies every answer."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = {q.prompt: (q.id, right_answer(q.check)) for s in load_tasks(BUILT_IN) for q in s.questions}
        self.wrong: set[str] = set()
        self.broken: set[str] = set()
        self.echo = self.wander = False
        self.asked: list[dict[str, Any]] = []

    @property
    def endpoint(self) -> Endpoint:
        """Where it answers."""
        return Endpoint(f"http://127.0.0.1:{self.server_address[1]}", "quiz")


class Handler(BaseHTTPRequestHandler):
    """Chat and completions as streams, and the list of models."""

    server: Quiz
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""

    def say(self, status: int, data: bytes, kind: str = "application/json") -> None:
        """One answer."""
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        """The list of models."""
        found = self.path == "/v1/models"
        self.say(200 if found else 404, b'{"data": [{"id": "quiz"}]}' if found else b'{"error": "no"}')

    def do_POST(self) -> None:
        """The answer to a known question."""
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        chat = self.path.endswith("/chat/completions")
        if not body.get("stream"):
            self.say(200, json.dumps(self._probe(body)).encode())
            return
        text = body["messages"][-1]["content"] if chat else body["prompt"]
        known = [a for prompt, a in self.server.answers.items() if prompt in text]
        name, answer = max(known, key=lambda a: len(a[0]), default=("", ""))
        if name in self.server.broken:
            self.say(500, b'{"error": {"message": "broken on purpose"}}')
            return
        if name in self.server.wrong:
            answer = "no idea"
        if self.server.wander:
            answer += f"\n{len(self.server.asked)}"
        piece = {"delta": {"content": answer}} if chat else {"text": answer}
        chunks = [{"choices": [piece]}, {"choices": [{"delta": {}, "text": "", "finish_reason": "stop"}]}]
        data = b"".join(b"data: " + json.dumps(c).encode() + b"\n\n" for c in chunks) + b"data: [DONE]\n\n"
        self.say(200, data, "text/event-stream")

    def _probe(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.server.echo:
            return {"choices": [{"text": " five", "logprobs": None}]}
        values = [None, *[-1.5] * 4]
        return {"choices": [{"text": body["prompt"] + " five", "logprobs": {"token_logprobs": values}}]}


@contextmanager
def serving() -> Iterator[Quiz]:
    """One, while the block runs."""
    with Quiz() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
