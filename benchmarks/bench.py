"""The load generator beside guidellm and aiperf, against one server of known timing.

    python benchmarks/bench.py [--guidellm VENV] [--aiperf VENV] [--streams 256] [--seconds 10] [--rounds 1]

VENV is an environment that has the tool; without it the tool is left out. Two loads: paced streams (first token after
20 ms, then 50 a second, 50 in all), and an instant answer of one chunk at 32 streams. Each tool gets a fresh server.
What a tool says of itself (time to first token, gaps) is held against what the server was told to do; how many answers
were really in flight, how many requests came and how long after its start the first one came is the server's word.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from miyabi_llm.bench import selftest
from miyabi_llm.bench.engine import Engine
from miyabi_llm.bench.values import Load, Target
from miyabi_llm.types import Endpoint

PACED = ("--ttft", "0.02", "--itl", "0.02", "--tokens", "50")
INSTANT = ("--ttft", "0", "--itl", "0", "--tokens", "1")
ROWS = 20_000  # prompts: no tool may run out of them
# aiperf counts prompt tokens with a tokenizer even when it uses the server's counts; a word is a token here.
TOKENIZER = """
import json, pathlib, sys
from tokenizers import Tokenizer, models, pre_tokenizers
t = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
t.pre_tokenizer = pre_tokenizers.Whitespace()
d = pathlib.Path(sys.argv[1])
d.mkdir()
t.save(str(d / "tokenizer.json"))
(d / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
(d / "config.json").write_text('{"model_type": "gpt2"}')
"""


@dataclass(frozen=True)
class Said:
    """What a tool says of itself, in milliseconds."""

    ttft_p50: float | None = None
    ttft_mean: float | None = None
    gap_p99: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: the tool's word, then the server's."""

    tool: str
    said: Said
    streams: float
    rate: float
    start_s: float
    beside_s: float
    cpu_s: float
    late_ms: tuple[float, float]


@contextmanager
def served(args: tuple[str, ...]) -> Iterator[Target]:
    with selftest.mocked(dict(os.environ), *args) as target:
        yield target


def ours(url: str, streams: int, seconds: float, home: Path) -> Said:
    run([sys.executable, __file__, "--ours", url, str(streams), str(seconds), str(home / "ours.json")], home)
    return Said(**json.loads((home / "ours.json").read_text()))


def alone(url: str, streams: int, seconds: float, out: Path) -> None:
    """Our own engine in a process of its own."""
    target = Target("mock", Endpoint(url, "mock"))
    source = selftest.Truth(target)
    with Engine([target]) as engine:
        engine.run(Load(concurrency=streams, duration_s=seconds), source)
    mean = sum(source.ttft) / max(1, len(source.ttft))
    said = {"ttft_p50": selftest.quantile(source.ttft, 0.5), "ttft_mean": mean}
    out.write_text(json.dumps(said | {"gap_p99": selftest.quantile(source.gaps, 0.99) if source.gaps else None}))


def guidellm(venv: Path) -> Callable[[str, int, float, Path], Said]:
    def measure(url: str, streams: int, seconds: float, home: Path) -> Said:
        rows = home / "rows.jsonl"
        rows.write_text("".join(f'{{"prompt": "Say tok. {i}", "output_tokens_count": 50}}\n' for i in range(ROWS)))
        command = [str(venv / "bin/guidellm"), "run", "--disable-console"]
        command += ["--backend", f"kind=openai_http,target={url},model=mock"]
        command += ["--profile", f"kind=concurrent,streams={streams}"]
        command += ["--constraint", f"kind=max_duration,seconds={seconds:g}"]
        command += ["--data", f"kind=json_file,path={rows}", "--output", f"kind=json,path={home / 'out.json'}"]
        run(command, home)
        found = json.loads((home / "out.json").read_text())["benchmarks"][0]["metrics"]
        ttft, gaps = (found[k]["successful"] for k in ("time_to_first_token_ms", "inter_token_latency_ms"))
        return Said(ttft["median"], ttft["mean"], gaps["percentiles"]["p99"])

    return measure


def aiperf(venv: Path) -> Callable[[str, int, float, Path], Said]:
    def measure(url: str, streams: int, seconds: float, home: Path) -> Said:
        rows = home / "rows.jsonl"
        rows.write_text("".join(f'{{"text": "Say tok. {i}"}}\n' for i in range(ROWS)))
        if not (home / "tokenizer").exists():
            run([str(venv / "bin/python"), "-c", TOKENIZER, str(home / "tokenizer")], home)
        command = [str(venv / "bin/aiperf"), "profile", "-m", "mock", "--url", url, "--endpoint-type", "chat"]
        command += ["--streaming", "--use-server-token-count", "--tokenizer", str(home / "tokenizer")]
        command += ["--input-file", str(rows), "--custom-dataset-type", "single_turn", "--ui", "none"]
        command += ["--concurrency", str(streams), "--benchmark-duration", f"{seconds:g}"]
        run([*command, "--artifact-dir", str(home / "out")], home)
        found = json.loads((home / "out/profile_export_aiperf.json").read_text())
        ttft, gaps = found["time_to_first_token"], found.get("inter_chunk_latency") or found.get("inter_token_latency")
        return Said(ttft["p50"], ttft["avg"], gaps["p99"] if gaps else None)

    return measure


def run(command: list[str], home: Path) -> None:
    """Run a tool to its end; its words go to a file, of which the last are shown when it fails."""
    with (home / "log").open("wb") as log:
        done = subprocess.run(command, stdout=log, stderr=log, timeout=300, cwd=home)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(home / 'log').read_text()[-600:]}")


def row(name: str, tool: Callable[[str, int, float, Path], Said], load: tuple[str, ...], args: Any) -> Row:
    """One tool at one load."""
    with served(load) as target, tempfile.TemporaryDirectory() as home:
        cpu, begin = os.times(), time.perf_counter_ns()
        streams = args.streams if load is PACED else 32
        said = tool(target.endpoint.base_url, streams, args.seconds, Path(home))
        wall, used = (time.perf_counter_ns() - begin) / 1e9, os.times()
        stats = selftest.seen(target)
    came = stats["arrivals"]
    first, last = came[0], came[-1]
    lead = int(min(0.5e9, (last - first) / 4))
    inside = sum(t >= first + lead for t in came)
    return Row(
        name,
        said,
        selftest.busy(stats, first + lead, last),
        inside / max(1e-9, (last - first - lead) / 1e9),
        (first - begin) / 1e9,
        wall - args.seconds,
        used.children_user + used.children_system - cpu.children_user - cpu.children_system,
        (stats["late_p50"] / 1e6, stats["late_p99"] / 1e6),
    )


def number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def table(rows: list[Row], true_ms: float, load: tuple[str, ...]) -> None:
    """Print it as Markdown."""
    heads = ["tool", "TTFT p50 error ms", "TTFT mean error ms", "gap p99 ms", "streams busy", "requests/s"]
    heads += ["first request s", "beside the run s", "CPU s", "server late p50, p99 ms"]
    print("|", " | ".join(heads), "|")
    print("|---" * len(heads) + "|")
    for r in rows:
        cells = [number(None if v is None else v - true_ms) for v in (r.said.ttft_p50, r.said.ttft_mean)]
        cells += [number(r.said.gap_p99), number(r.streams)] if load is PACED else ["-", "-"]
        cells += [number(r.rate, 0), number(r.start_s, 2), number(r.beside_s), number(r.cpu_s)]
        cells += [f"{r.late_ms[0]:.1f}, {r.late_ms[1]:.1f}" if load is PACED else "-"]
        print(f"| {r.tool} | {' | '.join(cells)} |")


def installed(venv: Path, name: str) -> str:
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return subprocess.run([venv / "bin/python", "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def main() -> None:
    if sys.argv[1:2] == ["--ours"]:
        alone(sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), Path(sys.argv[5]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidellm", type=Path)
    parser.add_argument("--aiperf", type=Path)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    args = parser.parse_args()
    tools: dict[str, Callable[[str, int, float, Path], Said]] = {f"miyabi-llm {version('miyabi-llm')}": ours}
    for name, make in (("guidellm", guidellm), ("aiperf", aiperf)):
        venv = getattr(args, name)
        if venv is None:
            print(f"{name} is left out: name its environment with --{name}", file=sys.stderr)
        else:
            tools[f"{name} {installed(venv, name)}"] = make(venv.absolute())
    for load, streams, true_ms in ((PACED, args.streams, 20.0), (INSTANT, 32, 0.0)):
        print(f"\n{' '.join(load)}, {streams} streams, {args.seconds:g} s; load average {os.getloadavg()[0]:.1f}\n")
        rows = []
        for _ in range(args.rounds):
            for name, tool in tools.items():
                try:
                    rows.append(row(name, tool, load, args))
                except (RuntimeError, OSError, subprocess.TimeoutExpired, KeyError) as e:
                    print(f"{name} could not be measured: {e}", file=sys.stderr)
        table(sorted(rows, key=lambda r: list(tools).index(r.tool)), true_ms, load)
        print(f"\nload average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
