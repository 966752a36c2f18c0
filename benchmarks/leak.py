"""Does anything confidential leave? Generated requests through a real gateway, where only loopback exists.

    pip install faker
    python benchmarks/leak.py [--requests 100000] [--seed N]

It starts itself again in a network namespace of its own (`unshare -rn`), with the two processes of the gateway, a
stand-in for the cloud that counts connections and bytes, and local servers that work or fail. The policy is the
weakest there is: what looks clean is public, and the cloud is asked first. Every request is confidential: for what
stands in it (secrets and personal data of `detect_texts.py` that the detectors know when they stand alone - how many
they know is what `detect.py` measures; here they are at many places, plain or encoded), for what cannot be looked at
(pictures, unknown blocks, nesting), for its session, its project, its paths, or its client's word. Clients also ask for
the cloud by name, and say that all is public. At the end public requests show that the stand-in counts.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import fcntl
import json
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
STUB = [sys.executable, str(HERE / "gateway_stub.py"), "--events", "3"]
INSIDE = "MIYABI_LEAK_INSIDE"
POLICY = """
version = 1
mode = "claude"
[targets.cloud]
kind = "claude"
url = "{cloud}"
dialects = ["anthropic", "openai"]
aliases = ["claude-sonnet-5-5"]
[targets.good]
kind = "local"
url = "{local}"
backend = "llama-cpp"
model = "small"
[targets.bad]
kind = "local"
url = "{local}"
backend = "vllm"
aliases = ["bad"]
[targets.gone]
kind = "local"
url = "http://127.0.0.1:1"
backend = "vllm"
aliases = ["gone"]
[privacy]
default_verdict = "public"
deny_globs = ["*/secrets/*", "*.pem"]
projects = [{{match = "customer-*", verdict = "confidential"}}, {{match = "team-*", verdict = "internal"}}]
# end of policy
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One request: why it is confidential, its path, headers and body."""

    why: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


def put(place: str, text: str, body: dict[str, Any]) -> None:
    """Put a text at one place of a request."""
    match place:
        case "user":
            body["messages"].append({"role": "user", "content": text})
        case "block":
            body["messages"].append({"role": "user", "content": [{"type": "text", "text": text}]})
        case "history":
            body["messages"][0]["content"] += f"\n{text}"
        case "system":
            body["system"] = [{"type": "text", "text": text}]
        case "tool result":
            result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "text", "text": text}]}
            body["messages"].append({"role": "user", "content": [result]})
        case "tool input":
            use = {"type": "tool_use", "id": "t", "name": "write", "input": {"file": "a.txt", "text": text}}
            body["messages"].append({"role": "assistant", "content": [use]})
        case "tool description":
            body["tools"] = [{"name": "t", "description": text, "input_schema": {"type": "object"}}]
        case "metadata":
            body["metadata"] = {"user_id": text}
        case "stop":
            body["stop_sequences"] = [text]
        case _:
            raise ValueError(place)


PLACES = (
    *(
        "user",
        "user",
        "block",
        "history",
        "system",
        "tool result",
        "tool input",
        "tool description",
        "metadata",
        "stop",
    ),
)
ENCODE: dict[str, Callable[[str], str]] = {
    "plain": lambda t: t,
    "base64": lambda t: base64.b64encode(t.encode()).decode(),
    "url": lambda t: urllib.parse.quote(t, safe=""),
    "json in json": lambda t: json.dumps({"note": t}),
    "code": lambda t: f"```\n{t}\n```",
}
UNSEEN: tuple[tuple[str, Any], ...] = (
    ("picture", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}),
    ("picture by address", {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}),
    ("pdf", {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}),
    ("unknown block", {"type": "hologram_2027", "data": "x"}),
    ("file elsewhere", {"type": "document", "source": {"type": "file", "file_id": "file_1"}}),
)


def blank(r: random.Random) -> dict[str, Any]:
    """A clean request."""
    words = " ".join(r.choices(("build", "test", "loop", "value", "直す", "関数", "説明"), k=r.randint(2, 12)))
    return {
        "model": "claude-sonnet-5-5", "max_tokens": r.randint(1, 500), "stream": r.random() < 0.5,
        "messages": [{"role": "user", "content": words}],
    }  # fmt: skip


def cases(count: int, seed: int) -> Iterator[Case]:
    """So many confidential requests."""
    from detect_texts import FREE, positives

    from miyabi_llm import detect

    r = random.Random(seed)
    each = count // 60 + 1  # texts of each kind and language; kinds of free words have their own figures
    made = [t for t in positives(seed, 1, each, disguised=False) if t.kind not in FREE]
    texts = [t for t in made if detect.scan(t.text)]
    unknown = Counter(t.kind for t in made) - Counter(t.kind for t in texts)
    print(f"texts: {len(made):,}, of which the detectors do not know {dict(unknown)}: left out", flush=True)
    r.shuffle(texts)
    tainted: list[str] = []
    for number in range(count):
        body, headers = blank(r), {}
        path = r.choice(("/v1/messages", "/v1/messages", "/v1/messages", "/v1/chat/completions"))
        way = r.choices(("text", "word", "unseen", "path", "project", "session", "deep"), (70, 8, 8, 4, 4, 4, 2))[0]
        if way == "session" and not tainted:
            way = "text"
        match way:
            case "text":
                found = texts[number % len(texts)]
                encoding = r.choice(list(ENCODE))
                put(r.choice(PLACES), ENCODE[encoding](found.text), body)
                why = f"text: {found.kind}"
                if r.random() < 0.1:
                    headers["x-miyabi-session"] = f"s{number}"
                    tainted.append(f"s{number}")
            case "word":
                why, headers["x-miyabi-privacy"] = "client's word", r.choice(("confidential", "internal", "gibberish"))
            case "unseen":
                kind, block = r.choice(UNSEEN)
                why = f"unseen: {kind}"
                body["messages"].append({"role": "user", "content": [{"type": "text", "text": "see"}, block]})
            case "path":
                why = "path"
                put(r.choice(PLACES[:5]), r.choice(("src/secrets/prod.env", "/home/a/id.pem")), body)
            case "project":
                why, headers["x-miyabi-project"] = "project", r.choice(("customer-acme", "team-blue"))
            case "session":
                why, headers["x-miyabi-session"] = "session", r.choice(tainted[-200:-20] or tainted)
            case _:
                why, nest = "nesting", "x"
                nested: Any = nest
                for _ in range(80):
                    nested = [nested]
                body["metadata"] = {"deep": nested}
        _wish(r, body, headers, way)
        yield Case(why, path, headers, body)


def _wish(r: random.Random, body: dict[str, Any], headers: dict[str, str], way: str) -> None:
    """What the client wants: the cloud by name, a local server that fails, or nothing; and what it says of itself."""
    wish = r.random()
    if wish < 0.15:
        headers["x-miyabi-target"] = "cloud"
    elif wish < 0.22:
        body["model"], headers["x-stub"] = "bad", r.choice(("500", "529", "drop", "cut"))
    elif wish < 0.24:
        body["model"] = "gone"
    elif wish < 0.35:
        body["model"] = "auto"
    if way != "word" and r.random() < 0.2:
        headers["x-miyabi-privacy"] = "public"
    if r.random() < 0.1:
        headers["x-miyabi-hint"] = r.choice(("hard", "bulk"))


async def send(port: int, work: Iterator[Case], seen: Counter[str], missed: Counter[str]) -> None:
    """Send requests on one connection, one after the other."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for case in work:
        data = json.dumps(case.body, ensure_ascii=False).encode()
        lines = [f"POST {case.path} HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
        lines += [f"{k}: {v}" for k, v in case.headers.items()] + [f"content-length: {len(data)}", "", ""]
        writer.write("\r\n".join(lines).encode() + data)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        told = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if "content-length" in told:
            await reader.readexactly(int(told["content-length"]))
        else:
            while (size := int((await reader.readline()).strip() or b"0", 16)) > 0:
                await reader.readexactly(size + 2)
            await reader.readexactly(2)
        seen[f"{head.split(' ')[1]} {told.get('x-miyabi-route')}"] += 1
        if told.get("x-miyabi-verdict") == "public":
            missed[case.why] += 1
    writer.close()


def stats(port: int) -> dict[str, int]:
    """What a stand-in counted before this question."""
    with socket.create_connection(("127.0.0.1", port)) as s:
        s.sendall(b"GET /stats HTTP/1.1\r\nhost: x\r\n\r\n")
        data = b""
        while not data.endswith(b"}"):
            data += s.recv(4096)
    return dict(json.loads(data.partition(b"\r\n\r\n")[2]))


def loopback() -> list[str]:
    """Bring up the loopback of this namespace; the names of all its interfaces."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, 0x8914, struct.pack("16sH14s", b"lo", 0x1 | 0x40, b""))  # SIOCSIFFLAGS: up, running
    return [name for _, name in socket.if_nameindex()]


def inside(count: int, seed: int, lanes: int) -> int:
    """The run, where only loopback exists."""
    from miyabi_llm.gateway.values import Order

    names = loopback()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        stubs = [subprocess.Popen(STUB, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        cloud, local = (int(s.stdout.readline()) for s in stubs if s.stdout is not None)
        urls = {"cloud": f"http://127.0.0.1:{cloud}", "local": f"http://127.0.0.1:{local}"}
        (work / "policy.toml").write_text(POLICY.format(**urls))
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = s.getsockname()[1]
        order = Order("127.0.0.1", port, work, work / "audit.jsonl", work / "ledger.sqlite", work / "policy.toml")
        (work / "order.json").write_text(order.to_json())
        gateway = subprocess.Popen(
            [sys.executable, "-P", "-m", "miyabi_llm.gateway.process", "egress", str(work / "order.json")],
            env={**os.environ, "ANTHROPIC_API_KEY": "sk-canary", "PYTHONPATH": str(HERE.parent)},
        )
        try:
            _wait(port)
            seen, missed = Counter[str](), Counter[str]()
            begin = time.monotonic()
            queue = cases(count, seed)

            async def all_() -> None:
                await asyncio.gather(*(send(port, queue, seen, missed) for _ in range(lanes)))

            asyncio.run(all_())
            took, leaked = time.monotonic() - begin, stats(cloud)
            here = stats(local)
            asyncio.run(_control(port, seed))
            known = stats(cloud)
        finally:
            gateway.terminate()
            gateway.wait()
            for stub in stubs:
                stub.communicate()
    print(f"interfaces: {', '.join(names)}")
    print(f"confidential requests: {sum(seen.values()):,} in {took:.0f} s; local server saw {here['requests']:,}")
    for what, number in sorted(seen.items()):
        print(f"  {what}: {number:,}")
    print(f"judged public, so sent: {sum(missed.values())} {dict(missed)}")
    print(f"cloud: {leaked['connections']} connections, {leaked['requests']} requests, {leaked['bytes']} bytes")
    control = known["requests"] - leaked["requests"]
    print(f"control: {CONTROL} public requests, of which the cloud saw {control}")
    return 1 if leaked["connections"] or leaked["bytes"] or control != CONTROL else 0


CONTROL = 200


async def _control(port: int, seed: int) -> None:
    r = random.Random(seed)
    work = iter([Case("control", "/v1/messages", {}, blank(r)) for _ in range(CONTROL)])
    await send(port, work, Counter(), Counter())


def _wait(port: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the gateway does not listen")


def main() -> int:
    """Read the words of the command; go inside."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--lanes", type=int, default=64, help="connections at once")
    args = parser.parse_args()
    if not os.environ.get(INSIDE):
        command = ["unshare", "-rn", sys.executable, *sys.argv]
        return subprocess.run(command, env={**os.environ, INSIDE: "1"}, check=False).returncode
    return inside(args.requests, args.seed, args.lanes)


if __name__ == "__main__":
    raise SystemExit(main())
