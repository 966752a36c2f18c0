"""A stand-in for LocalAI, written from its sources: routes, checks and errors, and a state that changes.

As a program: `local-ai run --address H:P --models-path DIR …`, `--version`, `backends install NAME --backends-path D`.
It reads the configurations in its models folder once, at its start, refuses paths that leave the folder, offers loose
files without a known ending, wants an engine's folder before it loads, keeps what is loaded, and unloads it when idle.
Started with `python -I -S`. LOCALAI_API_KEY, LOCALAI_WATCHDOG_IDLE and …_TIMEOUT are honoured.
Test switches: a file `.starting` in the models folder (readyz 503 while it is there); a model that begins with CRASH
or SLEEP ends or keeps the server that loads it.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

VERSION = "v4.9.0"
PUBLIC = {"/readyz", "/healthz", "/.well-known/localai.json"}
SKIPPED = (".yaml", ".yml", ".json", ".txt", ".safetensors", ".bin", ".gguf", ".md", ".partial")


class LocalAI:
    """What one server knows and holds."""

    def __init__(self, models: Path, engines: Path, env: dict[str, str]) -> None:
        self.folder, self.engines = models, engines
        self.key = env.get("LOCALAI_API_KEY", "")
        idle = env.get("LOCALAI_WATCHDOG_IDLE", "") == "true"
        self.idle = float(env.get("LOCALAI_WATCHDOG_IDLE_TIMEOUT", "15m").rstrip("sm")) if idle else 0.0
        self.loaded: dict[str, float] = {}
        self.asked: list[tuple[str, str]] = []
        self.lock = threading.Lock()
        self.configs = {c["name"]: c for c in self._read()}

    def _read(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(self.folder.glob("*.y*ml")):
            config = json.loads(path.read_text(encoding="utf-8"))
            files = [config.get("backend", ""), config["parameters"]["model"], config.get("mmproj", "")]
            if any(f.startswith("/") or ".." in f for f in files):
                print(f"config is not valid: invalid file path: {files}", file=sys.stderr, flush=True)
                continue
            found.append(config)
        return found

    def names(self) -> list[str]:
        known = {c["parameters"]["model"] for c in self.configs.values()}
        loose = (p.name for p in sorted(self.folder.iterdir()) if p.is_file() and not p.name.startswith("."))
        return [*self.configs, *(n for n in loose if not n.lower().endswith(SKIPPED) and n not in known)]

    def load(self, name: str) -> str:
        """Load a model; the words of the error, empty when it went well."""
        config = self.configs.get(name)
        if config is None:
            return f"no model config found for {name}"
        if not (self.engines / config["backend"]).is_dir():
            return f"backend not found: {config['backend']}"
        model = self.folder / config["parameters"]["model"]
        if model.read_bytes()[:5] == b"CRASH":
            print("SIGILL: illegal instruction", file=sys.stderr, flush=True)
            os._exit(132)
        if model.read_bytes()[:5] == b"SLEEP":
            time.sleep(60)
        for file in (model, *(model.parent / config[k] for k in ("mmproj", "lora_adapter") if config.get(k))):
            if not file.exists() or file.read_bytes()[:4] != b"GGUF":
                return f"could not load model: rpc error: code = Unknown desc = failed loading {file.name}"
        self.loaded[name] = time.monotonic()
        return ""

    def expire(self) -> None:
        """The watchdog."""
        while True:
            time.sleep(0.05)
            with self.lock:
                for name, used in list(self.loaded.items()):
                    if self.idle and time.monotonic() - used > self.idle:
                        del self.loaded[name]


class Handler(BaseHTTPRequestHandler):
    """LocalAI's routes, as far as the backend needs them."""

    protocol_version = "HTTP/1.1"
    ai: ClassVar[LocalAI]

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""

    def say(self, status: int, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def fail(self, status: int, message: str) -> None:
        self.say(status, {"error": {"code": status, "message": message, "type": ""}})

    def admitted(self, path: str) -> bool:
        ai = self.ai
        given = self.headers.get("authorization", "").removeprefix("Bearer ") or self.headers.get("x-api-key")
        if not ai.key or path in PUBLIC or given == ai.key:
            return True
        error = {"code": 401, "message": "An authentication key is required", "type": "invalid_request_error"}
        self.say(401, {"error": error})
        return False

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.ai.asked.append(("GET", url.path))
        if not self.admitted(url.path):
            return
        ai = self.ai
        with ai.lock:
            match url.path:
                case "/healthz":
                    self.say(200)
                case "/readyz":
                    starting = (ai.folder / ".starting").exists()
                    body = {"status": "starting", "reason": "startup preload in progress"}
                    self.say(503, body) if starting else self.say(200)
                case "/version":
                    self.say(200, {"version": f"{VERSION} (0123456)"})
                case "/.well-known/localai.json":
                    self.say(200, {"version": VERSION, "endpoints": {"models": "/v1/models"}})
                case "/v1/models":
                    self.say(200, {"object": "list", "data": [{"id": n, "object": "model"} for n in ai.names()]})
                case "/system":
                    loaded = [{"id": n, "backend": ai.configs[n]["backend"]} for n in ai.loaded]
                    self.say(200, {"backends": ["llama-cpp"], "loaded_models": loaded})
                case "/backend/monitor":
                    name = (parse_qs(url.query).get("model") or [""])[0]
                    if not name:
                        self.fail(400, "code=400, message=model query parameter is required")
                    elif name not in ai.loaded:
                        self.fail(500, f"backend {name} is not currently loaded")
                    else:
                        size = (ai.folder / ai.configs[name]["parameters"]["model"]).stat().st_size
                        self.say(200, {"state": 2, "memory": {"total": size, "breakdown": {"weights": size}}})
                case _:
                    self.fail(404, "Resource not found")

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.ai.asked.append(("POST", self.path))
        if not self.admitted(self.path):
            return
        try:
            body = json.loads(data)
        except ValueError:
            self.fail(400, "code=400, message=Syntax error")
            return
        name, ai = body.get("model") or "", self.ai
        with ai.lock:
            match self.path:
                case "/backend/load" if not name:
                    self.say(400, {"loaded": None, "message": "model is required"})
                case "/backend/load":
                    wrong = ai.load(name)
                    if wrong:
                        self.say(500, {"loaded": [], "message": f"failed to load model: {wrong}"})
                    else:
                        self.say(200, {"loaded": [name], "message": "model loaded"})
                case "/backend/shutdown" if not name:
                    self.fail(400, "code=400, message=model is required")
                case "/backend/shutdown":
                    # its handler of errors replaces the words of every 404
                    known = ai.loaded.pop(name, None) is not None
                    self.say(200, {"message": "model stopped"}) if known else self.fail(404, "Resource not found")
                case "/v1/completions" | "/v1/chat/completions":
                    self.answer(name, body)
                case _:
                    self.fail(404, "Resource not found")

    def answer(self, name: str, body: dict[str, Any]) -> None:
        wrong = "" if name in self.ai.loaded else self.ai.load(name)
        if wrong:
            self.fail(500, wrong)
            return
        self.ai.loaded[name] = time.monotonic()
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        if not body.get("stream"):
            said = {"message": {"role": "assistant", "content": "hello there"}, "text": "hello there"}
            self.say(200, {"model": name, "choices": [said | {"index": 0, "finish_reason": "stop"}], "usage": usage})
            return
        pieces: list[dict[str, Any]] = [{"delta": {"content": w}, "finish_reason": None} for w in ("hello", " there")]
        lines = [{"model": name, "choices": [{"index": 0} | p]} for p in pieces]
        last: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
        lines += [{"model": name, "choices": [last]}, {"model": name, "choices": [], "usage": usage}]
        text = "".join(f"data: {json.dumps(line)}\n\n" for line in lines) + "data: [DONE]\n\n"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


def run(args: argparse.Namespace) -> None:
    for folder in (args.models_path, args.data_path, args.backends_path):
        Path(folder).mkdir(parents=True, exist_ok=True)
    Handler.ai = LocalAI(Path(args.models_path), Path(args.backends_path), dict(os.environ))
    host, _, port = args.address.rpartition(":")
    server = ThreadingHTTPServer((host.strip("[]"), int(port)), Handler)
    server.daemon_threads = True
    threading.Thread(target=Handler.ai.expire, daemon=True).start()
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    print("LocalAI is started and running", file=sys.stderr, flush=True)
    server.serve_forever(poll_interval=0.02)


def main() -> None:
    """Be the program."""
    if "--version" in sys.argv:
        print(VERSION)
        return
    parser = argparse.ArgumentParser(prog="local-ai")
    words = parser.add_subparsers(dest="word", required=True)
    serve = words.add_parser("run")
    for flag in ("--address", "--models-path"):
        serve.add_argument(flag, required=True)
    for flag in ("--data-path", "--backends-path", "--localai-config-dir", "--upload-path", "--generated-content-path"):
        serve.add_argument(flag, default=flag.strip("-"))
    backends = words.add_parser("backends")
    backends.add_argument("what", choices=["install"])
    backends.add_argument("name")
    backends.add_argument("--backends-path", required=True)
    args = parser.parse_args()
    if args.word == "backends":
        (Path(args.backends_path) / args.name).mkdir(parents=True)
    else:
        run(args)


if __name__ == "__main__":
    main()
