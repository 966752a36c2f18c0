"""From the head of an answer to the moment when it may be passed on, or is known to be none."""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final

from miyabi_llm.gateway import dialects
from miyabi_llm.gateway.asked import Asked, Kind, Missed, Opened, Readable
from miyabi_llm.gateway.headers import Pairs, down
from miyabi_llm.gateway.http1 import Failed
from miyabi_llm.gateway.streams import Broken, judge_whole, watch
from miyabi_llm.route import breaker
from miyabi_llm.route.values import Target

WHOLE: Final = 64 << 20  # bytes of an answer that does not stream
ERROR: Final = 1 << 20  # bytes of an error
FIRST: Final = 2 << 10  # bytes that are looked at before the first are passed on
HOLD_S: Final = 2.0  # seconds for which a stream without content is held back, while another target could stand in
_STREAMS: Final = ("text/event-stream", "application/x-ndjson")
# What a cloud says when the month's money is spent (HTTP 429 without retry-after).
SPENT: Final = ("enforced_spend_limit_reached", "spend_limit", "usage_limit")


async def open_answer(target: Target, asked: Asked, answer: Readable, *, hold: bool) -> Opened | Missed:
    """Read as far as it takes to tell an answer from a failure. With `hold`, a stream waits for its first content.

    The answer is closed when it is not `rest` of what is returned.
    """
    kept = False
    try:
        if answer.status >= 300:
            return await _refused(target, asked, answer)
        if answer.header("content-encoding").lower() not in ("", "identity"):
            return missed(target, asked, "garbled", "the answer is compressed, which nobody asked for")
        if answer.header("content-type").partition(";")[0].strip().lower() in _STREAMS:
            opened = await _stream(target, asked, answer, hold=hold)
            kept = isinstance(opened, Opened)
            return opened
        data = await answer.read(WHOLE)
        broken, usage = judge_whole(asked.path, data)
        if broken is not None:
            return _broken(target, asked, broken)
        return Opened(target, answer.status, answer.reason, down(answer.headers), data, usage)
    except Failed as e:
        return failed(target, asked, e)
    finally:
        if not kept:
            answer.close()


async def _stream(target: Target, asked: Asked, answer: Readable, *, hold: bool) -> Opened | Missed:
    watcher, good, left, broken = watch(asked.path), b"", b"", None
    until = asyncio.get_running_loop().time() + HOLD_S
    while not (watcher.content or (good and not hold)):
        try:
            async with asyncio.timeout_at(until if good else None):
                data = left or await answer.chunk()
        except TimeoutError:
            break  # it has begun, and is slow: the client need not wait in the dark
        data, left = data[:FIRST], data[FIRST:]
        if not data:
            fed = watcher.end()
            good += fed.good
            if fed.broken is not None:
                return _broken(target, asked, fed.broken)
            break
        fed = watcher.feed(data)
        good += fed.good
        if fed.broken is not None:
            if not watcher.content:
                return _broken(target, asked, fed.broken)
            broken = fed.broken  # content and an error in one piece: what is good is passed on, then the error
    opened = Opened(target, answer.status, answer.reason, down(answer.headers), good, watcher.usage)
    opened.rest, opened.watch, opened.broken, opened.left = answer, watcher, broken, left
    return opened


async def _refused(target: Target, asked: Asked, answer: Readable) -> Missed:
    """An answer whose status says that it is none."""
    if answer.status < 400:
        return missed(target, asked, "garbled", f"it answers with a redirect ({answer.status}), which is not followed")
    try:
        body = await answer.read(ERROR)
    except Failed:
        body = b""
    retry_after = breaker.retry_after({k.lower(): v for k, v in answer.headers})
    kind = classify(answer.status, body, retry_after)
    if not body:
        body = dialects.error_body(asked.path, answer.status, f"{target.name} answers with {answer.status}")
        headers: Pairs = (("content-type", "application/json"),)
    else:
        headers = down(answer.headers)
    return Missed(target, kind, f"status {answer.status}", answer.status, body, headers, retry_after)


def classify(status: int, body: bytes, retry_after: float | None) -> Kind:
    """What a status of 400 or more means for the next try. Pure."""
    if status == 402 or (status in (400, 429) and retry_after is None and _spent(body)):
        return "spend"
    if status == 429:
        return "rate"
    if status in (408, 425, 504):
        return "timeout"
    if status in (503, 529):
        return "overloaded"
    return "server" if status >= 500 else "client"


def _spent(body: bytes) -> bool:
    try:
        error = json.loads(body).get("error")
    except (ValueError, AttributeError, RecursionError):
        return False
    details: Any = error.get("details") if isinstance(error, dict) else None
    code = details.get("error_code") if isinstance(details, dict) else None
    return isinstance(code, str) and any(word in code for word in SPENT)


def _broken(target: Target, asked: Asked, broken: Broken) -> Missed:
    """An error that came under a good status, before any content."""
    status = dialects.status_of(broken.kind)
    body = dialects.error_body(asked.path, status, broken.message, broken.kind)
    kind: Kind = "cut" if status == 502 else classify(status, body, None)
    return Missed(target, kind, broken.message, status, body, (("content-type", "application/json"),))


_KIND: Final[dict[str, Kind]] = {"name": "unreachable", "connect": "unreachable", "tls": "unreachable"}


def failed(target: Target, asked: Asked, e: Failed) -> Missed:
    """A try that failed below HTTP."""
    kind: Kind = _KIND.get(e.why, e.why)  # type: ignore[arg-type]  # the others have the same names
    return missed(target, asked, kind, e.message)


def missed(target: Target, asked: Asked, kind: Kind, why: str) -> Missed:
    """A try that gave nothing which the client could be shown."""
    status = 504 if kind == "timeout" else 503 if kind in ("unreachable", "elsewhere", "permit") else 502
    body = dialects.error_body(asked.path, status, f"{target.name}: {why}")
    return Missed(target, kind, why, status, body, (("content-type", "application/json"),))
