"""How long a request is looked through: the first time, and on the turn after it.

    python benchmarks/scan.py [KB ...]

A conversation of an agent is made up: a system prompt, tools, and turns of text, code and tool results until it has
the size. Printed are the first scan (nothing known), and the next turn (one new message of 2 kB) for a cache that knows
the earlier blocks: median and 99th percentile of 300, in processor time and by the clock.
"""

from __future__ import annotations

import json
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from miyabi_llm import detect
from miyabi_llm.route.scan import scan_request

SOURCES = sorted((Path(__file__).parent.parent / "miyabi_llm").rglob("*.py"))


def conversation(size: int, seed: int = 7) -> dict[str, Any]:
    """A request of about `size` bytes."""
    rng = random.Random(seed)
    code = "".join(path.read_text(encoding="utf-8") for path in SOURCES[:80] if "detect" not in path.parts)
    messages: list[dict[str, Any]] = []
    body: dict[str, Any] = {
        "model": "m",
        "max_tokens": 1024,
        "system": [{"type": "text", "text": "You write programs. " * 400}],
        "tools": [
            {"name": f"tool_{n}", "description": "Does something with a file. " * 10, "input_schema": {
                "type": "object", "properties": {"path": {"type": "string"}, "count": {"type": "integer"}}}}
            for n in range(15)
        ],
        "messages": messages,
    }  # fmt: skip
    while len(json.dumps(body)) < size:
        at = rng.randrange(len(code) - 4000)
        n = len(messages)
        messages += [
            {"role": "user", "content": [{"type": "text", "text": f"Now do step {n}. " + "and explain it well " * 20}]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I will look at it. " * 12},
                {"type": "tool_use", "id": f"toolu_{n}", "name": "tool_1", "input": {"path": f"src/{n}.py"}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": f"toolu_{n}", "content": code[at : at + 3000]}]},
        ]  # fmt: skip
    return body


def main() -> None:
    """The table."""
    sizes = [int(a) for a in sys.argv[1:]] or [20, 200, 1000]
    print("| history | first scan | next turn, median | p99 | by the clock: first, median, p99 |")
    print("| --- | --- | --- | --- | --- |")
    for size in sizes:
        body = conversation(size * 1000)
        cache = detect.Cache()
        data = json.dumps(body).encode()
        begin = time.process_time()
        first = scan_request(data, "anthropic", {}, cache)
        first_cpu = (time.process_time() - begin) * 1000
        assert first.complete, first.unseen
        times: list[float] = []
        cpu: list[float] = []
        for n in range(300):
            body["messages"].append({"role": "user", "content": f"turn {n} " + "some words of a person " * 85})
            data = json.dumps(body).encode()
            begin = time.process_time()
            times.append(scan_request(data, "anthropic", {}, cache).seconds * 1000)
            cpu.append((time.process_time() - begin) * 1000)
            body["messages"].pop()
        mid, late = (statistics.median(cpu), sorted(cpu)[int(len(cpu) * 0.99)])
        slow = sorted(times)[int(len(times) * 0.99)]
        wall = f"{first.seconds * 1000:.0f}, {statistics.median(times):.2f}, {slow:.2f} ms"
        print(f"| {len(data) // 1000} kB | {first_cpu:.0f} ms | {mid:.2f} ms | {late:.2f} ms | {wall} |")
        if first.findings:
            print(f"  found: {[f'{f.kind} {f.masked}' for f in first.findings[:5]]}", file=sys.stderr)


if __name__ == "__main__":
    main()
