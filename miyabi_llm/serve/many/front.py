"""The one address of many models: reads which model a request names, has it loaded, passes the bytes through."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

from aiohttp import web

from miyabi_llm.errors import MiyabiError, ModelMissing
from miyabi_llm.serve.many.guard import OPEN, Guard
from miyabi_llm.serve.many.passing import Upstream, upstream
from miyabi_llm.serve.many.pool import Model, NoRoom, Pool
from miyabi_llm.types import plain

BODY = 64 << 20  # bytes of a request: pictures are in it
LOAD_S = 3600.0  # for a model to load
PROBE = "x-miyabi-probe"  # our own supervisor asks whether tokens come: it must not change what is loaded

POSTS = (
    *("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions", "/completion"),
    *("/v1/responses", "/responses", "/v1/messages", "/v1/messages/count_tokens"),
    *("/v1/chat/completions/input_tokens", "/v1/responses/input_tokens"),
    *("/v1/embeddings", "/embeddings", "/embedding", "/v1/rerank", "/rerank", "/v1/reranking", "/reranking"),
    *("/infill", "/tokenize", "/detokenize", "/apply-template"),
)
GETS = ("/props", "/metrics", "/lora-adapters")  # `?model=` says of which; the one used last when left out

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Front:
    """The routes. `ready` is set once the first model is loaded; until then the health check answers 503."""

    def __init__(self, pool: Pool, guard: Guard) -> None:
        self._pool, self._guard = pool, guard
        self._upstream: Upstream | None = None
        self.ready = False

    def app(self) -> web.Application:
        """The application to be served; one for each front."""
        app = web.Application(client_max_size=BODY, middlewares=[self._guarded])
        for path in OPEN:
            app.router.add_get(path, self._health)
        for path in ("/models", "/v1/models"):
            app.router.add_get(path, self._models)
        app.router.add_get("/slots", self._slots)
        app.router.add_post("/models/load", self._load)
        app.router.add_post("/models/unload", self._unload)
        for path in POSTS:
            app.router.add_post(path, self._post)
        for path in GETS:
            app.router.add_get(path, self._get)
        app.cleanup_ctx.append(self._connections)
        return app

    async def _connections(self, app: web.Application) -> Any:
        async with upstream() as self._upstream:
            yield

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        headers = {name.lower(): request.headers.getall(name) for name in request.headers}
        if denied := self._guard.judge(request.raw_path, headers):
            return _error(request, denied.status, denied.message)
        if request.method == "POST" and request.content_type != "application/json":
            return _error(request, 415, "the body must be JSON: send `Content-Type: application/json`")
        if request.method == "POST" and request.headers.get("content-encoding", "identity") != "identity":
            return _error(request, 415, "a compressed body is not read")
        try:
            return await handler(request)
        except web.HTTPException as e:
            return _error(request, e.status, e.reason)
        except NoRoom as e:
            headers_out = {"retry-after": str(e.retry_s)} if e.retry_s else {}
            return _error(request, 503, f"{e.message}. {e.hint}", headers_out)
        except ModelMissing as e:
            return _error(request, 404, f"{e.message}. {e.hint}")
        except TimeoutError:
            return _error(request, 503, "the model is still loading", {"retry-after": "5"})
        except MiyabiError as e:
            return _error(request, 503, e.message)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response(
            {"status": "ok"} if self.ready else {"status": "loading"}, status=200 * self.ready or 503
        )

    async def _models(self, request: web.Request) -> web.Response:
        await self._pool.weigh()
        rows = []
        for row in self._pool.rows():
            status: dict[str, Any] = {"value": "unloaded" if row.state == "failed" else row.state}
            if row.state == "failed":
                status["failed"] = True
            body = {"object": "model", "created": 0, "owned_by": row.backend, "status": status}
            rows.append(body | plain(row))
        return web.json_response({"object": "list", "budget": self._pool.budget, "data": rows})

    async def _slots(self, request: web.Request) -> web.StreamResponse:
        """Of one model its own slots; without a model, whether requests are in progress, and whether they move."""
        if "model" in request.query:
            return await self._get(request)
        rows = []
        for model in self._pool.models.values():
            row: dict[str, Any] = {"model": model.order.alias, "is_processing": model.busy > 0}
            if model.busy and model.state == "loaded" and model.at is not None and self._upstream is not None:
                row["passed"] = self._upstream.passed
                row["slots"] = await self._upstream.look(model.at.endpoint, "/slots")
            rows.append(row)
        return web.json_response(rows)

    async def _load(self, request: web.Request) -> web.Response:
        model = self._pool.find(_name(await _body(request)))
        done = await self._pool.ensure(model, deadline_s=LOAD_S)
        await self._pool.weigh(model)
        return web.json_response({"success": True} | asdict(done) | {"memory": model.memory})

    async def _unload(self, request: web.Request) -> web.Response:
        await self._pool.unload(self._pool.find(_name(await _body(request))), "as asked")
        return web.json_response({"success": True})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        body = await _body(request)
        if PROBE in request.headers:
            return await self._probe(request, body)
        return await self._pass(request, self._pool.find(_name(body)), body)

    async def _get(self, request: web.Request) -> web.StreamResponse:
        name = request.query.get("model")
        loaded = [m for m in self._pool.models.values() if m.state == "loaded"]
        if name is None:
            model = max(loaded, key=lambda m: m.used, default=None)
        else:
            model = next((m for m in loaded if m is self._pool.find(name)), None)
        if model is None:
            return _error(request, 400, "the model is not loaded" if name else "no model is loaded: give ?model=")
        return await self._pass(request, model, None)

    async def _probe(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        loaded = [m for m in self._pool.models.values() if m.state == "loaded"]
        wanted = self._pool.find(_name(body))
        model = wanted if wanted in loaded else max(loaded, key=lambda m: m.used, default=None)
        if model is None:
            return _error(request, 409, "no model is loaded, so none is asked")
        used, seen = model.used, model.seen
        try:
            return await self._pass(request, model, body)
        finally:
            model.used, model.seen = used, seen  # nobody used it

    async def _pass(self, request: web.Request, model: Model, body: dict[str, Any] | None) -> web.StreamResponse:
        assert self._upstream is not None
        for again in (True, False):
            async with self._pool.use(model, deadline_s=LOAD_S) as loaded:
                sent = await self._upstream.send(request, loaded.endpoint, body)
            if sent is not None:
                return sent
            await self._pool.look(model)  # it died, or is being restarted: nothing has gone to the client yet
            if again:
                await asyncio.sleep(0.2)
        return _error(request, 503, f"{model.order.alias} does not answer", {"retry-after": "2"})


async def _body(request: web.Request) -> dict[str, Any]:
    """The request's JSON object. Raises HTTPBadRequest."""
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise web.HTTPBadRequest(reason="the body is no JSON object")
    return body


def _name(body: dict[str, Any]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise web.HTTPBadRequest(reason="the body names no `model`")
    return name


_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def _error(request: web.Request, status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    """An error in the dialect of the path."""
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "overloaded_error")
    error: dict[str, Any] = {"type": kind, "message": message}
    if request.path.startswith("/v1/messages"):
        return web.json_response({"type": "error", "error": error}, status=status, headers=headers)
    return web.json_response({"error": error | {"code": status}}, status=status, headers=headers)
