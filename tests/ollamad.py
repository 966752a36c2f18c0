"""A stand-in for Ollama, written from its published server (server/routes.go, create.go): a program and a class.

As a program it is `ollama serve` and `ollama --version`, and honours OLLAMA_HOST, OLLAMA_MODELS,
OLLAMA_CONTEXT_LENGTH and OLLAMA_KEEP_ALIVE. Its state is the real layout on disk (blobs/sha256-HEX, manifests/...), so
what another process puts there is seen, as by the real one. Not the real program: it computes no token, and where it
is wrong about the real one, so are the tests.

Faults, named in `Ollamad.faults` or one a line in OLLAMA_MODELS/faults: `late-error` and `early-error` (of create),
`no-success`, `garbage`, `cut` (of any stream), `half-gpu`, `small-ctx`, `wrong-model` (show tells another number of
parameters), `from-fails` (a model cannot be made from another), `old` (version 0.20.0), `no-debug`, `pull-error`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.ollama_state import Refused, State, seconds

VERSION = "0.33.1"
ANY = ("127.0.0.1", 0)
ROOT = Path(__file__).parent.parent


class _Handler(BaseHTTPRequestHandler):
    """The paths."""

    server_state: State
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""

    def say(self, status: int, body: Any, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def stream(self, lines: Iterator[dict[str, Any]]) -> None:
        """JSON lines; an error before the first is a plain refusal, one after it is a line."""
        state, begun = self.server_state, False
        try:
            for line in lines:
                if not begun and "error" in line:
                    return self.say(line.get("status", 500), {"error": line["error"]})
                if not begun:
                    begun = True
                    self.send_response(200)
                    self.send_header("content-type", "application/x-ndjson")
                    self.send_header("transfer-encoding", "chunked")
                    self.end_headers()
                self.chunk(json.dumps({k: v for k, v in line.items() if k != "status" or "error" not in line}) + "\n")
                if state.fault("garbage"):
                    self.chunk("<html>a proxy says hello</html>\n")
                if state.fault("cut"):
                    self.close_connection = True
                    return None
                if "error" in line:
                    break
        except Refused as e:
            if not begun:
                return self.say(e.status, {"error": e.words})
            self.chunk(json.dumps({"error": e.words}) + "\n")
        self.wfile.write(b"0\r\n\r\n")
        return None

    def chunk(self, text: str) -> None:
        half = len(text) // 2  # lines come in pieces
        for piece in (text[:half], text[half:]):
            data = piece.encode()
            if data:
                self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                self.wfile.flush()

    def answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        state, key = self.server_state, (self.command, self.path)
        try:
            if self.path.startswith("/api/blobs/"):
                return self.blobs(raw)
            body = json.loads(raw) if raw else {}
            state.heard.append((*key, body))
            return self.route(key, body)
        except Refused as e:
            error = {"message": e.words, "type": "api_error"} if self.path.startswith("/v1/") else e.words
            return self.say(e.status, {"error": error})
        except ValueError as e:
            return self.say(400, {"error": str(e)})

    do_GET = do_POST = do_DELETE = do_HEAD = answer

    def blobs(self, raw: bytes) -> None:
        state, digest = self.server_state, self.path.removeprefix("/api/blobs/")
        state.heard.append((self.command, self.path, len(raw)))
        path = state.store.blob(digest)
        if self.command == "HEAD":
            return self.say(200 if path.exists() else 404, "")
        if path.exists():
            return self.say(200, "")
        got = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        if got != digest:
            return self.say(400, {"error": f'digest mismatch, expected "{digest}", got "{got}"'})
        state.store.put(raw)
        return self.say(201, "")

    def route(self, key: tuple[str, str], body: dict[str, Any]) -> None:
        state = self.server_state
        match key:
            case ("GET" | "HEAD", "/"):
                self.say(200, "Ollama is running", "text/plain")
            case ("GET" | "HEAD", "/api/version"):
                self.say(200, {"version": "0.20.0" if state.fault("old") else VERSION})
            case ("GET", "/api/status"):
                self.say(200, {"cloud": {"disabled": bool(state.env.get("OLLAMA_NO_CLOUD")), "source": "env"}})
            case ("GET" | "HEAD", "/api/tags"):
                self.say(200, {"models": state.tags()})
            case ("GET", "/api/ps"):
                self.say(200, {"models": state.ps()})
            case ("POST", "/api/show"):
                self.say(200, state.show(body["model"]))
            case ("DELETE", "/api/delete"):
                state.store.remove(body["model"])
                self.say(200, "")
            case ("POST", "/api/create"):
                self.stream(state.create(body))
            case ("POST", "/api/pull"):
                self.stream(state.pull(body["model"]))
            case ("POST", "/api/generate"):
                self.generate(body)
            case ("POST", "/api/chat"):
                self.chat(body)
            case ("GET", "/v1/models"):
                rows = [{"id": r["model"], "object": "model", "owned_by": "library"} for r in state.tags()]
                self.say(200, {"object": "list", "data": rows or None})
            case ("POST", "/v1/completions" | "/v1/chat/completions"):
                self.openai(body)
            case _:
                self.say(404, "404 page not found", "text/plain")

    def generate(self, body: dict[str, Any]) -> None:
        state, empty = self.server_state, not body.get("prompt")
        keep = body.get("keep_alive")
        said = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z", "response": "", "done": True}
        if empty and keep is not None and seconds(keep) == 0:
            state.store.manifest(body["model"])
            path = state.store.path(body["model"])
            with state.lock:
                for name in [n for n, p in state.store.names().items() if p == path]:
                    state.loaded.pop(name, None)
            return self.say(200, said | {"done_reason": "unload"})
        state.ready(body["model"], body.get("options") or {}, keep)
        return self.say(200, said | ({"done_reason": "load"} if empty else {"response": "a", "done_reason": "stop"}))

    def chat(self, body: dict[str, Any]) -> None:
        state = self.server_state
        state.ready(body["model"], body.get("options") or {}, body.get("keep_alive"))
        said: dict[str, Any] = {"model": body["model"], "created_at": "2026-01-01T00:00:00Z"}
        if body.get("_debug_render_only") and not state.fault("no-debug"):
            text = "".join(f"<|{m['role']}|>{m['content']}" for m in body["messages"]) + "<|assistant|>"
            return self.say(200, said | {"_debug_info": {"rendered_template": text}})
        return self.say(200, said | {"message": {"role": "assistant", "content": "a"}, "done": True})

    def openai(self, body: dict[str, Any]) -> None:
        state = self.server_state
        shown = state.ready(body["model"], {}, None)
        text: dict[str, Any] = (
            {"message": {"role": "assistant", "content": "a"}} if "messages" in body else {"text": "a"}
        )
        if not body.get("stream"):
            return self.say(200, {"model": shown, "choices": [text | {"index": 0, "finish_reason": "stop"}]})
        delta = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": None}]}
        last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        data = "".join(f"data: {json.dumps(x)}\n\n" for x in (delta, last)) + "data: [DONE]\n\n"
        return self.say(200, data, "text/event-stream")


class Ollamad(State):
    """One server on a port of its own."""

    def __init__(
        self, root: Path, *, at: tuple[str, int] = ("127.0.0.1", 0), env: dict[str, str] | None = None
    ) -> None:
        super().__init__(root, env)
        handler = type("Handler", (_Handler,), {"server_state": self})
        self.httpd = ThreadingHTTPServer(at, handler)
        self.httpd.daemon_threads = True
        self.url = f"http://{at[0]}:{self.httpd.server_address[1]}"

    def __enter__(self) -> Ollamad:
        self._thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()
        self._thread.join()


def program(folder: Path) -> Path:
    """A program `ollama` in `folder` that is this stand-in."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ollama"
    lines = [f"#!{sys.executable}", "import sys", f"sys.path.insert(0, {str(ROOT)!r})"]
    lines += ["from tests.ollamad import main", "raise SystemExit(main(sys.argv[1:]))"]
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def main(argv: list[str]) -> int:
    """Be the program."""
    if argv[:1] in (["--version"], ["-v"]):
        print("Warning: could not connect to a running Ollama instance")
        print(f"Warning: client version is {VERSION}")
        return 0
    if argv != ["serve"]:
        print(f"Error: unknown command {argv}", file=sys.stderr)
        return 1
    host, _, port = os.environ.get("OLLAMA_HOST", "127.0.0.1:11434").rpartition(":")
    root = Path(os.environ.get("OLLAMA_MODELS") or Path.home() / ".ollama/models")
    time.sleep(0.05)
    with Ollamad(root, at=(host.strip("[]"), int(port)), env=dict(os.environ)) as server:
        print(f"Listening on {server.url} (version {VERSION})", file=sys.stderr, flush=True)
        threading.Event().wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
