"""Is a cut answer ever taken for a whole one? Recorded streams through a real gateway, cut at every byte.

    python benchmarks/cuts.py [--cuts 10000]

Each stream (messages, chat completions, completions, responses, Ollama's chat and generate; with calls) is cut after
each of its bytes, in three ways: ended in good order, the connection closed, the connection reset. What the client gets
counts as a fake success when it ends in good order, or holds the last event of a whole answer, though a byte that says
something is missing. An error with its status before the stream, and an error event followed by a broken connection,
are what is right.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.gateway.house import House, policy, running
from tests.gateway.recorded import STREAMS

WAYS = ("end", "close", "reset")
LAST = (b"[DONE]", b"message_stop", b"response.completed", b'"done": true')


@dataclass(frozen=True, slots=True)
class Cut:
    """One cut: which stream, after how many bytes, and how."""

    name: str
    at: int
    way: str


class Server(asyncio.Protocol):
    """Answers with the stream and the cut that the headers name."""

    def __init__(self) -> None:
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """A request, whose body ends with a brace."""
        self._left += data
        head, blank, body = self._left.partition(b"\r\n\r\n")
        said = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if not blank or len(body) < int(said[b"content-length"]):
            return
        self._left = b""
        name, at, way = said[b"x-cut"].decode().split("/")
        path, stream = STREAMS[name.replace("_", " ")]
        kind = b"application/x-ndjson" if path.startswith("/api/") else b"text/event-stream"
        part = stream[: int(at)]
        chunk = b"%x\r\n%b\r\n" % (len(part), part) if part else b""
        top = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ntransfer-encoding: chunked\r\n\r\n" % kind
        self._transport.write(top + chunk + (b"0\r\n\r\n" if way == "end" else b""))
        if way == "reset":
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if way != "end":
            self._transport.close()


@contextmanager
def serving() -> Iterator[str]:
    """The cutting server in a thread; its address."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> None:
        found.append(await loop.create_server(Server, "127.0.0.1", 0, backlog=1024))
        ready.set()

    def run() -> None:
        loop.run_until_complete(start())
        loop.run_forever()
        found[0].close()
        loop.run_until_complete(asyncio.sleep(0.05))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{found[0].sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def all_cuts() -> list[Cut]:
    """Every byte of every stream, in every way."""
    return [Cut(n, at, way) for n, (_, data) in STREAMS.items() for at in range(len(data)) for way in WAYS]


def judge(cut: Cut, got: bytes) -> str:
    """What a client would take an answer for: `error`, `whole`, or `FAKE`."""
    path, stream = STREAMS[cut.name]
    head, _, body = got.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        return "error"
    clean = body.endswith(b"\r\n0\r\n\r\n")
    if not stream[cut.at :].strip():  # only a line's end is missing: nothing of the answer is
        return "whole" if clean else "error"
    if clean or any(word in body for word in LAST):
        return "FAKE"
    last = body.rstrip().rpartition(b"\n" if path.startswith("/api/") else b"data: ")[2].split(b"\r\n")[0]
    try:
        said = json.loads(last)
    except ValueError:
        return "FAKE"  # broken off without a word of why
    return "error" if isinstance(said, dict) and ("error" in said or said.get("type") == "error") else "FAKE"


async def one(house: House, cut: Cut) -> str:
    """Ask for one cut stream and judge what comes."""
    path, _ = STREAMS[cut.name]
    said = {"model": "m", "stream": True, "messages": [], "prompt": "x", "input": "x", "max_tokens": 9}
    body = json.dumps(said).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\nconnection: close\r\n"
    head += f"x-cut: {cut.name.replace(' ', '_')}/{cut.at}/{cut.way}\r\ncontent-length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", house.port)
    writer.write(head.encode() + body)
    got = await reader.read(-1)
    writer.close()
    return judge(cut, got)


def run(cuts: list[Cut], lanes: int = 8) -> tuple[Counter[str], list[Cut]]:
    """All cuts; the counts and the fakes."""
    counts, fakes = Counter[str](), []
    queue = iter(cuts)
    target = 'dialects = ["anthropic", "openai", "ollama"];backend = "vllm"'
    with serving() as url, running(policy(f"here local {url} {target}", mode="local")) as house:

        async def lane() -> None:
            for cut in queue:
                house.gateway.clerk.circuits.forget()  # else the circuit would answer for the server
                result = await one(house, cut)
                counts[f"{cut.way}: {result}"] += 1
                if result == "FAKE":
                    fakes.append(cut)

        async def all_() -> None:
            await asyncio.gather(*(lane() for _ in range(lanes)))

        asyncio.run(all_())
    return counts, fakes


def main() -> int:
    """Read the words of the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuts", type=int, default=10_000, help="at least so many; 0: all")
    args = parser.parse_args()
    cuts = all_cuts()
    print(f"{len(STREAMS)} streams, {sum(len(d) for _, d in STREAMS.values()):,} bytes, {len(cuts):,} cuts in all")
    if args.cuts and args.cuts < len(cuts):
        cuts = random.Random(1).sample(cuts, args.cuts)
    begin = time.monotonic()
    counts, fakes = run(cuts)
    print(f"{sum(counts.values()):,} cuts in {time.monotonic() - begin:.0f} s")
    for what, number in sorted(counts.items()):
        print(f"  {what}: {number:,}")
    print(f"fake successes: {len(fakes)}")
    for cut in fakes[:20]:
        print(f"  {cut}")
    return 1 if fakes else 0


if __name__ == "__main__":
    raise SystemExit(main())
