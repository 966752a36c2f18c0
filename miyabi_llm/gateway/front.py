"""The gateway's routes."""

from __future__ import annotations

import asyncio
import json
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from miyabi_llm.errors import BadUsage
from miyabi_llm.gateway import body as bodies
from miyabi_llm.gateway import dialects, door
from miyabi_llm.gateway.asked import Asked
from miyabi_llm.gateway.delivery import Slow
from miyabi_llm.gateway.http1 import Failed
from miyabi_llm.gateway.passing import Course, Judge, Passing
from miyabi_llm.gateway.roads import Roads
from miyabi_llm.gateway.status import Status
from miyabi_llm.gateway.values import MODEL
from miyabi_llm.route.values import Policy
from miyabi_llm.serve.many.guard import OPEN, Guard

PROBE: Final = "x-miyabi-probe"  # our own supervisor asks whether tokens come: nothing is sent to anybody for that
POSTS: Final = frozenset((*dialects.ANTHROPIC, *dialects.OPENAI, *dialects.OLLAMA))
GONE: Final = 499  # how it is written down that a client left before its answer was whole
Page = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Front:
    """Answers requests. `pages` are further things to look at under /miyabi/, by path."""

    def __init__(
        self, policy: Policy, guard: Guard, roads: Roads, judge: Judge, status: Status, pages: dict[str, Page]
    ) -> None:
        self._policy, self._guard, self._roads, self._judge = policy, guard, roads, judge
        self._passing = Passing(policy, roads, judge)
        self._status = status
        self._gets: dict[str, Page] = {
            "/v1/models": self._models,
            "/models": self._models,
            "/slots": self._slots,
            "/miyabi/status": status.show,
            "/miyabi/events": status.follow,
            **pages,
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Any request."""
        path = request.path
        denied = door.judge(self._guard, request)
        if denied is not None:
            headers = {"connection": "close"}
            if denied.status == 401 and path.startswith(door.SHOWN):
                headers["www-authenticate"] = 'Basic realm="miyabi"'
            return _closing(door.refusal(path, denied.status, denied.message, headers))
        try:
            return await self._route(request, path)
        except door.Refused as e:
            return _closing(door.refusal(path, e.status, e.message))
        except BadUsage as e:
            return door.refusal(path, 400, e.message)
        except (ConnectionError, Slow):
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError("the client is gone") from None
        except Exception as e:  # a bug: its place is told, never its words, which may hold a part of the request
            at = traceback.extract_tb(e.__traceback__)[-1]
            print(f"[gateway] {type(e).__name__} at {at.filename}:{at.lineno}", file=sys.stderr, flush=True)
            return _closing(door.refusal(path, 500, "a fault of the gateway; its log says where"))

    async def _route(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if request.method == "POST" and path in POSTS:
            if PROBE in request.headers:
                return door.refusal(path, 501, "a gateway makes no tokens itself")
            return await self._post(request, dialects.canonical(path))
        if request.method in ("GET", "HEAD"):
            if path in OPEN:
                return web.json_response({"status": "ok"})
            if path in self._gets:
                return await self._gets[path](request)
            if path.startswith("/v1/models/"):
                return self._model(path.removeprefix("/v1/models/"))
            if path in dialects.OLLAMA_LOOKS:
                return await self._look(path)
        known = path in POSTS or path in self._gets
        return _closing(door.refusal(path, 405 if known else 404, f"no {request.method} {path[:200]} here"))

    async def _post(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        if self._status.busy >= door.BUSY:
            return _closing(door.refusal(path, 503, "too many requests at once", {"retry-after": "1"}))
        begin = time.perf_counter()
        with self._status.work():
            data = await door.read_body(request, self._policy.limits.body_bytes)
            body = bodies.parse(data)
            asked = Asked(
                method="POST",
                path=path,
                query=request.query_string if "?" in request.raw_path else "",
                headers=tuple(request.headers.items()),
                body=body,
                stream=dialects.streams(path, body.plain()),
            )
            course = await self._judge.decide(asked)
            try:
                return await self._passing.answer(request, asked, course)
            except (asyncio.CancelledError, ConnectionError, Slow):
                if not course.done:
                    course.status = GONE
                raise
            finally:
                course.seconds = time.perf_counter() - begin
                self._judge.finish(asked, course)
                self._status.done(asked, course)

    async def _models(self, request: web.BaseRequest) -> web.Response:
        """The names that may be asked for: aliases of the policy, and the models of local servers."""
        names: dict[str, str] = {MODEL: "miyabi"}
        for target in self._policy.targets:
            for name in (*target.aliases, target.endpoint.model):
                if name and "*" not in name:
                    names.setdefault(name, target.name)
        for found in await asyncio.gather(*(self._served(t.name) for t in self._policy.targets if t.local)):
            for name, owner in found:
                names.setdefault(name, owner)
        if "anthropic-version" in request.headers:
            rows = [{"type": "model", "id": n, "display_name": n, "created_at": "1970-01-01T00:00:00Z"} for n in names]
            ends: dict[str, Any] = {"has_more": False, "first_id": rows[0]["id"], "last_id": rows[-1]["id"]}
            return web.json_response({"data": rows} | ends)
        data = [{"id": n, "object": "model", "created": 0, "owned_by": owner} for n, owner in names.items()]
        return web.json_response({"object": "list", "data": data})

    async def _served(self, name: str) -> list[tuple[str, str]]:
        target = self._policy.target(name)
        if target is None or target.endpoint.model:
            return []
        try:
            async with asyncio.timeout(2.0):
                status, _, data = await self._roads.look(target, "/v1/models")
            rows = json.loads(data).get("data", []) if status == 200 else []
            return [(str(row["id"]), name) for row in rows if isinstance(row, dict) and row.get("id")]
        except (Failed, TimeoutError, ValueError, AttributeError, RecursionError):
            return []

    def _model(self, name: str) -> web.Response:
        return web.json_response({"id": name, "object": "model", "created": 0, "owned_by": "miyabi", "type": "model"})

    async def _look(self, path: str) -> web.StreamResponse:
        """A question about an Ollama server, to the first Ollama target."""
        for target in self._policy.targets:
            if target.local and "ollama" in target.endpoint.dialects:
                try:
                    status, _, data = await self._roads.look(target, path)
                except Failed as e:
                    return door.refusal(path, 502, f"{target.name}: {e.message}")
                return web.Response(status=status, body=data, content_type="application/json")
        return door.refusal(path, 404, "no target speaks Ollama's dialect")

    async def _slots(self, request: web.BaseRequest) -> web.Response:
        """Whether requests are in progress, for our supervisor: it lets them end before it ends us."""
        return web.json_response([{"id": 0, "is_processing": self._status.busy > 0, "passed": self._status.total}])


def _closing(response: web.Response) -> web.Response:
    """A body that was not read must not be taken for the next request."""
    response.force_close()
    return response


__all__ = ["Course", "Front"]
