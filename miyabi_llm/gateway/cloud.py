"""The gateway's side of the way out: hands a permit and its bytes to the process that has the keys."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Final

from miyabi_llm.gateway.egress import DATA, END, HEAD, WORD
from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.gateway.http1 import Failed

LIMIT: Final = 256 << 10  # bytes held of an answer before reading stops
START_S: Final = 5.0  # for the other process to listen, right after the start


class CloudAnswer:
    """An answer of a cloud, as `http1.Answer` gives one of a local server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self._reader, self._writer = reader, writer
        self._begun = b""  # the head of a frame whose body was not waited for to the end
        said = json.loads(head)
        self.status: int = said["status"]
        self.reason: str = said["reason"]
        self.headers: Pairs = tuple((k, v) for k, v in said["headers"])

    def header(self, name: str) -> str:
        """The first value of a header, empty when there is none."""
        return next((v for k, v in self.headers if k.lower() == name), "")

    async def chunk(self) -> bytes:
        """The next bytes, empty at the end. Raises Failed."""
        try:
            if not self._begun:
                self._begun = await self._reader.readexactly(1 + WORD)
            data = await self._reader.readexactly(int.from_bytes(self._begun[1:], "big"))
        except (asyncio.IncompleteReadError, ConnectionError):
            raise Failed("cut", "the process that sends broke off", begun=True) from None
        kind, self._begun = self._begun[:1], b""
        if kind == DATA:
            return data
        if kind == END:
            return b""
        raise _failed(data)

    async def read(self, most: int) -> bytes:
        """The whole body. Raises Failed, also when it is longer than `most` bytes."""
        parts, size = [], 0
        while data := await self.chunk():
            parts.append(data)
            size += len(data)
            if size > most:
                raise Failed("garbled", f"an answer of more than {most:,} bytes", begun=True)
        return b"".join(parts)

    def close(self) -> None:
        """End the connection, and with it what the cloud still does for us."""
        self._writer.transport.abort()


async def send(socket: Path, permit: str, body: bytes) -> CloudAnswer:
    """Send what the permit is for. Raises Failed, with `why` "permit" when it was refused."""
    reader, writer = await _connect(socket)
    try:
        text = permit.encode("ascii")
        writer.writelines((len(text).to_bytes(WORD, "big"), text, len(body).to_bytes(WORD, "big"), body))
        await writer.drain()
        kind, data = await _frame(reader)
        if kind != HEAD:
            raise _failed(data)
        return CloudAnswer(reader, writer, data)
    except BaseException as e:
        writer.transport.abort()
        if isinstance(e, OSError):
            raise Failed("cut", "the process that sends broke off") from None
        raise


async def _connect(socket: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = asyncio.get_running_loop().time() + START_S
    while True:
        try:
            return await asyncio.open_unix_connection(str(socket), limit=LIMIT)
        except OSError as e:
            if asyncio.get_running_loop().time() > deadline:
                raise Failed("connect", f"the process that sends is not there: {e.strerror}") from None
        await asyncio.sleep(0.05)


async def _frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    try:
        head = await reader.readexactly(1 + WORD)
        return head[:1], await reader.readexactly(int.from_bytes(head[1:], "big"))
    except (asyncio.IncompleteReadError, ConnectionError):
        raise Failed("cut", "the process that sends broke off", begun=True) from None


def _failed(data: bytes) -> Failed:
    said = json.loads(data)
    return Failed(said["why"], said["message"], begun=said["begun"])
