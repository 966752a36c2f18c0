"""Who may ask: Host, Origin and key before a byte of the body is read; bodies of bounded size and time."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Final

from aiohttp import web

from miyabi_llm.gateway import dialects
from miyabi_llm.serve.many.guard import OPEN, Denied, Guard

BODY_S: Final = 60.0  # seconds for a whole body to come
BUSY: Final = 512  # requests at once
SHOWN: Final = "/miyabi/"  # pages and figures for a person


class Refused(Exception):
    """A request that is turned away, with its answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def judge(guard: Guard, request: web.BaseRequest) -> Denied | None:
    """Why a request is turned away before its body is read; None when it may pass."""
    headers: dict[str, Sequence[str]] = {}
    for name in request.headers:
        headers.setdefault(name.lower(), request.headers.getall(name))
    path = request.raw_path.partition("?")[0]
    if request.method in ("GET", "HEAD") and path.startswith(SHOWN):
        headers = dict(_with_basic(headers))
    denied = guard.judge(request.raw_path, headers)
    if denied is not None:
        return denied
    if path not in OPEN and request.headers.get("upgrade"):
        return Denied(400, "nothing is upgraded here")
    return None


def _with_basic(headers: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    """A browser asks its user for a password: the key. Only for what is looked at, never for what is sent."""
    given = []
    for value in headers.get("authorization", ()):
        kind, _, encoded = value.partition(" ")
        if kind.lower() != "basic":
            given.append(value)
            continue
        try:
            given.append(f"Bearer {base64.b64decode(encoded, validate=True).decode().partition(':')[2]}")
        except (binascii.Error, ValueError):
            continue
    return {**headers, "authorization": given}


async def read_body(request: web.BaseRequest, most: int) -> bytes:
    """The body. Raises Refused when it is none that is read here, too long, or too slow."""
    if request.content_type != "application/json":
        raise Refused(415, "the body must be JSON: send `Content-Type: application/json`")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refused(415, "a compressed body is not read")
    if (request.content_length or 0) > most:
        raise Refused(413, f"a body of more than {most:,} bytes")
    if request.headers.get("expect", "").lower() == "100-continue" and request.transport is not None:
        request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_S):
            while data := await request.content.readany():
                size += len(data)
                if size > most:
                    raise Refused(413, f"a body of more than {most:,} bytes")
                parts.append(data)
    except TimeoutError:
        raise Refused(408, f"the body did not come within {BODY_S:g} s") from None
    except web.RequestPayloadError:
        raise Refused(400, "the body broke off") from None
    return b"".join(parts)


# What a request is told that was turned away before anything was decided.
UNDECIDED: Final = {
    "x-miyabi-route": "none",
    "x-miyabi-verdict": "none",
    "x-miyabi-rule": "door",
    "x-miyabi-target": "none",
    "x-miyabi-attempts": "none",
    "x-miyabi-audit-id": "none",
}


def refusal(path: str, status: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    """An error in the dialect of the path."""
    body = dialects.error_body(path, status, message)
    told = {**UNDECIDED, **(headers or {})}
    return web.Response(status=status, body=body, content_type="application/json", headers=told)
