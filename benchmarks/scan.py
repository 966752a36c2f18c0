"""How long a request is looked through: the first time, and on the turn after it.

    python benchmarks/scan.py [KB ...]

A conversation of an agent is made up: a system prompt, tools, and turns of text, code and tool results until it has
the size. Printed are the first scan (nothing known), and the next turn (one new message of 2 kB): median and 99th
percentile of the times, for a cache that knows the earlier blocks.
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
    print("| history | first scan | next turn, median | next turn, p99 |\n| --- | --- | --- | --- |")
    for size in sizes:
        body = conversation(size * 1000)
        cache = detect.Cache()
        data = json.dumps(body).encode()
        first = scan_request(data, "anthropic", {}, cache)
        assert first.complete, first.unseen
        times = []
        for n in range(300):
            body["messages"].append({"role": "user", "content": f"turn {n} " + "some words of a person " * 85})
            data = json.dumps(body).encode()
            times.append(scan_request(data, "anthropic", {}, cache).seconds * 1000)
            body["messages"].pop()
        times.sort()
        print(
            f"| {len(data) // 1000} kB | {first.seconds * 1000:.0f} ms | {statistics.median(times):.2f} ms | "
            f"{times[int(len(times) * 0.99)]:.2f} ms |"
        )
        if first.findings:
            print(f"  found: {[f'{f.kind} {f.masked}' for f in first.findings[:5]]}", file=sys.stderr)
        time.sleep(0)


if __name__ == "__main__":
    main()
