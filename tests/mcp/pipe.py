"""A driver of an MCP server over its pipes, byte by byte: what an SDK's client would hide."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
HELLO = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "pipe", "version": "1"}}
PATIENCE_S = 60.0


class Pipe:
    """One server process. Everything it writes to standard output has to be a JSON-RPC message."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(env or {})},
            cwd=ROOT,
        )
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self.errors = b""
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._read, self._hear)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(10)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

    def hello(self) -> dict[str, Any]:
        """The handshake of the older era."""
        self.send({"jsonrpc": "2.0", "id": "hello", "method": "initialize", "params": HELLO})
        answer = self.answer("hello")
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    def send(self, message: Any) -> None:
        self.raw(json.dumps(message).encode() + b"\n")

    def raw(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def call(self, number: int, tool: str, **arguments: Any) -> None:
        params = {"name": tool, "arguments": arguments, "_meta": {"progressToken": number}}
        self.send({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})

    def message(self) -> dict[str, Any]:
        """The next line, which is one JSON-RPC message."""
        line = self._lines.get(timeout=PATIENCE_S)
        assert line is not None, f"the server ended: {self.errors.decode()}"
        message = json.loads(line)
        assert isinstance(message, dict)
        assert message["jsonrpc"] == "2.0"
        return message

    def answer(self, number: Any) -> dict[str, Any]:
        """The answer to a request; what comes before it is passed over."""
        while True:
            message = self.message()
            if "method" not in message and message.get("id") == number:
                return message

    def eof(self) -> int:
        """Close its standard input; the exit code."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(PATIENCE_S)

    def rest(self) -> list[dict[str, Any]]:
        """Everything that was still written, once it ended."""
        found = []
        while (line := self._lines.get(timeout=PATIENCE_S)) is not None:
            found.append(json.loads(line))
        return found

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _hear(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.errors += line
