"""How a served model comes back after a crash, and what a killed supervisor leaves behind, for each backend here.

    python benchmarks/recovery.py [BACKEND ...] [--crashes N] [--kills N]

Crash: the server is killed with SIGKILL; measured until it answers with a token again, and how much of that was not its
own load: the time from the kill to the start of the next one (a pause of one second in it), and from the proof to the
answer. Kill: the supervisor is killed with SIGKILL; two seconds later nothing of it may be alive.
llama-cpp and embedded serve gemma3:270m, vllm a random little model.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

BACKOFF_S = 1.0  # the pause before the first restart: serve.Limits' own
CHILD = """
import json, sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from benchmarks.recovery import stage_of
from miyabi_llm import serve
name, home, alias = sys.argv[1:4]
plan, settings = stage_of(name, Path(home), alias)
limits = serve.Limits(grace_s=1.0, crash_window_s=0.1)  # each crash is the first one
begin = time.monotonic()
def told(event):
    if event.kind == "done":
        print(json.dumps([plan.endpoint.base_url, time.monotonic() - begin]), flush=True)
    if event.name in ("restart", "restarted"):  # the clock is the machine's: the parent reads the same
        print(json.dumps([event.name, time.monotonic()]), flush=True)
serve.forever(plan, settings, told, limits=limits)
"""


def stage_of(name: str, home: Path, alias: str):  # type: ignore[no-untyped-def]
    """A plan and settings for one backend of this machine."""
    from dataclasses import replace

    from miyabi_llm import backends, config
    from miyabi_llm.proc import ports
    from miyabi_llm.pull import pull
    from miyabi_llm.refs import Digest, ModelRef
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact, ServeSpec, StoredFile
    from tests import tinyqwen

    user = config.load()
    backend = backends.get(name)
    if name == "vllm":
        folder = home / "model"
        paths = {p.name: p for p in (folder if folder.exists() else tinyqwen.model(folder)).iterdir()}
        rows = tuple(StoredFile(n, Digest("0" * 64), p.stat().st_size) for n, p in paths.items())
        artifact = Artifact(ModelRef.parse("file:/tiny"), "safetensors", rows, "local", "bench", "2026-01-01")
    else:
        store = Store(user.cache / "tests" / "store")
        artifact = pull(ModelRef.parse("gemma3:270m"), store, user)
        paths = dict(store.files(artifact))
    port = ports.free("127.0.0.1", start=21000 + os.getpid() % 9000)  # others look from 8080 on
    spec = ServeSpec(artifact, paths, alias, port=port, ctx=512, threads=1, attach=False, work=home / "work")
    return backend.plan(spec, backend.detect(user)), replace(user, home=home / "data")


@contextmanager
def served(name: str, home: Path, alias: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """A supervisor in a process of its own; yields it, its address and the seconds until it was ready."""
    import json

    code = CHILD.format(root=str(ROOT))
    argv = [sys.executable, "-c", code, name, str(home), alias]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} did not start")
        url, took = json.loads(line)
        try:
            yield process, url, took
        finally:
            process.terminate()
            process.wait()


def answers(url: str, alias: str) -> bool:
    """Whether it gives a token."""
    import httpx

    try:
        body = {"model": alias, "prompt": "1", "max_tokens": 1}
        return httpx.post(f"{url}/v1/completions", json=body, timeout=20, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def server_of(alias: str) -> list[int]:
    """Pids of the processes that carry the alias in their command line, the supervisor aside."""
    from tests.serve.conftest import processes

    return processes(alias)


def crashes(name: str, count: int) -> str:
    """Kill the server again and again; the line to print."""
    import psutil

    took, loads, beside, more = [], [], [], 0
    with tempfile.TemporaryDirectory() as tmp:
        alias = f"crash-{secrets.token_hex(4)}"
        with served(name, Path(tmp), alias) as (process, url, _):
            assert process.stdout is not None
            for _ in range(count):
                mine = [p for p in psutil.Process(process.pid).children(recursive=True) if alias in p.cmdline()]
                victim = max(mine, key=lambda p: p.memory_info().rss)
                victim.kill()
                begin = time.monotonic()
                while not answers(url, alias):
                    time.sleep(0.05)
                took.append(time.monotonic() - begin)
                (seen, up), tried = restarted(process.stdout)
                more += tried - 1
                loads.append(up - seen - BACKOFF_S)
                beside.append(took[-1] - loads[-1])
    return (
        f"{name:10} {count:4} crashes: answers again after {statistics.median(took):.2f} s (p95 {p95(took):.2f} s), "
        f"its own load {statistics.median(loads):.2f} s of it; the rest {statistics.median(beside):.2f} s "
        f"(p95 {p95(beside):.2f} s){f'; {more} starts failed' if more else ''}"
    )


def restarted(said: IO[str]) -> tuple[tuple[float, float], int]:
    """When the last start of a restart was decided and when it was up, and how many starts it took."""
    import json

    starts = []
    while True:
        name, at = json.loads(said.readline())
        if name == "restarted":
            return (starts[-1], at), len(starts)
        starts.append(at)


def p95(values: list[float]) -> float:
    """The value that 95 of 100 do not exceed."""
    return sorted(values)[round(0.95 * (len(values) - 1))]


def kills(name: str, count: int) -> str:
    """Kill the supervisor again and again; the line to print."""
    left = 0
    with tempfile.TemporaryDirectory() as tmp:
        for _ in range(count):
            alias = f"kill-{secrets.token_hex(4)}"
            with served(name, Path(tmp), alias) as (process, _, _):
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
                time.sleep(2.0)
                alive = server_of(alias)
                left += bool(alive)
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
    return f"{name:10} {count:4} supervisors killed: something alive after 2 s {left} times"


def main() -> None:
    """Print a line per backend and question."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", default=["llama-cpp", "embedded"])
    parser.add_argument("--crashes", type=int, default=20)
    parser.add_argument("--kills", type=int, default=100)
    args = parser.parse_args()
    for name in args.backends:
        if args.crashes:
            print(crashes(name, args.crashes), flush=True)
        if args.kills:
            print(kills(name, args.kills), flush=True)


if __name__ == "__main__":
    main()
