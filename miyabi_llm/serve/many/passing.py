"""Passing one request on and its answer back: bytes unchanged, unbuffered, ended on both sides when one ends."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from miyabi_llm.types import Endpoint

# Of one connection, or the client's secrets, or rebuilt by us.
_NOT_UP = frozenset(
    (
        *("host", "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer", "upgrade"),
        *("transfer-encoding", "content-length", "authorization", "x-api-key", "cookie", "origin", "referer", "expect"),
        "x-miyabi-probe",
    )
)
_NOT_DOWN = frozenset(("connection", "keep-alive", "transfer-encoding", "trailer", "upgrade", "server", "set-cookie"))
LOOK_S = 2.0


class Upstream:
    """Connections to the models' servers. `passed` counts bytes passed to clients."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session, self.passed = session, 0

    async def send(
        self, request: web.Request, to: Endpoint, body: Mapping[str, Any] | None
    ) -> web.StreamResponse | None:
        """Pass `request` on to `to` and its answer back; None when the server is not there any more.

        The body goes as it came, unless the client and the server call the model differently. An answer that breaks
        off is broken off here too, after an error event in a stream: never ended as if it were whole.
        """
        data = await request.read() if body is not None else None
        if body is not None and body.get("model") != to.model:
            data = json.dumps({**body, "model": to.model}, ensure_ascii=False).encode()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _NOT_UP}
        url = to.base_url + request.path
        query = dict(request.query) | ({"model": to.model} if body is None else {})
        try:
            answer = await self._session.request(
                request.method, url, params=query, data=data, headers=headers | _key(to), allow_redirects=False
            )
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError):
            return None
        async with answer:
            return await self._back(request, answer)

    async def look(self, at: Endpoint, path: str) -> Any:
        """What a server says on `path`, None when it does not say it soon."""
        try:
            async with self._session.get(
                at.base_url + path,
                params={"model": at.model},
                headers=_key(at),
                timeout=aiohttp.ClientTimeout(total=LOOK_S),
            ) as answer:
                return await answer.json(content_type=None) if answer.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, ValueError):
            return None

    async def _back(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        down = web.StreamResponse(status=answer.status, reason=answer.reason)
        for key, value in answer.headers.items():
            # whose pages may read an answer is not for a model's server to say
            if key.lower() not in _NOT_DOWN and not key.lower().startswith("access-control-"):
                down.headers.add(key, value)
        await down.prepare(request)
        try:
            async for chunk in answer.content.iter_any():
                self.passed += len(chunk)
                await down.write(chunk)
        except (aiohttp.ClientError, TimeoutError) as e:
            if answer.content_type == "text/event-stream":
                await down.write(_cut(request, type(e).__name__))
            if request.transport is not None:
                request.transport.abort()
            return down
        await down.write_eof()
        return down


@asynccontextmanager
async def upstream() -> AsyncIterator[Upstream]:
    """Connections for as long as the block runs: no proxy, no redirect, no limit of time, a new one for each request.

    A connection that is kept may be closed by the other end just when a request goes out, which then fails.
    """
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        trust_env=False,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
    ) as session:
        yield Upstream(session)


def _key(to: Endpoint) -> dict[str, str]:
    return {"authorization": f"Bearer {to.key.reveal()}"} if to.key else {}


def _cut(request: web.Request, why: str) -> bytes:
    error = {"type": "api_error", "message": f"the model's server broke off: {why}"}
    if request.path.startswith("/v1/messages"):
        return b"event: error\ndata: " + json.dumps({"type": "error", "error": error}).encode() + b"\n\n"
    return b"data: " + json.dumps({"error": error | {"code": 502}}).encode() + b"\n\n"
