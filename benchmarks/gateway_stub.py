"""The server behind all gateways of the comparison: answers at once, whole or as a stream. Prints its port.

`python benchmarks/gateway_stub.py [--events N] [--gap SECONDS]` speaks /v1/messages and /v1/chat/completions; any key
will do. GET /stats tells how many connections, requests and bytes came before. A request with the header `x-stub` is
failed: `500`, `529`, `drop` (no answer) or `cut` (half an answer).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
from typing import Any, cast

_FAULT = re.compile(rb"\r\nx-stub: *(\w+)", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


def framed(body: bytes) -> bytes:
    """One chunk of the transfer encoding."""
    return b"%x\r\n%b\r\n" % (len(body), body)


def event(name: str, body: dict[str, Any]) -> bytes:
    """One event of the Messages API, in a chunk of its own."""
    return framed(f"event: {name}\ndata: {json.dumps({'type': name} | body)}\n\n".encode())


def messages(events: int) -> list[bytes]:
    """A stream of the Messages API with so many words."""
    usage = {"input_tokens": 25, "output_tokens": 1}
    message: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "stub", "content": []}
    message |= {"stop_reason": None, "stop_sequence": None, "usage": usage}
    delta = event("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "word "}})
    start = event("message_start", {"message": message})
    block = event("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}})
    stop = event("content_block_stop", {"index": 0})
    last = event("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": events}})
    return [start + block, *[delta] * events, stop + last + event("message_stop", {}) + b"0\r\n\r\n"]


def chats(events: int) -> list[bytes]:
    """A stream of chat completions."""

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        body = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": "stub"}
        choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
        return framed(b"data: " + json.dumps(body | {"choices": choices}).encode() + b"\n\n")

    end = chunk({}, "stop") + framed(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return [chunk({"role": "assistant", "content": ""}), *[chunk({"content": "word "})] * events, end]


MESSAGE = {
    "id": "m", "type": "message", "role": "assistant", "model": "stub", "stop_reason": "end_turn",
    "stop_sequence": None, "content": [{"type": "text", "text": "word"}],
    "usage": {"input_tokens": 25, "output_tokens": 1},
}  # fmt: skip
CHAT = {
    "id": "c", "object": "chat.completion", "created": 0, "model": "stub",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "word"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 25, "completion_tokens": 1, "total_tokens": 26},
}  # fmt: skip


def whole(body: object) -> bytes:
    """A JSON answer, head and all."""
    data = json.dumps(body).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(data), data)


class Stub(asyncio.Protocol):
    """One connection."""

    seen = connections = bytes = 0

    def __init__(self, args: argparse.Namespace) -> None:
        self._gap = args.gap
        self._streams = {b"/v1/messages": messages(args.events), b"/v1/chat/completions": chats(args.events)}
        self._wholes = {b"/v1/messages": whole(MESSAGE), b"/v1/chat/completions": whole(CHAT)}
        self._left = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client came."""
        self._transport = cast(asyncio.Transport, transport)
        Stub.connections += 1

    def data_received(self, data: bytes) -> None:
        """A request, or a part of one."""
        self._left += data
        Stub.bytes += len(data)
        head, blank, rest = self._left.partition(b"\r\n\r\n")
        found = _LENGTH.search(head)
        length = int(found[1]) if found else 0
        if not blank or len(rest) < length:
            return
        self._left = rest[length:]
        path = head.split(b" ", 2)[1].partition(b"?")[0]
        if path == b"/stats":
            own = len(self._left) + len(head) + 4  # of this question itself
            told = {"connections": Stub.connections - 1, "requests": Stub.seen, "bytes": Stub.bytes - own}
            self._transport.write(whole(told))
        elif path in self._streams:
            Stub.seen += 1
            body = rest[:length]
            if (fault := _FAULT.search(head)) is not None:
                self._fail(fault[1], self._wholes[path])
            elif b'"stream":true' in body or b'"stream": true' in body:
                self._stream(self._streams[path])
            else:
                self._transport.write(self._wholes[path])
        else:
            self._transport.write(whole({"data": [{"id": "stub", "object": "model"}]}))

    def _fail(self, how: bytes, good: bytes) -> None:
        if how == b"cut":
            self._transport.write(good[: len(good) - 20])
        elif how != b"drop":
            self._transport.write(b"HTTP/1.1 %b no\r\ncontent-length: 0\r\n\r\n" % how)
            return
        self._transport.close()

    def _stream(self, parts: list[bytes]) -> None:
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if self._gap <= 0:
            for part in parts:
                self._transport.write(part)
            return
        self._say(parts, 0)

    def _say(self, parts: list[bytes], number: int) -> None:
        if self._transport.is_closing():
            return
        self._transport.write(parts[number])
        if number + 1 < len(parts):
            asyncio.get_running_loop().call_later(self._gap, self._say, parts, number + 1)


async def serve(args: argparse.Namespace) -> None:
    """Listen on loopback until stdin ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Stub(args), "127.0.0.1", args.port, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


def main() -> None:
    """Read the words of the command."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--gap", type=float, default=0.0, help="seconds between events; 0: all at once")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
