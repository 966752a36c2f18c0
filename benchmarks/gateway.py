"""What a gateway adds: nothing, ours, and LiteLLM's proxy in front of the same server, in turns, in one run.

    python benchmarks/gateway.py [--litellm .../bin/litellm] [--rounds 5] [--seconds 4] [--json FILE]

Needs `wrk` for the rate. LiteLLM is installed by hand, in an environment of its own (`pip install 'litellm[proxy]'`);
without it its rows are left out. Latency is one request after the other on one kept connection, 16 connections are used
for the rate. `large` is a history of 200 KB in 100 blocks that was there before, with one new block: turn N+1 of a
conversation; `first` such a history when it is new. Figures of all rounds are put together, so that what else the
machine does meets all alike; beside them stands, of each way and kind, the quietest round. The rate is the median of
the rounds. Processor time is what the gateway's processes used for one request of the rate: it says what a busy machine
hides. Our gateway looks through every request, and writes its audit; on the way to the cloud it waits for the disk and
reserves the cost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

POLICY = """
version = 1
mode = "claude"
[targets.cloud]
kind = "claude"
url = "{url}"
aliases = ["cloud"]
[targets.here]
kind = "local"
url = "{url}"
backend = "llama-cpp"
aliases = ["stub"]
[privacy]
default_verdict = "public"
# end of policy
"""
LITELLM = """
model_list:
  - model_name: stub
    litellm_params: {{model: anthropic/stub, api_base: "{url}", api_key: x}}
litellm_settings: {{telemetry: false}}
"""
LANES = 16
KINDS = ("small", "large", "first", "stream first byte", "stream")
WORDS = ("loop", "value", "test", "build", "function", "return", "説明", "関数", "修正")


@dataclass(frozen=True, slots=True)
class Way:
    """One way to the server: its name, its port, the model's name there, its processes, the seconds of its start."""

    name: str
    port: int
    model: str
    pids: tuple[int, ...] = ()
    start: float = 0.0


def text(r: random.Random, size: int) -> str:
    """Words of about so many bytes."""
    words = []
    while size > 0:
        words.append(r.choice(WORDS))
        size -= len(words[-1].encode()) + 1
    return " ".join(words)


def history(seed: int, size: int = 200_000, blocks: int = 100) -> list[dict[str, Any]]:
    """A conversation of so many bytes."""
    r = random.Random(seed)
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text(r, size // blocks)} for i in range(blocks)]


def request(model: str, messages: list[dict[str, Any]], *, stream: bool) -> bytes:
    """A request for a message."""
    said = {"model": model, "max_tokens": 100, "stream": stream, "messages": messages}
    body = json.dumps(said, ensure_ascii=False).encode()
    head = "POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nx-api-key: k\r\n"
    return f"{head}anthropic-version: 2023-06-01\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


def ask(s: socket.socket, data: bytes) -> tuple[float, float]:
    """Milliseconds to the first byte of the body, and to the last."""
    begin = time.perf_counter()
    s.sendall(data)
    got, first = b"", 0.0
    while True:
        piece = s.recv(1 << 17)
        if not piece:
            raise SystemExit(f"the connection broke: {got[:500]!r}")
        got += piece
        head, blank, body = got.partition(b"\r\n\r\n")
        if body and not first:
            first = time.perf_counter()
        if not blank:
            continue
        length = _length(head)
        if (len(body) >= length) if length is not None else body.endswith(b"0\r\n\r\n"):
            break
    end = time.perf_counter()
    if not head.startswith(b"HTTP/1.1 200"):
        raise SystemExit(got[:500].decode())
    return (first - begin) * 1000, (end - begin) * 1000


def _length(head: bytes) -> int | None:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    return None


Found = dict[tuple[str, str], list[list[float]]]  # way and kind -> one list a round


def latencies(way: Way, seed: int, found: Found, few: int) -> None:
    """One round of one way: all kinds of requests."""
    r = random.Random(f"{seed} {way.name}")
    for kind in KINDS:
        found[way.name, kind].append([])
    old = history(0)
    with socket.create_connection(("127.0.0.1", way.port), timeout=120) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def many(kind: str, count: int, messages: Callable[[], list[dict[str, Any]]], *, stream: bool = False) -> None:
            for _ in range(count):
                first, last = ask(s, request(way.model, messages(), stream=stream))
                found[way.name, kind][-1].append(last)
                if stream:
                    found[way.name, f"{kind} first byte"][-1].append(first)

        ask(s, request(way.model, old, stream=False))  # the history was there before
        many("small", 20 * few, lambda: [{"role": "user", "content": text(r, 60)}])
        many("large", 3 * few, lambda: [*old, {"role": "user", "content": text(r, 2000)}])
        many("stream", 5 * few, lambda: [{"role": "user", "content": text(r, 60)}], stream=True)
        many("first", 2, lambda: history(r.getrandbits(32)))


def rate(way: Way, seconds: int, folder: Path) -> tuple[float, float]:
    """Requests a second on LANES connections, by wrk; and milliseconds of processor time of the way for one request."""
    script = folder / "wrk.lua"
    body = json.dumps({"model": way.model, "max_tokens": 9, "messages": [{"role": "user", "content": "Hello"}]})
    headers = {"content-type": "application/json", "x-api-key": "k", "anthropic-version": "2023-06-01"}
    lines = [
        "wrk.method = 'POST'",
        f"wrk.body = '{body}'",
        *(f"wrk.headers['{k}'] = '{v}'" for k, v in headers.items()),
    ]
    script.write_text("\n".join(lines))
    url = f"http://127.0.0.1:{way.port}/v1/messages"
    command = ["wrk", "-t1", f"-c{LANES}", f"-d{seconds}s", "--timeout", "30s", "-s", str(script), url]
    before = worked(way)
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out:
        raise SystemExit(out)
    count = next(int(line.split()[0]) for line in out.splitlines() if " requests in " in line)
    found = float(next(line.split()[1] for line in out.splitlines() if line.startswith("Requests/sec")))
    return found, (worked(way) - before) / max(1, count) * 1000


def worked(way: Way) -> float:
    """Seconds of processor time that a way's processes have used."""
    return sum(sum(psutil.Process(p).cpu_times()[:2]) for p in way.pids)


def resident(way: Way) -> float:
    """MiB resident in a way's processes."""
    return sum(psutil.Process(p).memory_info().rss for p in way.pids) / 2**20


@contextmanager
def stub() -> Iterator[int]:
    """The server behind all; its port."""
    command = [sys.executable, str(HERE / "gateway_stub.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.communicate()


def free() -> int:
    """A port nobody listens on now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def started(command: list[str], port: int, path: str, env: dict[str, str], log: Path) -> Iterator[tuple[int, float]]:
    """A program that answers on a port; its pid and the seconds until it did."""
    begin = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(command, env={**os.environ, **env}, stdout=out, stderr=out)
    try:
        while not _answers(port, path):
            if process.poll() is not None or time.perf_counter() - begin > 180:
                raise SystemExit(log.read_text()[-3000:])
            time.sleep(0.01)
        yield process.pid, time.perf_counter() - begin
    finally:
        process.terminate()
        process.wait()


def _answers(port: int, path: str) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as s:
            s.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
            return s.recv(100).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def ours(stack: ExitStack, url: str, folder: Path) -> tuple[Way, Way]:
    """Our gateway: the way to a local server, and the way out to a cloud."""
    from miyabi_llm.gateway.values import Order

    port = free()
    (folder / "policy.toml").write_text(POLICY.format(url=url))
    order = Order("127.0.0.1", port, folder, folder / "audit.jsonl", folder / "ledger.sqlite", folder / "policy.toml")
    (folder / "order.json").write_text(order.to_json())
    command = [sys.executable, "-P", "-m", "miyabi_llm.gateway.process", "egress", str(folder / "order.json")]
    env = {"ANTHROPIC_API_KEY": "k", "PYTHONPATH": str(HERE.parent)}
    pid, took = stack.enter_context(started(command, port, "/health", env, folder / "ours.log"))
    pids = (pid, *(c.pid for c in psutil.Process(pid).children(recursive=True)))
    return Way("miyabi, local", port, "stub", pids, took), Way("miyabi, cloud", port, "cloud", pids, took)


def litellm(stack: ExitStack, program: Path, url: str, folder: Path) -> Way:
    """LiteLLM's proxy with one worker, without a database."""
    port = free()
    (folder / "litellm.yaml").write_text(LITELLM.format(url=url))
    command = [str(program), "--config", str(folder / "litellm.yaml"), "--port", str(port), "--host", "127.0.0.1"]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False", "LITELLM_LOG": "ERROR"}
    env["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = "true"  # ours asks for no key here either
    pid, took = stack.enter_context(started(command, port, "/health/liveliness", env, folder / "litellm.log"))
    pids = (pid, *(c.pid for c in psutil.Process(pid).children(recursive=True)))
    return Way("LiteLLM", port, "stub", pids, took)


def quantile(values: list[float], q: float) -> float:
    """The nearest rank."""
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def _together(rounds: list[list[float]]) -> list[float]:
    return [v for values in rounds for v in values]


def _quietest(rounds: list[list[float]]) -> list[float]:
    return min(rounds, key=lambda values: quantile(values, 0.5))


def show(
    ways: list[Way], found: Found, rates: dict[str, list[float]], works: dict[str, list[float]]
) -> list[dict[str, Any]]:
    """Print the tables; the rows."""
    rows: list[dict[str, Any]] = [{"way": w.name, "start_s": w.start, "resident_mib": resident(w)} for w in ways]
    for name, pick in (("all rounds together", _together), ("the quietest round of each", _quietest)):
        print(f"\nmilliseconds, p50 / p99, {name} (what is added to the direct way)\n")
        print("| | " + " | ".join(KINDS) + " |\n|" + " --- |" * (len(KINDS) + 1))
        for way, row in zip(ways, rows, strict=True):
            cells = []
            for kind in KINDS:
                values, base = pick(found[way.name, kind]), pick(found[ways[0].name, kind])
                mine = [quantile(values, q) for q in (0.5, 0.99)]
                more = [v - quantile(base, q) for v, q in zip(mine, (0.5, 0.99), strict=True)]
                row[f"{kind}, {name}"] = mine + more
                added = f" (+{more[0]:.2f} / +{more[1]:.2f})" if way is not ways[0] else ""
                cells.append(f"{mine[0]:.2f} / {mine[1]:.2f}{added}")
            print(f"| {way.name} | " + " | ".join(cells) + " |")
    print("\n| | requests/s, median (best) | processor, ms a request | start, s | resident, MiB |")
    print("| --- | --- | --- | --- | --- |")
    for way, row in zip(ways, rows, strict=True):
        row["rate"], row["rate best"] = statistics.median(rates[way.name]), max(rates[way.name])
        row["cpu_ms"] = statistics.median(works[way.name])
        cells = [f"{row['rate']:.0f} ({row['rate best']:.0f})", f"{row['cpu_ms']:.2f}", f"{way.start:.2f}"]
        print(f"| {way.name} | " + " | ".join([*cells, f"{row['resident_mib']:.0f}"]) + " |")
    return rows


def main() -> int:
    """Read the words of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--litellm", type=Path, help="the program, in its own environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="of each measurement of the rate")
    parser.add_argument("--few", type=int, default=10, help="scales the number of requests for latency")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed (Debian package `wrk`)")
    found: Found = defaultdict(list)
    rates: dict[str, list[float]] = defaultdict(list)
    works: dict[str, list[float]] = defaultdict(list)
    loads = [os.getloadavg()[0]]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = f"http://127.0.0.1:{stack.enter_context(stub())}"
        ways = [Way("direct", int(url.rpartition(":")[2]), "stub"), *ours(stack, url, folder)]
        if args.litellm:
            ways.append(litellm(stack, args.litellm, url, folder))
        for number in range(args.rounds):
            for way in ways:
                latencies(way, number, found, args.few if way.name != "LiteLLM" else max(1, args.few // 3))
            for way in ways:
                done, work = rate(way, args.seconds, folder)
                rates[way.name].append(done)
                works[way.name].append(work)
            loads.append(os.getloadavg()[0])
            print(f"round {number + 1} of {args.rounds}, load {loads[-1]:.1f}", file=sys.stderr)
        print(
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.python_version()}; ",
            end="",
        )
        print(f"load of the machine {min(loads):.1f} to {max(loads):.1f}")
        rows = show(ways, found, rates, works)
    if args.json:
        args.json.write_text(json.dumps({"loads": loads, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
