"""The one place where bytes leave: a process of its own that holds the keys, and sends nothing without a permit.

It listens on a socket in a private folder. One request is one connection: a permit and a body in, frames out; a
connection that is closed ends the request at the cloud. It never follows a redirect and knows no proxy.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from miyabi_llm.gateway.headers import Pairs
from miyabi_llm.gateway.http1 import Answer, Failed, Order, Origin, Pool, Times, origin
from miyabi_llm.gateway.permit import Desk, NoPermit, Permit
from miyabi_llm.route.values import Target
from miyabi_llm.types import Secret

BODY: Final = 64 << 20  # bytes of a request, at most
WORD: Final = 4  # bytes of a length
HEAD, DATA, END, ERROR = b"H", b"D", b"E", b"X"


@dataclass(frozen=True, slots=True)
class Cloud:
    """One cloud target: where it is, and its key under the header that it wants it in."""

    at: Origin
    prefix: str
    header: str
    key: Secret

    def auth(self) -> Pairs:
        """The header with the key."""
        return ((self.header, f"{self.prefix}{self.key.reveal()}"),)


def clouds(targets: tuple[Target, ...], env: Mapping[str, str | Secret]) -> dict[str, Cloud]:
    """The cloud targets that have a key in `env`, by name. Pure."""
    found = {}
    for target in targets:
        if target.local:
            continue
        names = (target.endpoint.key_env,) if target.endpoint.key_env else ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")
        name = next((n for n in names if env.get(n)), None)
        if name is None:
            continue
        value = env[name]
        key = value if isinstance(value, Secret) else Secret(value)
        bearer = "anthropic" not in target.endpoint.dialects or name == "ANTHROPIC_AUTH_TOKEN"
        header, prefix = ("authorization", "Bearer ") if bearer else ("x-api-key", "")
        found[target.name] = Cloud(origin(target.endpoint.base_url), prefix, header, key)
    return found


class Egress:
    """Serves permits. `written(target, nonce)` says whether the audit has a permit's record on its disk."""

    def __init__(
        self, known: Mapping[str, Cloud], key: bytes, written: Callable[[str, str], bool], times: Times | None = None
    ) -> None:
        self._known, self._desk, self._written = known, Desk(key), written
        self._pool = Pool(times)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from permit to end."""
        work = asyncio.create_task(self._one(reader, writer))
        try:
            await work
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def close(self) -> None:
        """End the kept connections."""
        self._pool.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = (await _piece(reader, 1 << 16)).decode("ascii", "replace")
        body = await _piece(reader, BODY)
        try:
            permit = self._desk.check(text, body, time.monotonic())
            cloud = self._known.get(permit.target)
            if cloud is None:
                raise NoPermit(f"{permit.target} is no cloud target with a key")
            if not self._written(permit.target, permit.nonce):
                raise NoPermit("the audit does not have the permit's record")
        except NoPermit as e:
            await _frame(writer, ERROR, _json({"why": "permit", "message": str(e), "begun": False}))
            return
        gone = asyncio.ensure_future(reader.read(1))  # the gateway says nothing more: this is its end
        sending = asyncio.ensure_future(self._send(cloud, permit, body, writer))
        await asyncio.wait((gone, sending), return_when=asyncio.FIRST_COMPLETED)
        for task in (gone, sending):
            task.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await task

    async def _send(self, cloud: Cloud, permit: Permit, body: bytes, writer: asyncio.StreamWriter) -> None:
        headers = (*permit.headers, *cloud.auth(), ("accept-encoding", "identity"))
        answer: Answer | None = None
        try:
            answer = await self._pool.send(cloud.at, Order("POST", permit.path, headers, body))
            head = {"status": answer.status, "reason": answer.reason, "headers": answer.headers}
            await _frame(writer, HEAD, _json(head))
            while data := await answer.chunk():
                await _frame(writer, DATA, data)
            await _frame(writer, END, b"")
        except Failed as e:
            await _frame(writer, ERROR, _json({"why": e.why, "message": e.message, "begun": e.begun}))
        finally:
            if answer is not None:
                answer.close()


async def _piece(reader: asyncio.StreamReader, most: int) -> bytes:
    size = int.from_bytes(await reader.readexactly(WORD), "big")
    if size > most:
        raise ConnectionError("too long")
    return await reader.readexactly(size)


async def _frame(writer: asyncio.StreamWriter, kind: bytes, data: bytes) -> None:
    writer.write(kind + len(data).to_bytes(WORD, "big") + data)
    await writer.drain()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
