"""What the tests of batches share: inputs, a quick run in this process, and the command in one of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from miyabi_llm import batch
from miyabi_llm.types import Endpoint, Event, OnEvent, Secret
from tests.batch.standin import Standin

QUICK = batch.Limits(tries=5, patience_s=5.0, timeout_s=5.0, grace_s=1.0, backoff_s=0.01, backoff_limit_s=0.05)


def request(custom_id: str, prompt: str, url: str = "/v1/chat/completions") -> dict[str, Any]:
    key = {"/v1/completions": "prompt", "/v1/embeddings": "input"}.get(url)
    body: dict[str, Any] = {key: prompt} if key else {"messages": [{"role": "user", "content": prompt}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "m", **body}}


def write(path: Path, rows: Iterable[Any]) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), "utf-8")
    return path


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of an output by name; fails on a line that is not whole and on a name that is there twice."""
    data = path.read_bytes()
    assert data.endswith(b"\n") or not data, "the last line is torn"
    rows = [json.loads(line) for line in data.splitlines()]
    by_name = {r["custom_id"]: r for r in rows}
    assert len(by_name) == len(rows), "a row is there twice"
    return by_name


def text(row: dict[str, Any]) -> str:
    """What a model said in a row of the output."""
    choice = row["response"]["body"]["choices"][0]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


def go(
    job: batch.Job,
    server: Standin,
    limits: batch.Limits = QUICK,
    *,
    model: str = "",
    stop: batch.Stop | None = None,
    on_event: OnEvent | None = None,
) -> batch.Summary:
    """Run a batch in this process."""
    key = Secret(server.memory.key) if server.memory.key else None
    events: list[Event] = []
    with batch.opened(job, on_event or events.append) as work:
        endpoint = Endpoint(server.url, model or "m", key=key)
        return batch.run(work, endpoint, limits, on_event or events.append, model=model, stop=stop or batch.Stop())


def command(source: Path, output: Path, url: str, *more: str) -> list[str]:
    """The command line of a batch."""
    return [sys.executable, "-m", "miyabi_llm", "batch", str(source), "-o", str(output), "--url", url, *more]


def call(source: Path, output: Path, url: str, *more: str) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(command(source, output, url, *more), capture_output=True, text=True, timeout=60)
