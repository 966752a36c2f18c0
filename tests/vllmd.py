"""A little server that answers like vLLM 0.32's control paths and keeps their state; written from its sources.

Paths that a real one has only when it was started with them (`adapters`, `sleep`) answer 404 here too otherwise.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class State:
    """What the server knows."""

    key: str | None = None
    adapters: bool = True
    sleep: bool = True
    asleep: bool = False
    stuck: bool = False  # does not wake up
    loaded: dict[str, str] = field(default_factory=dict)
    running: int = 0
    tokens: int = 0
    url: str = ""
    model: str = "m"


class Handler(BaseHTTPRequestHandler):
    """vLLM's paths, as far as control needs them."""

    state: State
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing per request."""

    def say(self, status: int, body: Any) -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, message: str) -> None:
        self.say(status, {"error": {"message": message, "type": "InvalidUserInput", "param": None, "code": status}})

    def allowed(self) -> bool:
        state, given = self.state, self.headers.get("authorization")
        if (
            state.key
            and self.path.startswith(("/v1", "/v2", "/inference", "/cohere"))
            and given != f"Bearer {state.key}"
        ):
            self.say(401, {"error": "Unauthorized"})
            return False
        return True

    def do_GET(self) -> None:
        state = self.state
        if not self.allowed():
            return
        if self.path == "/version":
            self.say(200, {"version": "0.32.0"})
        elif self.path == "/health":
            self.say(200, "")
        elif self.path == "/v1/models":
            rows = [{"id": state.model, "object": "model", "owned_by": "vllm", "parent": None, "max_model_len": 2048}]
            rows += [{"id": n, "object": "model", "root": p, "parent": state.model} for n, p in state.loaded.items()]
            self.say(200, {"object": "list", "data": rows})
        elif self.path == "/is_sleeping" and state.sleep:
            self.say(200, {"is_sleeping": state.asleep})
        elif self.path == "/metrics":
            self.say(200, metrics(state))
        else:
            self.say(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        state = self.state
        body = json.loads(self.rfile.read(int(self.headers.get("content-length") or 0)) or b"{}")
        if not self.allowed():
            return
        path = self.path.partition("?")[0]
        if path == "/v1/load_lora_adapter" and state.adapters:
            if body["lora_name"] in state.loaded:
                self.error(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
            elif not Path(body["lora_path"], "adapter_config.json").is_file():
                self.error(404, f"Loading lora {body['lora_name']} failed: No adapter found for {body['lora_path']}")
            else:
                state.loaded[body["lora_name"]] = body["lora_path"]
                self.say(200, f"Success: LoRA adapter '{body['lora_name']}' added successfully.")
        elif path == "/v1/unload_lora_adapter" and state.adapters:
            if state.loaded.pop(body["lora_name"], None) is None:
                self.error(404, f"The lora adapter '{body['lora_name']}' cannot be found.")
            else:
                self.say(200, f"Success: LoRA adapter '{body['lora_name']}' removed successfully.")
        elif path == "/v1/completions" and body["model"] != state.model:
            self.error(404, f"The model `{body['model']}` does not exist.")
        elif path == "/v1/completions":
            choice = {"index": 0, "text": " tokens", "finish_reason": "length"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
            self.say(200, {"object": "text_completion", "model": state.model, "choices": [choice], "usage": usage})
        elif path == "/sleep" and state.sleep:
            state.asleep = True
            self.say(200, {"status": "sleeping", "level": 1})
        elif path == "/wake_up" and state.sleep:
            state.asleep = state.stuck
            self.say(200, {"status": "sleeping" if state.asleep else "awake", "tags": None})
        else:
            self.say(404, {"detail": "Not Found"})


def metrics(state: State) -> str:
    """The lines of `/metrics` that say what it is doing, among others."""
    label = '{engine="0",model_name="m"}'
    return (
        "# HELP vllm:num_requests_running Number of requests in model execution batches.\n"
        f"process_cpu_seconds_total 12.5\nvllm:num_requests_running{label} {float(state.running)}\n"
        f'vllm:num_requests_waiting{label} 0.0\nvllm:num_requests_waiting_by_reason{{reason="capacity"}} 0.0\n'
        f"vllm:prompt_tokens_total{label} 5.0\nvllm:generation_tokens_total{label} {float(state.tokens)}\n"
    )


@contextmanager
def running(**state: Any) -> Iterator[State]:
    """A server on a free port, until the block ends."""
    now = State(**state)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mine", (Handler,), {"state": now}))
    server.daemon_threads = True
    now.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield now
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def main(argv: list[str]) -> None:
    """Be the program, as far as its address, its model's name and its key go."""
    port, name = (argv[argv.index(flag) + 1] for flag in ("--port", "--served-model-name"))
    state = State(key=os.environ.get("VLLM_API_KEY"), adapters=False, sleep=False, model=name)
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), type("Mine", (Handler,), {"state": state}))
    server.serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
