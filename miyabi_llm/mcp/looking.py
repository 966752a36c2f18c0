"""The tools that look and switch: what can be asked, how it stands, and another model made ready."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import anyio
from mcp.server.mcpserver import Context

from miyabi_llm.errors import MiyabiError, ServerFailed
from miyabi_llm.mcp import choice, local
from miyabi_llm.mcp.pulse import pulse
from miyabi_llm.mcp.servers import Note, Servers, Wish
from miyabi_llm.mcp.values import (
    Backend,
    BackendHealth,
    Found,
    Health,
    Model,
    Models,
    Project,
    Prompt,
    Route,
    Seconds,
    ServerHealth,
    Switched,
    Task,
    Wanted,
)
from miyabi_llm.types import Endpoint

if TYPE_CHECKING:
    from miyabi_llm.backends.ollama_api import OllamaApi
    from miyabi_llm.config import Settings
    from miyabi_llm.serve import ServerInfo

PRIVACY = "prompts go to servers on this machine's loopback only; models that Ollama would run elsewhere are refused"
MIB = 1 << 20


class Looking:
    """The tools; each docstring is what the host's model reads."""

    def __init__(self, servers: Servers) -> None:
        self._servers = servers

    async def list_models(self, ctx: Context[Any, Any]) -> Models:
        """List the models of this machine that can be asked: stored, in Ollama, and behind running servers."""
        async with pulse(ctx, lambda: "looking"):
            return await anyio.to_thread.run_sync(self._models, abandon_on_cancel=True)

    async def health_check(self, ctx: Context[Any, Any]) -> Health:
        """Say which kinds of server are ready on this machine, which run and answer, and what to type when not."""
        async with pulse(ctx, lambda: "looking"):
            return await anyio.to_thread.run_sync(self._health, abandon_on_cancel=True)

    async def model_switch(
        self,
        model: Wanted,
        ctx: Context[Any, Any],
        backend: Backend | None = None,
        unload_others: bool = False,
        max_seconds: Seconds = 50.0,
    ) -> Switched:
        """Have a model ready now, so that the next call does not wait for it; ends what this server started before.

        With `unload_others`, other models that Ollama holds in memory are unloaded too. Servers that a person started
        are never ended.
        """
        note, begun = Note(), time.monotonic()
        with anyio.move_on_after(max_seconds):
            async with pulse(ctx, lambda: note.text):
                wish = Wish(model, backend)
                done = await anyio.to_thread.run_sync(self._switch, wish, note, unload_others, abandon_on_cancel=True)
                return done.model_copy(update={"seconds": round(time.monotonic() - begun, 3)})
        raise ServerFailed(
            f"{model} is not ready after {max_seconds:g} s: {note.text}",
            hint="It goes on loading: call again in a while, with a larger max_seconds.",
        )

    async def route_explain(
        self, prompt: Prompt, ctx: Context[Any, Any], task: Task | None = None, project: Project = ""
    ) -> Route:
        """Say where the gateway's policy would send a prompt, what private it found in it, and why. Sends nothing."""
        headers = {name: value for name, value in (("x-miyabi-hint", task), ("x-miyabi-project", project)) if value}
        async with pulse(ctx, lambda: "looking"):
            settings = self._servers.settings
            return await anyio.to_thread.run_sync(_route, settings, prompt, headers, abandon_on_cancel=True)

    def _models(self) -> Models:
        from miyabi_llm import backends
        from miyabi_llm.store import Store

        settings = self._servers.settings
        able = {name: b.accepts for name, b in backends.table().items() if name in ("llama-cpp", "vllm", "ollama")}
        rows = [
            Model(
                name=str(a.ref),
                where="store",
                format=a.format,
                size_mib=a.size // MIB,
                state="stored",
                backends=[name for name, formats in able.items() if a.format in formats],
            )
            for a in Store(settings.store).list()
        ]
        for server in self._servers.running():
            rows += _served(server)
        there, left_out = self._in_ollama()
        return Models(default=settings.default_model, models=rows + there, left_out=left_out)

    def _in_ollama(self) -> tuple[list[Model], list[str]]:
        """What Ollama runs itself, and what it would hand on; empty when none runs."""
        from miyabi_llm import backends
        from miyabi_llm.backends.ollama_api import OllamaApi

        running = backends.get("ollama").detect(self._servers.settings).running
        if running is None:
            return [], []
        try:
            local.refuse_remote(running.base_url)
            with OllamaApi(running) as api:
                loaded = {state.name for state in api.running()}
                rows = api.tags()
        except MiyabiError as e:
            return [], [f"all of Ollama's: {e.message}"]
        here = [
            Model(
                name=row.name,
                where="ollama",
                size_mib=row.size // MIB,
                state="loaded" if row.name in loaded else "unloaded",
                backends=["ollama"],
            )
            for row in rows
            if not row.remote_host
        ]
        return here, [f"{row.name}: runs at {row.remote_host}" for row in rows if row.remote_host]

    def _health(self) -> Health:
        from miyabi_llm import backends, serve

        settings = self._servers.settings
        kinds = [
            BackendHealth(
                name=s.name,
                ready=s.ok,
                running=s.running.base_url if s.running else "",
                version=s.version,
                reason=s.reason,
                fix="" if s.ok else f"miyabi-llm backend install {s.name}",
            )
            for s in backends.status(settings)
        ]
        ours = {endpoint.base_url for endpoint in self._servers.started()}
        keys = {endpoint.base_url: endpoint for endpoint in self._servers.started()}
        servers = [_server(s, keys.get(s.endpoint.base_url, s.endpoint), ours) for s in serve.ps(settings)]
        able = any(k.ready for k in kinds) or any(s.answers for s in servers)
        return Health(ok=able, backends=kinds, servers=servers, privacy=PRIVACY)

    def _switch(self, wish: Wish, note: Note, unload_others: bool) -> Switched:
        settings = self._servers.settings
        if wish.backend in (None, "llama-cpp") and (done := _in_front(settings, wish.model)) is not None:
            return done
        before = {endpoint.base_url for endpoint in self._servers.started()}
        before |= {server.endpoint.base_url for server in self._servers.running()}
        gone = self._servers.end(but=self._started(wish), backend=wish.backend)
        endpoint = self._servers.endpoint(self._placed(wish), note)
        was_ready = endpoint.base_url in before
        if endpoint.backend == "ollama":
            was_ready, unloaded = _load(endpoint, unload_others)
            gone += unloaded
        gone += self._servers.end(but=endpoint, backend=wish.backend)
        return Switched(
            model=endpoint.model,
            backend=endpoint.backend or "other",
            url=endpoint.base_url,
            seconds=0,
            unloaded=gone,
            was_ready=was_ready,
        )

    def _placed(self, wish: Wish) -> Wish:
        """A model that only Ollama has is meant there."""
        if wish.backend is None and any(m.name == wish.model and m.where == "ollama" for m in self._in_ollama()[0]):
            return replace(wish, backend="ollama")
        return wish

    def _started(self, wish: Wish) -> Endpoint | None:
        return next((e for e in self._servers.started() if e.model == wish.model), None)


def _route(settings: Settings, prompt: str, headers: dict[str, str]) -> Route:
    told = choice.explained(settings, prompt, headers)
    decision = told.decision
    clouds = {cost.target for cost in told.costs}
    return Route(
        target=decision.target or "",
        leaves=decision.target in clouds,
        verdict=cast(Any, decision.verdict.name.lower()),
        rule=decision.rule,
        reason=decision.reason,
        fallbacks=list(decision.fallbacks),
        found=[Found(kind=f.kind, masked=f.masked, where=f.where) for f in told.findings[:50]],
        complete=told.complete,
        estimated_tokens=told.est_tokens,
        changes=[f"{c.what}: {c.target or 'refused'}" for c in told.changes],
        policy=told.policy,
    )


def _served(server: ServerInfo) -> list[Model]:
    """What a running server offers: its model, or those of a front of many."""
    if not server.models:
        names: list[tuple[str, Any]] = [(server.ref, "loaded")]
    else:
        names = [(row.id, row.state) for row in server.models]
    kind = "llama-cpp" if server.models else server.backend
    states = ("loaded", "unloaded", "loading", "sleeping", "failed")
    return [
        Model(name=name, where="running", state=state if state in states else "unloaded", backends=[kind])
        for name, state in names
    ]


def _server(server: ServerInfo, endpoint: Endpoint, ours: set[str]) -> ServerHealth:
    from miyabi_llm.backends import near

    key = endpoint.key.reveal() if endpoint.key else None
    path = "/" if server.backend == "ollama" else "/health"
    status = near.answers(server.endpoint.base_url, path, token=key)[0] if server.state == "ready" else 0
    return ServerHealth(
        name=server.name,
        model=server.ref,
        backend=server.backend,
        state=server.state,
        url=server.endpoint.base_url,
        answers=status == 200,
        context=server.ctx,
        memory_mib=server.memory // MIB,
        ours=server.endpoint.base_url in ours,
        error=server.error or "",
    )


def _in_front(settings: Any, model: str) -> Switched | None:
    """The model loaded in a running front of many; None when none has it."""
    from miyabi_llm.errors import Missing
    from miyabi_llm.serve.many import look

    try:
        done = look.switch(settings, [model])
    except Missing:
        return None
    return Switched(
        model=done.model,
        backend="llama-cpp",
        url=done.server,
        seconds=0,
        unloaded=list(done.evicted),
        was_ready=not done.seconds,
    )


def _load(endpoint: Endpoint, unload_others: bool) -> tuple[bool, list[str]]:
    """Have Ollama load its model; whether it was loaded, and what was unloaded for it."""
    from miyabi_llm.backends.ollama_control import OllamaControl
    from miyabi_llm.backends.ollama_values import same

    with OllamaControl(endpoint) as api:
        others = _others(api, endpoint.model) if unload_others else []
        was = any(same(state.name, endpoint.model) for state in api.running())
        for name in others:
            api.unload(name)
        api.load(endpoint.model)
    return was, others


def _others(api: OllamaApi, model: str) -> list[str]:
    from miyabi_llm.backends.ollama_values import same

    return [state.name for state in api.running() if not same(state.name, model)]
