"""The embedded server's routes: the OpenAI dialect over HTTP, one key before all of them but /health."""

from __future__ import annotations

import asyncio
import hmac
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from miyabi_llm.embedded import asked, replies
from miyabi_llm.embedded.asked import Refused
from miyabi_llm.embedded.engine import Done, Engine
from miyabi_llm.embedded.line import Line
from miyabi_llm.embedded.replies import Reply

BODY = 16 << 20  # bytes of a request


@dataclass(slots=True)
class State:
    """What the routes know: the model's name, the key, and the engine once it is loaded."""

    model: str
    key: str
    version: str
    line: Line
    engine: Engine | None = None
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def loaded(self) -> Engine:
        """The engine. Raises Refused while it loads."""
        if self.engine is None:
            raise Refused(503, "unavailable_error", "Loading model")
        return self.engine


class Routes:
    """The handlers, each a method."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def health(self, request: Request) -> Response:
        """Whether the model is loaded; nothing else, so it needs no key."""
        self._state.loaded()
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request) -> Response:
        """The one model."""
        engine = self._state.loaded()
        meta = {"n_ctx": engine.ctx, "n_ctx_train": engine.ctx_train, "chat_template": engine.chats}
        row = {"id": self._state.model, "object": "model", "created": 0, "owned_by": "miyabi-llm", "meta": meta}
        return JSONResponse({"object": "list", "data": [row]})

    async def props(self, request: Request) -> Response:
        """What llama-server's /props tells, as far as it applies."""
        engine = self._state.loaded()
        settings = {"n_ctx": engine.ctx}
        told = {"default_generation_settings": settings, "total_slots": 1, "model_alias": self._state.model}
        return JSONResponse(told | {"build_info": f"llama-cpp-python {self._state.version}"})

    async def slots(self, request: Request) -> Response:
        """Whether a generation is in progress, and a number that changes whenever it moves on."""
        engine, line = self._state.loaded(), self._state.line
        row = {"id": 0, "n_ctx": engine.ctx, "is_processing": line.busy, "moved": engine.moved}
        return JSONResponse([row | {"n_decoded": engine.decoded, "waiting": line.waiting}])

    async def tokenize(self, request: Request) -> Response:
        """llama-server's /tokenize: the token ids of a text."""
        engine = self._state.loaded()
        content, special = asked.text_of(await _body(request))
        tokens = await run_in_threadpool(engine.tokenize, content, add_special=special)
        return JSONResponse({"tokens": tokens})

    async def count(self, request: Request) -> Response:
        """How many tokens the prompt of a chat has."""
        engine = self._state.loaded()
        ask = asked.read(await _body(request), self._state.model, chat=True)
        return JSONResponse({"input_tokens": len(await run_in_threadpool(engine.tokens, ask))})

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, chat=False)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        engine = self._state.loaded()
        ask = asked.read(await _body(request), self._state.model, chat=chat)
        prompt = await run_in_threadpool(engine.prepare, ask)
        self._state.line.check()
        cancel = threading.Event()
        items = self._state.line.generate(engine, prompt, cancel)
        reply = Reply(self._state.model, chat)
        if ask.stream:
            watched = self._while_connected(request, items, cancel)
            headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
            events = _events(watched, reply, with_usage=ask.usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        text, done = "", None
        async for item in self._while_connected(request, items, cancel):
            text, done = (text, item) if isinstance(item, Done) else (text + item, done)
        if done is None:
            return Response(status_code=499)  # nobody is there to read it
        return JSONResponse(reply.whole(text, done))

    async def _while_connected(
        self, request: Request, items: AsyncIterator[str | Done], cancel: threading.Event
    ) -> AsyncIterator[str | Done]:
        """`items`, ended early when the client goes, be it while it waits in line or in the middle of an answer."""
        gone = self._task(_gone(request))
        try:
            while True:
                following = self._task(_next(items))
                await asyncio.wait((gone, following), return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    cancel.set()
                    following.cancel()
                    return
                item = following.result()
                if item is None:
                    return
                yield item
        finally:
            cancel.set()
            gone.cancel()

    def _task(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.get_running_loop().create_task(work)
        self._state.tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._state.tasks.discard)
        return task


async def _next(items: AsyncIterator[str | Done]) -> str | Done | None:
    return await anext(items, None)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _events(items: AsyncIterator[str | Done], reply: Reply, *, with_usage: bool) -> AsyncIterator[bytes]:
    """The events of a stream. A failure is an event of its own, and no [DONE] follows it."""
    first = reply.first()
    try:
        async for item in items:
            if first is not None:
                yield replies.event(first)
                first = None
            if isinstance(item, Done):
                for body in reply.last(item, with_usage=with_usage):
                    yield replies.event(body)
                yield replies.END
            else:
                yield replies.event(reply.piece(item))
    except Exception as e:  # the status is sent: the stream is the only way left to tell it, whatever it is
        yield replies.event(replies.failure(e).body())


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > BODY:
            raise Refused(413, "invalid_request_error", f"a request may have {BODY} bytes at most")
    return bytes(body)


class Guard:
    """Before every route: the key, compared in constant time. An answer without it tells nothing."""

    def __init__(self, app: Any, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One connection's request."""
        if scope["type"] == "http" and self._key and scope["path"] != "/health":
            given = dict(scope["headers"]).get(b"authorization", b"").strip()
            kind, _, word = given.partition(b" ")
            if kind.lower() != b"bearer" or not hmac.compare_digest(word.strip(), self._key):
                refused = Refused(401, "authentication_error", "a key is needed: Authorization: Bearer KEY")
                await _refusal(refused)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _refusal(e: Refused) -> Response:
    retry = e.more.get("retry_s", 1 if e.kind == "unavailable_error" else None)
    headers = {"retry-after": str(retry)} if retry else {}
    if e.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(e.body(), status_code=e.status, headers=headers)


async def _refused(request: Request, e: Exception) -> Response:
    assert isinstance(e, Refused)
    return _refusal(e)


async def _http(request: Request, e: Exception) -> Response:
    assert isinstance(e, HTTPException)
    kind = "not_found_error" if e.status_code == 404 else "invalid_request_error"
    return _refusal(Refused(e.status_code, kind, f"{request.method} {request.url.path}: {e.detail}"))


async def _broken(request: Request, e: Exception) -> Response:
    return _refusal(replies.failure(e))


async def _left(request: Request, e: Exception) -> Response:
    return Response(status_code=499)


def app(state: State) -> Any:
    """The ASGI application."""
    routes = Routes(state)
    table = [
        Route("/health", routes.health),
        Route("/v1/models", routes.models),
        Route("/props", routes.props),
        Route("/slots", routes.slots),
        Route("/tokenize", routes.tokenize, methods=["POST"]),
        Route("/v1/chat/completions/input_tokens", routes.count, methods=["POST"]),
        Route("/v1/completions", routes.completions, methods=["POST"]),
        Route("/v1/chat/completions", routes.chat, methods=["POST"]),
    ]
    handlers: Any = {Refused: _refused, HTTPException: _http, ClientDisconnect: _left, Exception: _broken}
    return Guard(Starlette(routes=table, exception_handlers=handlers), state.key)
