"""What the gateway did, without a word of what was asked: counts, decisions, and how targets stand."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from aiohttp import web

from miyabi_llm.gateway.asked import Asked
from miyabi_llm.gateway.passing import Course

KEPT: Final = 200  # decisions
PING_S: Final = 15.0
FOLLOWERS: Final = 16


class Status:
    """Counts and remembers. `world` gives the rest of the page: targets, health, money."""

    def __init__(self, world: Callable[[], dict[str, Any]]) -> None:
        self._world = world
        self._begin = time.time()
        self.busy = self.total = 0
        self._routes: dict[str, int] = {}
        self._tokens: dict[str, list[float]] = {}  # target -> input tokens, output tokens, seconds
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._followers: set[asyncio.Queue[dict[str, Any]]] = set()

    @contextmanager
    def work(self) -> Iterator[None]:
        """A request is in progress for as long as the block runs."""
        self.busy += 1
        self.total += 1
        try:
            yield
        finally:
            self.busy -= 1

    def done(self, asked: Asked, course: Course) -> None:
        """A request ended, one way or the other."""
        row = decision(asked, course)
        self._routes[row["route"]] = self._routes.get(row["route"], 0) + 1
        if course.target is not None:
            counts = self._tokens.setdefault(course.target.name, [0, 0, 0.0])
            counts[0] += course.usage.input
            counts[1] += course.usage.output
            counts[2] += course.seconds
        self._kept.append(row)
        for queue in self._followers:
            if queue.qsize() < KEPT:  # who does not read misses some
                queue.put_nowait(row)

    def snapshot(self) -> dict[str, Any]:
        """All of it."""
        tokens = {
            name: {"input": int(i), "output": int(o), "per_second": round(o / s, 2) if s else 0.0}
            for name, (i, o, s) in self._tokens.items()
        }
        return {
            "version": 1,
            "started": self._begin,
            "uptime_s": round(time.time() - self._begin, 1),
            "busy": self.busy,
            "requests": self.total,
            "routes": self._routes,
            "tokens": tokens,
            **self._world(),
            "decisions": list(self._kept),
        }

    async def show(self, request: web.BaseRequest) -> web.Response:
        """GET /miyabi/status."""
        return web.json_response(self.snapshot(), headers={"cache-control": "no-store"})

    async def follow(self, request: web.BaseRequest) -> web.StreamResponse:
        """GET /miyabi/events: each decision as it is made, as server-sent events (`event: decision`)."""
        response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-store"})
        if len(self._followers) >= FOLLOWERS:
            return web.json_response({"error": {"message": "too many pages are open"}}, status=503)
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._followers.add(queue)
        try:
            await response.prepare(request)
            await response.write(b": hello\n\n")
            while True:
                try:
                    async with asyncio.timeout(PING_S):
                        row = await queue.get()
                    await response.write(b"event: decision\ndata: " + json.dumps(row).encode() + b"\n\n")
                except TimeoutError:
                    await response.write(b": ping\n\n")
        finally:
            self._followers.discard(queue)


def decision(asked: Asked, course: Course) -> dict[str, Any]:
    """One request as the page and the log may show it: nothing of its content. Pure but for the clock."""
    found = course.decision
    return {
        "at": round(time.time(), 3),
        "path": asked.path,
        "stream": asked.stream,
        "route": "none" if course.target is None else course.target.kind,
        "target": "none" if course.target is None else course.target.name,
        "verdict": found.verdict.name.lower(),
        "rule": found.rule,
        "reason": found.reason,
        "detected": list(found.detected),
        "attempts": [f"{name}={what}" for name, what in course.tried],
        "status": course.status,
        "broken": course.broken.kind if course.broken is not None else "",
        "adapted": list(course.changes),
        "audit": course.record,
        "bytes": len(asked.body.data),
        "input_tokens": course.usage.input,
        "output_tokens": course.usage.output,
        "seconds": round(course.seconds, 4),
    }
