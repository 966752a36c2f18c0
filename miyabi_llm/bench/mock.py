"""A server of known timing, run as a script of its own: what a load generator says about it can be checked.

`python mock.py --ttft 0.02 --itl 0.02 --tokens 50 [--port N] [--load N]` speaks the OpenAI chat dialect as a stream.
Each content chunk carries `sent_ns`, the server's own `time.perf_counter_ns` when it was written, so that what the
server itself was late is known apart. Its first line on stdout is its port.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from typing import cast

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ROLE = {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}]}


def framed(body: bytes) -> bytes:
    """One chunk of the transfer encoding."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(value: object) -> bytes:
    """One server-sent event in a chunk of its own."""
    return framed(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


class Stream(asyncio.Protocol):
    """One connection: reads requests, answers each with a stream of tokens at fixed times after its arrival."""

    def __init__(self, ttft: float, itl: float, tokens: int, per_chunk: int) -> None:
        self._ttft, self._itl, self._tokens, self._per_chunk = ttft, itl, tokens, per_chunk
        self._loop = asyncio.get_running_loop()
        self._left = b""
        usage = {"prompt_tokens": 8, "completion_tokens": tokens * per_chunk, "total_tokens": 8 + tokens * per_chunk}
        finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        self._tail = event(finish) + event({"choices": [], "usage": usage}) + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has another base

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one."""
        self._left += data
        head, blank, rest = self._left.partition(b"\r\n\r\n")
        if not blank:
            return
        length = _LENGTH.search(head)
        if length and len(rest) < int(length[1]):
            return
        self._left = b""
        if head.startswith(b"GET"):
            body = json.dumps({"object": "list", "data": [{"id": "mock"}]}).encode()
            self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
            return
        self._transport.write(HEAD + event(ROLE))
        if self._ttft <= 0 and self._itl <= 0:
            tokens = b"".join(self._token() for _ in range(self._tokens))
            self._transport.write(tokens + self._tail)
            return
        self._say(self._loop.time() + self._ttft, 0)

    def _token(self) -> bytes:
        delta = {"content": "tok " * self._per_chunk}
        choices = [{"index": 0, "delta": delta, "finish_reason": None}]
        return event({"choices": choices, "sent_ns": time.perf_counter_ns()})

    def _say(self, due: float, number: int) -> None:
        if self._transport.is_closing():
            return
        if self._loop.time() < due:
            self._loop.call_at(due, self._say, due, number)
            return
        last = number + 1 == self._tokens
        self._transport.write(self._token() + (self._tail if last else b""))
        if not last:
            self._loop.call_at(due + self._itl, self._say, due + self._itl, number + 1)


async def serve(args: argparse.Namespace) -> None:
    """Listen on loopback until killed, or until stdin ends: no test that dies leaves one behind."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Stream(args.ttft, args.itl, args.tokens, args.per_chunk), "127.0.0.1", args.port, backlog=4096
    )
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
