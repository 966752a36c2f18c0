"""What a switch of model through our address costs against llama-server's own load of the same model.

    python benchmarks/switch.py [MODEL]

MODEL is a stored model; without one, the tests' gemma3:270m. It is served under two names with room for one, so that
every request for the other name is a switch: one unloaded, one loaded, one token. Against it, with the same options:
the bare llama-server from its start until /health answers 200 (its own load) and until one token came, and its own
router with room for one model, which switches by itself. Runs alternate, so that a slow moment of the machine hits
all. Medians; the ratios are of pairs.
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
from pathlib import Path

import httpx

from miyabi_llm import config, serve
from miyabi_llm.cli import many, plans, stored
from miyabi_llm.config import Settings
from miyabi_llm.proc import ports
from miyabi_llm.proc.environ import child_environment
from miyabi_llm.pull import pull
from miyabi_llm.refs import ModelRef
from miyabi_llm.serve.many import look, preset
from miyabi_llm.serve.many.config import Config, Entry
from miyabi_llm.store import Store
from miyabi_llm.types import LaunchPlan

RUNS = 8
NAMES = ("a", "b")
LOOK = 0.01  # seconds
CTX = 2048
EXTRA = ("-np", "1", "--cache-ram", "0")


def bare(plan: LaunchPlan, env: dict[str, str]) -> tuple[float, float]:
    """Seconds until the server alone is healthy, and until it gave a token."""
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
            token(http, plan.endpoint.model)
            return healthy, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def token(http: httpx.Client, model: str) -> None:
    """Ask for one."""
    body = {"model": model, "prompt": "1", "max_tokens": 1}
    http.post("/v1/completions", json=body, timeout=300).raise_for_status()


@contextmanager
def router(plan: LaunchPlan, env: dict[str, str], home: Path) -> Iterator[httpx.Client]:
    """llama-server's router alone, with room for one of the same two models; it switches by itself."""
    assert plan.argv is not None
    program = plan.argv[: plan.argv.index("--model")]
    pair = dict.fromkeys(NAMES, plan)
    (home / "pair.ini").write_text(preset.text(pair, program, preset.sections(pair)))
    port = ports.free(start=18600)
    words = ("--models-preset", str(home / "pair.ini"), "--models-max", "1", "--host", "127.0.0.1", "--port", str(port))
    out = subprocess.DEVNULL
    process = subprocess.Popen([*program, *words], env=env | {"LLAMA_CACHE": str(home)}, stdout=out, stderr=out)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            while True:
                try:
                    http.get("/models").raise_for_status()
                    break
                except httpx.HTTPError:
                    time.sleep(LOOK)
            yield http
    finally:
        process.terminate()
        process.wait()


def timed(http: httpx.Client, model: str) -> float:
    """Seconds until a token of `model` came."""
    begin = time.perf_counter()
    token(http, model)
    return time.perf_counter() - begin


def main(argv: list[str]) -> int:
    """Run, print, and return 1 when a switch takes over 10% more than llama-server's own."""
    user = config.load()
    store = Store(user.store if argv else user.cache / "tests" / "store")
    artifact = stored.find(argv[0], store, user) if argv else pull(ModelRef.parse("gemma3:270m"), store, user)
    with tempfile.TemporaryDirectory() as home, store.lease(artifact):
        os.symlink(store.root, Path(home) / "store")
        settings = Settings(Path(home), user.cache, user.config, user.user_home, env=user.env)
        plan = plans.make(artifact, store, settings, plans.Wanted(port=ports.free(start=18500), ctx=CTX, extra=EXTRA))
        assert plan.memory is not None
        listed = Config(tuple(Entry(str(artifact.ref), alias=alias) for alias in NAMES))
        wanted = plans.Wanted(key=serve.new_key(), ctx=CTX, extra=EXTRA)
        ours = many.plan(many.Many(listed, wanted, int(plan.memory.total * 1.5)), store, settings)
        env = child_environment(settings.env, {}, "benchmark")
        taken: dict[str, list[float]] = {name: [] for name in ("healthy", "alone", "router", "ours")}
        with serve.running(ours, settings) as endpoint, router(plan, env, Path(home)) as theirs:
            key = {"authorization": f"Bearer {endpoint.key.reveal()}"} if endpoint.key else {}
            with httpx.Client(base_url=endpoint.base_url, headers=key, trust_env=False) as http:
                token(theirs, NAMES[0])
                for run in range(RUNS):
                    name = NAMES[(run + 1) % 2]
                    healthy, alone = bare(plan, env)
                    taken["healthy"].append(healthy)
                    taken["alone"].append(alone)
                    taken["router"].append(timed(theirs, name))
                    taken["ours"].append(timed(http, name))
                    states = {row.id: row.state for row in look.rows(endpoint)}
                    assert states[name] == "loaded", states
                    assert states[NAMES[run % 2]] == "unloaded", states
    return report(str(artifact.ref), taken)


def report(ref: str, taken: dict[str, list[float]]) -> int:
    """Print the table; the exit code."""
    says = {
        "healthy": "llama-server alone: start until healthy (its own load)",
        "alone": "llama-server alone: start until one token",
        "router": "llama-server's router: one unloaded, one loaded, one token",
        "ours": "our address: one unloaded, one loaded, one token",
    }
    print(f"{ref}, context {CTX}, {RUNS} runs, medians (and extremes), seconds")
    for key, text in says.items():
        low, high = min(taken[key]), max(taken[key])
        print(f"{text:<62}{statistics.median(taken[key]):6.3f}  ({low:.3f} to {high:.3f})")
    ratios = [a / b for a, b in zip(taken["ours"], taken["router"], strict=True)]
    ratio = statistics.median(ratios)
    print(f"ours / llama-server alone until one token: {_ratio(taken, 'alone'):.3f}")
    print(f"ours / llama-server's router:              {ratio:.3f}")
    return int(ratio > 1.1)


def _ratio(taken: dict[str, list[float]], to: str) -> float:
    return statistics.median(a / b for a, b in zip(taken["ours"], taken[to], strict=True))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
