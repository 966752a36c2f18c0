"""The memory estimate against the real llama-server: what it allocates, and what is resident after a prompt.

    python benchmarks/fit.py [--full] [MODEL ...]

Models are stored ones, or GGUF files. Without any, gemma3:270m is pulled into the tests' store, below the user's cache.
Two comparisons, each with the estimate's error (above zero: too high):

- buffers: weights, copies, cache and working memory as the server logs them when it allocates them;
- resident: RssAnon + RssFile of the process after a prompt, against the whole estimate, the built-in figure for the
  program included (no correction by earlier measurements).

A prompt fills the context of models up to 500 MB, 8192 tokens at most unless `--full` (minutes on a processor); of
larger ones it has 600 tokens: part of the working memory is not touched then. Earlier prompts are not kept
(`--cache-ram 0`): they would grow the process on top of what is compared.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from miyabi_llm import config, hardware
from miyabi_llm.cli import plans
from miyabi_llm.config import Settings
from miyabi_llm.memory import RUNTIME
from miyabi_llm.proc.environ import child_environment
from miyabi_llm.proc.resident import Resident, resident
from miyabi_llm.pull import pull
from miyabi_llm.refs import ModelRef
from miyabi_llm.serve.measured import Buffers, buffers
from miyabi_llm.store import Store
from miyabi_llm.types import Artifact, LaunchPlan

MIB = 1 << 20
CASES = ((2048, "f16"), (8192, "f16"), (32768, "f16"), (8192, "q8_0"))
FILLED = 500_000_000  # bytes of a model whose context is filled
MOST = 8192  # tokens of a prompt without --full
SHORT = 600  # tokens of the prompt for larger ones
EXTRA = ("--cache-ram", "0", "--ctx-checkpoints", "0")


@contextmanager
def server(plan: LaunchPlan, env: dict[str, str], log: Path) -> Iterator[int]:
    """The server alone, up; yields its process id."""
    assert plan.argv is not None
    with log.open("wb") as out:
        process = subprocess.Popen(plan.argv, env=env, stdout=out, stderr=out)
    try:
        with httpx.Client(base_url=plan.endpoint.base_url, trust_env=False, timeout=2.0) as http:
            while True:
                try:
                    if http.get("/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if process.poll() is not None:
                    raise SystemExit(f"the server ended with {process.returncode}:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def measure(plan: LaunchPlan, settings: Settings, tokens: int) -> tuple[Buffers, Resident]:
    """What the server allocates, and what is resident after a prompt of so many tokens."""
    ids = [random.Random(1).randrange(100, 5000) for _ in range(tokens)]
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with server(plan, child_environment(settings.env, {}, ""), log) as pid:
            body = {"prompt": ids, "n_predict": 1, "temperature": 0}
            httpx.post(
                f"{plan.endpoint.base_url}/completion", json=body, timeout=3600, trust_env=False
            ).raise_for_status()
            seen = resident((pid,))
        told = buffers(log.read_text(errors="replace"))
    if told is None:
        raise SystemExit("the server tells nothing of its buffers: it is too old for this benchmark")
    return told, seen


def row(artifact: Artifact, store: Store, settings: Settings, case: tuple[int, str], *, full: bool) -> str:
    """One line of the table."""
    ctx, kv_type = case
    wanted = plans.Wanted(backend="llama-cpp", ctx=ctx, kv_type=kv_type, extra=EXTRA)
    plan = plans.make(artifact, store, settings, wanted)
    assert plan.memory is not None
    needed = replace(plan.memory, runtime=RUNTIME)
    filled = ctx - 16 if full else min(ctx, MOST) - 16
    tokens = filled if artifact.size <= FILLED else SHORT
    told, seen = measure(plan, settings, tokens)
    ours = needed.total - needed.runtime
    cells = (
        f"{plan.endpoint.model[:24]:24}",
        f"{ctx:6}",
        f"{kv_type:5}",
        f"{ours / MIB:8.1f}",
        f"{told.total / MIB:8.1f}",
        f"{ours / told.total - 1:+7.2%}",
        f"{tokens:7}",
        f"{needed.total / MIB:8.1f}",
        f"{seen.total / MIB:8.1f}",
        f"{needed.total / seen.total - 1:+7.2%}",
    )
    return "  ".join(cells)


def models(names: list[str], settings: Settings) -> Iterator[tuple[Artifact, Store]]:
    """The models named, or the tests' small one."""
    if not names:
        store = Store(settings.cache / "tests" / "store")
        yield pull(ModelRef.parse("gemma3:270m"), store, settings), store
    for name in names:
        store = Store(settings.store)
        yield pull(ModelRef.parse(name), store, settings), store


def main() -> None:
    """Print the table, a line as soon as it is measured."""
    settings = config.load()
    machine = hardware.look(settings.env)
    print(f"{machine.cpu}, {os.cpu_count()} processors; MiB; buffers as logged, resident as RssAnon + RssFile")
    first = ("MODEL".ljust(24), "   CTX", "KV   ", " BUFFERS", "  LOGGED", "  ERROR")
    head = (*first, " PROMPT", "   TOTAL", "RESIDENT", "  ERROR")
    print("  ".join(head))
    for artifact, store in models([name for name in sys.argv[1:] if name != "--full"], settings):
        with store.lease(artifact):
            for case in CASES:
                print(row(artifact, store, settings, case, full="--full" in sys.argv), flush=True)


if __name__ == "__main__":
    main()
