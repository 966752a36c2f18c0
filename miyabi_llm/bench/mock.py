"""A server of known timing, run as a script of its own: what a load generator says about it can be checked.

`python mock.py --ttft 0.02 --itl 0.02 --tokens 50 [--port N]` speaks the OpenAI chat dialect as a stream. Each content
chunk carries `sent_ns`, the server's own `time.perf_counter_ns` when it was written, so that what the server itself was
late is known apart. `GET /stats` tells what it saw: when requests came, when answers ended, how late its tokens left;
`GET /reset` forgets it. Its first line on stdout is its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from array import array
from typing import Any, cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNK = {"object": "chat.completion.chunk", "id": "mock", "created": 0, "model": "mock"}
ROLE = CHUNK | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}
KEEP = 500_000  # arrivals and delays that are kept


def framed(body: bytes) -> bytes:
    """One chunk of the transfer encoding."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(value: object) -> bytes:
    """One server-sent event in a chunk of its own."""
    return framed(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


class Seen:
    """What the server saw, in nanoseconds of `time.perf_counter_ns`."""

    def __init__(self) -> None:
        self.arrivals, self.ends, self.late = array("q"), array("q"), array("q")

    def begun(self) -> int:
        """A request is whole. Returns the time."""
        now = time.perf_counter_ns()
        if len(self.arrivals) < KEEP:
            self.arrivals.append(now)
        return now

    def ended(self) -> None:
        """Its last byte was written, or its client left."""
        if len(self.ends) < KEEP:
            self.ends.append(time.perf_counter_ns())

    def told(self, late: int) -> None:
        """A token left so many nanoseconds after its time."""
        if len(self.late) < KEEP:
            self.late.append(late)

    def stats(self) -> dict[str, Any]:
        """All of it. As many answers as arrivals without an end are in flight."""
        late = sorted(self.late) or [0]
        return {
            "now": time.perf_counter_ns(),
            "arrivals": self.arrivals.tolist(),
            "ends": self.ends.tolist(),
            "late_p50": late[len(late) // 2],
            "late_p99": late[int(len(late) * 0.99)],
        }


class Stream(asyncio.Protocol):
    """One connection: reads requests, answers each with a stream of tokens at fixed times after its arrival."""

    def __init__(self, args: argparse.Namespace, held: list[Seen]) -> None:
        self._ttft, self._itl, self._tokens = int(args.ttft * 1e9), int(args.itl * 1e9), args.tokens
        self._held = held
        self._seen = held[0]
        self._loop = asyncio.get_running_loop()
        self._left = b""
        self._answering = False
        count = args.tokens * args.per_chunk
        usage = {"prompt_tokens": 8, "completion_tokens": count, "total_tokens": 8 + count}
        finish = CHUNK | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        counts = CHUNK | {"choices": [], "usage": usage}
        self._tail = event(finish) + event(counts) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
        choices = [{"index": 0, "delta": {"content": "tok " * args.per_chunk}, "finish_reason": None}]
        text = json.dumps(CHUNK | {"choices": choices, "sent_ns": 0}, separators=(",", ":")).encode()
        self._before = b"data: " + text[: -len(b"0}")]
        self._head = HEAD + event(ROLE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def connection_lost(self, exc: Exception | None) -> None:
        """A client left, perhaps in the middle of its answer."""
        if self._answering:
            self._answering = False
            self._seen.ended()

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one, or several: the next waits for the answer of the one before."""
        self._left += data
        while not self._answering:
            head, blank, rest = self._left.partition(b"\r\n\r\n")
            found = _LENGTH.search(head)
            length = int(found[1]) if found else 0
            if not blank or len(rest) < length:
                return
            self._left = rest[length:]
            if head.startswith(b"POST"):
                self._answer()
            else:
                self._tell(head.split(b" ", 2)[1])

    def _tell(self, path: bytes) -> None:
        value: dict[str, Any] = {"object": "list", "data": [{"id": "mock", "object": "model"}]}
        if path == b"/stats":
            value = self._held[0].stats()
        elif path == b"/reset":
            self._held[0] = Seen()
        body = json.dumps(value).encode()
        kind = b"content-type: application/json\r\n"
        self._transport.write(b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (kind, len(body), body))

    def _answer(self) -> None:
        self._seen = self._held[0]
        arrived = self._seen.begun()
        if self._ttft <= 0 and self._itl <= 0:
            self._transport.write(self._head + b"".join(self._token() for _ in range(self._tokens)) + self._tail)
            self._seen.ended()
            return
        self._answering = True
        self._transport.write(self._head)
        self._say(arrived + self._ttft, 0)

    def _token(self) -> bytes:
        return framed(b"%b%d}\n\n" % (self._before, time.perf_counter_ns()))

    def _say(self, due: int, number: int) -> None:
        """Write a token at its time, never before: the loop's timers count milliseconds and may be one early."""
        late = time.perf_counter_ns() - due
        if not self._answering:
            return
        if late < 0:
            self._loop.call_later(max(1_000_000, -late) / 1e9, self._say, due, number)
            return
        self._seen.told(late)
        if number + 1 < self._tokens:
            self._transport.write(self._token())
            self._say(due + self._itl, number + 1)
            return
        self._answering = False
        self._transport.write(self._token() + self._tail)
        self._seen.ended()
        if self._left:
            self.data_received(b"")


async def serve(args: argparse.Namespace) -> None:
    """Listen on loopback until killed, or until stdin ends: no test that dies leaves one behind."""
    loop = asyncio.get_running_loop()
    held = [Seen()]
    server = await loop.create_server(lambda: Stream(args, held), "127.0.0.1", args.port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    over = asyncio.Event()
    if args.watch:
        await loop.connect_read_pipe(lambda: _Watch(over), sys.stdin)
    await over.wait()


class _Watch(asyncio.Protocol):
    """Ends the server with its parent's pipe."""

    def __init__(self, over: asyncio.Event) -> None:
        self._over = over

    def connection_lost(self, exc: Exception | None) -> None:
        """The parent is gone."""
        self._over.set()


def main() -> None:
    """Read the timing from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ttft", type=float, default=0.02, help="seconds from a request to its first token")
    parser.add_argument("--itl", type=float, default=0.02, help="seconds between tokens")
    parser.add_argument("--tokens", type=int, default=50, help="chunks of an answer")
    parser.add_argument("--per-chunk", type=int, default=1, help="tokens in a chunk")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--watch", action="store_true", help="end when stdin does")
    args = parser.parse_args()
    try:
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    except ImportError:
        runner = asyncio.Runner()
    with runner:
        runner.run(serve(args))


if __name__ == "__main__":
    main()
