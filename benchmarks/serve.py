"""What serving through miyabi-llm costs against the bare llama-server: time until ready, and tokens per second.

    python benchmarks/serve.py [MODEL]

MODEL is a stored model. Without one, gemma3:270m is pulled into the tests' store, below the user's cache.
Both sides run the same command line and are looked at every 20 ms.
The bare server counts as ready when /health answers 200 and when one token came; ours when `running` hands over the
endpoint, which holds all its proofs. Runs alternate, so that a slow moment of the machine hits both; medians.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from miyabi_llm import config, serve
from miyabi_llm.cli import plans, progress, stored
from miyabi_llm.config import Settings
from miyabi_llm.proc import ports
from miyabi_llm.proc.environ import child_environment
from miyabi_llm.pull import pull
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.types import LaunchPlan

RUNS = 5
TOKENS = 32
LOOK = 0.02  # seconds


@contextmanager
def bare(plan: LaunchPlan, env: dict[str, str]) -> Iterator[tuple[float, float]]:
    """The server alone; yields the seconds until it was healthy, and until it gave a token."""
    assert plan.argv is not None
    begin = time.perf_counter()
    process = subprocess.Popen(plan.argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=plan.endpoint.base_url, trust_env=False) as http:
            while True:
                try:
                    if http.get("/health").status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if process.poll() is not None:
                    raise SystemExit(f"the bare server ended with {process.returncode}")
                time.sleep(LOOK)
        healthy = time.perf_counter() - begin
        speed(plan, 1)
        yield healthy, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def speed(plan: LaunchPlan, tokens: int) -> float:
    """Tokens per second as the client sees them."""
    key = plan.endpoint.key
    headers = {"authorization": f"Bearer {key.reveal()}"} if key else {}
    body = {"prompt": "1", "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    begin = time.perf_counter()
    url = f"{plan.endpoint.base_url}/v1/completions"
    answer = httpx.post(url, json=body, headers=headers, timeout=300, trust_env=False).raise_for_status().json()
    return float(answer["usage"]["completion_tokens"]) / (time.perf_counter() - begin)


def measure(plan: LaunchPlan, settings: Settings) -> dict[str, list[float]]:
    """All samples, by what they are; the first round, which warms the disk cache, is left out."""
    env = child_environment(settings.env, plan.env, "benchmark")
    seen: dict[str, list[float]] = {}
    for number in range(RUNS + 1):
        sample: dict[str, float] = {}
        with bare(plan, env) as (healthy, token):
            sample |= {"bare healthy": healthy, "bare token": token, "bare speed": speed(plan, TOKENS)}
        begin = time.perf_counter()
        with serve.running(plan, settings):
            sample |= {"ours ready": time.perf_counter() - begin, "ours speed": speed(plan, TOKENS)}
        for name, value in sample.items() if number else ():
            seen.setdefault(name, []).append(value)
    return seen


def main() -> None:
    """Measure and print ratios."""
    settings = config.load()
    if len(sys.argv) > 1:
        store = Store(settings.store)
        artifact = stored.find(sys.argv[1], store, settings)
    else:
        store = Store(settings.cache / "tests" / "store")
        with progress.shown() as on_event:
            artifact = pull(ModelRef.parse("gemma3:270m"), store, settings, on_event)
    with store.lease(artifact), tempfile.TemporaryDirectory() as home:
        # one processor stays free for the client: a full machine measures its scheduler
        threads = max(1, (os.cpu_count() or 2) // 2)
        wanted = plans.Wanted(port=ports.free(start=18100), ctx=2048, threads=threads, key=serve.new_key())
        plan = plans.make(artifact, store, settings, wanted)
        seen = measure(plan, replace(settings, home=Path(home)))
    middle = {name: statistics.median(values) for name, values in seen.items()}
    print(f"{artifact.ref}, {os.cpu_count()} processors, median of {RUNS}, alternating (least .. most)")
    for name, values in seen.items():
        unit = "tokens/s" if name.endswith("speed") else "s"
        print(f"  {name:14}{middle[name]:8.3f} {unit:9}({min(values):.3f} .. {max(values):.3f})")
    ready, token, healthy = middle["ours ready"], middle["bare token"], middle["bare healthy"]
    print(f"ready, ours to bare with its first token: {ready / token:.2f}  ({1000 * (ready - token):+.0f} ms)")
    print(f"ready, ours to bare /health 200:          {ready / healthy:.2f}  ({1000 * (ready - healthy):+.0f} ms)")
    print(f"tokens per second, ours to bare:          {middle['ours speed'] / middle['bare speed']:.2f}")


if __name__ == "__main__":
    main()
