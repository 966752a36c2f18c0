"""A stand-in for LM Studio, written from its `lms` sources and documentation: the command, and the daemon behind it.

As a program it is `lms`: `version --json`, `daemon status`, `server start|stop|status`, `import`, `load`, `ls --json`,
`ps --json`. Its home is $HOME/.lmstudio, as the real one's. `server start` leaves a daemon behind that outlives it, in
a session of its own. Started with `python -I -S`.
$HOME/.lmstudio/fake.json holds test switches: `token` (authentication on), `old` (before 0.4), `slow_index` (seconds
until an imported file is seen), `no_hard_links` (imports fail as across file systems).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

HOME = Path(os.environ.get("HOME", "/nonexistent")) / ".lmstudio"
MODELS = HOME / "models"
CONFIG = HOME / ".internal" / "http-server-config.json"
PID = HOME / ".internal" / "pid"
COMMIT = "07b7252"
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def switches() -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((HOME / "fake.json").read_text())
    except OSError:
        return {}
    return found


def downloaded() -> list[dict[str, Any]]:
    """Every model on the disk: PUBLISHER/REPO/FILE.gguf, in the form of `lms ls --json`."""
    wait = switches().get("slow_index", 0)
    found = []
    for path in sorted(MODELS.glob("*/*/*.gguf")):
        if path.name.startswith("mmproj") or time.time() - path.lstat().st_ctime < wait:
            continue
        publisher, repo, file = path.relative_to(MODELS).parts
        row = {"type": "llm", "modelKey": repo.lower(), "format": "gguf", "path": f"{publisher}/{repo}/{file}"}
        found.append(row | {"publisher": publisher, "sizeBytes": path.stat().st_size, "maxContextLength": 32768})
    return found


class Handler(BaseHTTPRequestHandler):
    """The HTTP server of the daemon. `/fake/*` is how its own `lms` talks to it."""

    protocol_version = "HTTP/1.1"
    loaded: ClassVar[dict[str, dict[str, Any]]] = {}
    lock: ClassVar[threading.Lock] = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""

    def say(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, message: str, code: str, param: str = "model") -> None:
        error = {"message": message, "type": "invalid_request_error", "param": param, "code": code}
        self.say(status, {"error": error})

    def admitted(self) -> bool:
        token = switches().get("token")
        given = self.headers.get("authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key")
        if not token or given == token or self.path == "/lmstudio-greeting" or self.path.startswith("/fake/"):
            return True
        self.fail(401, "An LM Studio API token is required to make requests to this server.", "invalid_api_key", "")
        return False

    def expire(self) -> None:
        for name, row in list(self.loaded.items()):
            if row["ttl"] and time.monotonic() - row["used"] > row["ttl"]:
                del self.loaded[name]

    def do_GET(self) -> None:
        if not self.admitted():
            return
        with self.lock:
            self.expire()
            rows, old = downloaded(), switches().get("old")
            match self.path:
                case "/lmstudio-greeting":
                    self.say(200, {"lmstudio": True})
                case "/v1/models":
                    names = [*self.loaded, *(r["modelKey"] for r in rows)]
                    self.say(200, {"object": "list", "data": [{"id": n, "object": "model"} for n in names]})
                case "/api/v1/models" if not old:
                    self.say(200, {"models": [self.described(r) for r in rows]})
                case "/api/v0/models":
                    state = {r["key"]: r for r in self.loaded.values()}
                    data = [
                        {"id": n, "state": "loaded", "loaded_context_length": r["ctx"]} for n, r in self.loaded.items()
                    ]
                    idle = (r["modelKey"] for r in rows if r["modelKey"] not in state)
                    self.say(
                        200, {"object": "list", "data": [*data, *({"id": n, "state": "not-loaded"} for n in idle)]}
                    )
                case "/fake/ps":
                    self.say(
                        200, [{"identifier": n, "path": r["path"], "ttlMs": r["ttl"]} for n, r in self.loaded.items()]
                    )
                case _:
                    self.unexpected("GET")

    def described(self, row: dict[str, Any]) -> dict[str, Any]:
        mine = {n: r for n, r in self.loaded.items() if r["key"] == row["modelKey"]}
        instances = [{"id": n, "config": {"context_length": r["ctx"], "parallel": 4}} for n, r in mine.items()]
        body = {"type": "llm", "publisher": row["publisher"], "key": row["modelKey"], "size_bytes": row["sizeBytes"]}
        return body | {
            "loaded_instances": instances,
            "max_context_length": 32768,
            "format": "gguf",
            "description": None,
        }

    def unexpected(self, method: str) -> None:
        """It says 200 to whatever it does not know."""
        self.say(200, {"error": f"Unexpected endpoint or method. ({method} {self.path})"})

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        if not self.admitted():
            return
        body = json.loads(data)
        old = switches().get("old")
        with self.lock:
            self.expire()
            match self.path:
                case "/api/v1/models/load" if not old:
                    self.load(body)
                case "/api/v1/models/unload" if not old:
                    name = body.get("instance_id")
                    if self.loaded.pop(name, None) is None:
                        self.fail(404, f"Model instance {name} is not loaded", "model_not_found", "instance_id")
                    else:
                        self.say(200, {"instance_id": name})
                case "/fake/load":
                    self.loaded[body["identifier"]] = body | {"used": time.monotonic()}
                    self.say(200, {})
                case "/fake/stop":
                    self.say(200, {})
                    threading.Timer(0.05, lambda: os._exit(0)).start()
                case "/v1/completions" | "/v1/chat/completions":
                    self.answer(body)
                case _:
                    self.unexpected("POST")

    def load(self, body: dict[str, Any]) -> None:
        row = next((r for r in downloaded() if r["modelKey"] == body.get("model")), None)
        if row is None:
            self.fail(404, f"Model {body.get('model')} not found", "model_not_found")
            return
        name, count = row["modelKey"], 1
        while name in self.loaded:  # a second load is a second instance
            count += 1
            name = f"{row['modelKey']}:{count}"
        ctx = body.get("context_length") or 4096
        state = {"key": row["modelKey"], "path": row["path"], "ctx": ctx, "ttl": 0, "used": time.monotonic()}
        self.loaded[name] = state
        answer: dict[str, Any] = {"type": "llm", "instance_id": name, "load_time_seconds": 0.01, "status": "loaded"}
        self.say(200, answer | ({"load_config": {"context_length": ctx}} if body.get("echo_load_config") else {}))

    def answer(self, body: dict[str, Any]) -> None:
        name = body.get("model")
        if not self.loaded:
            text = "No models loaded. Please load a model in the developer page or use the `lms load` command."
            self.fail(404, text, "model_not_found")
            return
        if name not in self.loaded:
            if len(self.loaded) > 1:
                names = "\n".join(self.loaded)
                self.fail(
                    404,
                    f'Model "{name}" not found. Please specify a valid model.\n\nYour models:\n\n{names}',
                    "model_not_found",
                )
                return
            name = next(iter(self.loaded))  # with one model loaded it does not look at the name
        self.loaded[name]["used"] = time.monotonic()
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if not body.get("stream"):
            said = {"message": {"role": "assistant", "content": "hello there"}, "text": "hello there"}
            self.say(200, {"model": name, "choices": [said | {"index": 0, "finish_reason": "stop"}], "usage": usage})
            return
        deltas: list[dict[str, Any]] = [{"delta": {"content": w}, "finish_reason": None} for w in ("hello", " there")]
        deltas.append({"delta": {}, "finish_reason": "stop"})
        lines: list[dict[str, Any]] = [{"model": name, "choices": [{"index": 0} | d]} for d in deltas]
        lines.append({"model": name, "choices": [], "usage": usage})
        text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def call(path: str, body: Any = None) -> Any:
    """One request of `lms` to its daemon; None when it does not run."""
    try:
        port = json.loads(CONFIG.read_text())["port"]
        data = None if body is None else json.dumps(body).encode()
        with DIRECT.open(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data), timeout=2) as answer:
            return json.loads(answer.read())
    except (OSError, ValueError, KeyError, urllib.error.URLError):
        return None


def leave(message: str) -> None:
    print(f"\x1b[31mError:\x1b[39m {message}", file=sys.stderr)
    raise SystemExit(1)


def start(args: argparse.Namespace) -> None:
    CONFIG.parent.mkdir(parents=True, exist_ok=True)
    CONFIG.write_text(json.dumps({"port": args.port, "networkInterface": args.bind}))
    words = [sys.executable, "-I", "-S", __file__, "--daemon", args.bind, str(args.port)]
    null = subprocess.DEVNULL
    child = subprocess.Popen(words, stdin=null, stdout=null, stderr=null, start_new_session=True)
    for _ in range(100):
        if call("/lmstudio-greeting") == {"lmstudio": True} and child.poll() is None:
            print(f"Success! Server is now running on port {args.port}")
            return
        time.sleep(0.05)
    leave("Failed to verify the server is running. Please try to use another port.")


def take(args: argparse.Namespace) -> None:
    if sum((args.hard_link, args.symbolic_link, args.copy)) > 1:
        leave("Cannot specify more than one of --copy, --hard-link, or --symbolic-link")
    source = Path(args.file)
    if not source.is_file():
        leave(f"command-argument value '{source}' is invalid for argument 'file-path'. File does not exist")
    user, _, repo = args.user_repo.partition("/")
    target = MODELS / user / repo / source.name
    if os.path.lexists(target):
        leave(f"Target file already exists: {target}")
    target.parent.mkdir(parents=True, exist_ok=True)
    if args.hard_link:
        if switches().get("no_hard_links"):
            leave(f"EXDEV: cross-device link not permitted, link '{source}' -> '{target}'")
        os.link(source, target)
        print(f"Hard link created at {target}")
    elif args.symbolic_link:
        target.symlink_to(source)
        print(f"Symbolic link created at {target}")
    else:
        leave("the stand-in neither moves nor copies")


def load(args: argparse.Namespace) -> None:
    found = next((r for r in downloaded() if args.model in (r["path"], None if args.exact else r["modelKey"])), None)
    if found is None:
        leave(f'Model not found\n\n  No model found with path being exactly "{args.model}".')
        return
    if (MODELS / found["path"]).read_bytes()[:4] != b"GGUF":
        leave("Failed to load model: error loading model: unknown model architecture")
    body = {"identifier": args.identifier or found["modelKey"], "key": found["modelKey"], "path": found["path"]}
    if call("/fake/load", body | {"ctx": args.context_length or 4096, "ttl": args.ttl or 0}) is None:
        leave("Failed to start or connect to local LM Studio API server.")
    print("Model loaded successfully")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="lms")
    words = parser.add_subparsers(dest="word", required=True)
    for name in ("version", "ls", "ps"):
        words.add_parser(name).add_argument("--json", action="store_true")
    words.add_parser("daemon").add_argument("what", choices=["status"])
    server = words.add_parser("server")
    server.add_argument("what", choices=["start", "stop"])
    server.add_argument("-p", "--port", type=int, default=1234)
    server.add_argument("--bind", default="127.0.0.1")
    bring = words.add_parser("import")
    bring.add_argument("file")
    bring.add_argument("--user-repo", required=True)
    for flag in (("-y", "--yes"), ("-L", "--hard-link"), ("-l", "--symbolic-link"), ("-c", "--copy")):
        bring.add_argument(*flag, action="store_true")
    into = words.add_parser("load")
    into.add_argument("model")
    for name in ("--exact", "--yes"):
        into.add_argument(name, action="store_true")
    into.add_argument("--identifier")
    into.add_argument("--gpu")
    into.add_argument("--context-length", type=int)
    into.add_argument("--ttl", type=int)
    return parser.parse_args()


def main() -> None:
    """Be `lms`, or its daemon."""
    if sys.argv[1:2] == ["--daemon"]:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        PID.write_text(str(os.getpid()))
        ThreadingHTTPServer((sys.argv[2], int(sys.argv[3])), Handler).serve_forever(poll_interval=0.02)
        return
    args = parsed()
    match args.word:
        case "version":
            print(json.dumps({"version": COMMIT}))
        case "daemon":
            up = call("/lmstudio-greeting") is not None
            print(f"llmster v0.4.1 is running (PID: {PID.read_text()})" if up else "LM Studio is not running")
        case "server" if args.what == "start":
            start(args)
        case "server":
            if call("/fake/stop", {}) is None:
                leave("The server is not running.")
        case "import":
            take(args)
        case "load":
            load(args)
        case "ls":
            print(json.dumps(downloaded()))
        case "ps":
            print(json.dumps(call("/fake/ps") or []))


if __name__ == "__main__":
    main()
