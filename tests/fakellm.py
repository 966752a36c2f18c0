"""A little server that speaks like llama-server and fails on command: the far side of the tests of serving.

Run as `python -I -S fakellm.py --port N --alias NAME [--mode MODE] [...]`; the key comes in LLAMA_API_KEY.

Modes: ok; slowload (health 503 for --load seconds, a log line every 0.1 s unless --quiet); crash-load (exit 3 after
some last words); crash-token (exits after --count tokens); hang (health 200, no token, after --count tokens);
ignore-term; grandchild (double-forks a child in its own session that holds our pipes and ignores SIGTERM);
oom (SIGKILLs itself while loading); port-taken (bind error, llama-server's words); flood (--count MiB of binary without
a newline on stderr, then ok); wrong-identity (offers another model); no-auth (answers without the key);
never-binds (runs, listens nowhere); slow (a chat takes the `seconds` of its body, else --answer, and /slots says who
is busy; with `stream` it is a stream whose first piece comes at once).
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Handler(BaseHTTPRequestHandler):
    """llama-server's paths, as far as serving needs them."""

    args: ClassVar[argparse.Namespace]
    ready_at: ClassVar[float] = 0.0
    tokens: ClassVar[int] = 0
    chats: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""

    def say(self, status: int, body: Any) -> None:
        """One JSON answer."""
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def admitted(self) -> bool:
        """Whether the key is right; answers 401 or 503 otherwise."""
        key = os.environ.get("LLAMA_API_KEY")
        if key and self.args.mode != "no-auth" and self.headers.get("authorization") != f"Bearer {key}":
            self.say(401, {"error": {"code": 401, "message": "Invalid API Key"}})
            return False
        if time.monotonic() < Handler.ready_at:
            self.say(503, {"error": {"code": 503, "message": "Loading model"}})
            return False
        return True

    def do_GET(self) -> None:
        """Health and models."""
        if self.path == "/health":
            loading = time.monotonic() < Handler.ready_at
            self.say(503 if loading else 200, {"error": "Loading model"} if loading else {"status": "ok"})
        elif self.admitted():
            name = "stranger" if self.args.mode == "wrong-identity" else self.args.alias
            if self.path == "/v1/models":
                self.say(200, {"object": "list", "data": [{"id": name, "object": "model"}]})
            elif self.path == "/slots" and self.args.mode == "slow":
                self.say(200, [{"id": 0, "is_processing": Handler.chats > 0}])
            else:
                self.say(404, {"error": {"code": 404, "message": "File Not Found"}})

    def do_POST(self) -> None:
        """One token, or --mode's way of failing to give it."""
        asked = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or "{}")
        if not self.admitted():
            return
        with Handler.lock:
            Handler.tokens += 1
            count = Handler.tokens
        if self.args.mode == "crash-token" and count > self.args.count:
            print("fatal: the token that broke it", file=sys.stderr, flush=True)
            os._exit(134)
        if self.args.mode == "hang" and count > self.args.count:
            time.sleep(3600)
        if self.path == "/v1/completions":
            self.say(200, {"choices": [{"text": "a", "finish_reason": "length"}], "model": self.args.alias})
        elif self.path == "/v1/chat/completions":
            self.chat(asked)
        else:
            self.say(404, {"error": {"code": 404, "message": "File Not Found"}})

    def chat(self, asked: dict[str, Any]) -> None:
        """An answer that takes its time, whole or as a stream."""
        seconds = float(asked.get("seconds", self.args.answer))
        with Handler.lock:
            Handler.chats += 1
        if asked.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.piece(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n')
            time.sleep(seconds)
            self.piece(b'data: {"choices": [{"delta": {}, "finish_reason": "length"}]}\n\ndata: [DONE]\n\n')
            self.piece(b"")
        else:
            time.sleep(seconds)
            choice = {"message": {"role": "assistant", "content": "a"}, "finish_reason": "length"}
            self.say(200, {"choices": [choice], "model": self.args.alias})
        with Handler.lock:
            Handler.chats -= 1

    def piece(self, data: bytes) -> None:
        """One chunk of a body; the last one is empty."""
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))


def grandchild() -> None:
    """A worker that left the process group and the session, and will not listen to SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            time.sleep(3600)
        os._exit(0)
    os.wait()


def main() -> None:
    """Be the server."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--alias", default="fake")
    parser.add_argument("--mode", default="ok")
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--load", type=float, default=0.0)
    parser.add_argument("--answer", type=float, default=0.0)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    print(f"fakellm: loading {args.alias}, mode {args.mode}", file=sys.stderr, flush=True)
    if args.mode == "crash-load":
        print("error: invalid argument: --nonsense", file=sys.stderr, flush=True)
        raise SystemExit(3)
    if args.mode == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    if args.mode == "port-taken":
        print(f"srv start: couldn't bind HTTP server socket, hostname: {args.host}, port: {args.port}", file=sys.stderr)
        raise SystemExit(1)
    if args.mode == "never-binds":
        time.sleep(3600)
    if args.mode == "ignore-term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.mode == "grandchild":
        grandchild()
    if args.mode == "flood":
        for _ in range(args.count * 16):
            os.write(2, b"\x00\xff\x1b[31m" + os.urandom(1024).replace(b"\n", b".") * 63 + b"x" * 1016)
    Handler.args = args
    Handler.ready_at = time.monotonic() + args.load
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    server.daemon_threads = True
    if args.load and not args.quiet:
        threading.Thread(target=chatter, args=(args.load,), daemon=True).start()
    server.serve_forever(poll_interval=0.05)


def chatter(seconds: float) -> None:
    """A log that shows progress."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        print(".", end="", file=sys.stderr, flush=True)
        time.sleep(0.1)


if __name__ == "__main__":
    main()
