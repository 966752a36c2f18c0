"""The models behind one address: loaded when they are asked for, unloaded for others or when idle for too long."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from miyabi_llm.errors import MiyabiError, ModelMissing, ServerFailed
from miyabi_llm.serve.many.hosts import Host
from miyabi_llm.serve.many.preset import plain
from miyabi_llm.serve.many.room import Holder, Refusal, Wanted, plan_room
from miyabi_llm.serve.many.values import Loaded, ModelOrder, ModelRow, State, Switched

TICK_S = 1.0  # seconds between looks at idle and at dead models
WEIGH = 5  # looks between two at the memory of all, which cost more
_HOLDS = ("loading", "loaded", "unloading")


class NoRoom(ServerFailed):
    """The memory is held by models that cannot be unloaded now; `retry_s` when that may pass."""

    code = "no-room"

    def __init__(self, refusal: Refusal) -> None:
        hint = "Wait for an answer to end." if refusal.retry_s else "Unpin a model, or give more with --memory."
        super().__init__(refusal.message, hint=hint)
        self.retry_s = refusal.retry_s


@dataclass
class Model:
    """One model as it stands. `memory` is what it is counted with: the estimate, corrected by what was measured."""

    order: ModelOrder
    host: Host
    state: State = "unloaded"
    memory: int = 0
    learned: int = 0
    busy: int = 0
    used: float = 0.0
    seen: datetime | None = None
    at: Loaded | None = None
    error: str | None = None
    coming: asyncio.Task[Switched] | None = None

    @property
    def estimate(self) -> int:
        """Bytes it will take: what it took last time, else what was estimated."""
        return self.learned or self.order.memory


class Pool:
    """All models of an order on their hosts, within a budget of bytes. `say` is told what happens, in words."""

    def __init__(self, models: Mapping[str, tuple[ModelOrder, Host]], budget: int, say: Callable[[str], None]) -> None:
        self.models = {name: Model(order, host) for name, (order, host) in models.items()}
        self.budget, self._say = budget, say
        self._lock = asyncio.Lock()  # one model loads at a time: two would only slow each other down

    def find(self, name: str) -> Model:
        """The model a client calls `name`: its alias, its ref, or what its answers call it. Raises ModelMissing."""
        for own in (lambda m: m.alias, lambda m: m.ref, lambda m: plain(m.alias)):
            for model in self.models.values():
                if own(model.order) == name:
                    return model
        raise ModelMissing(f"no model {name!r} here", hint=f"There are {', '.join(self.models)}.")

    @asynccontextmanager
    async def use(self, model: Model, *, deadline_s: float) -> AsyncIterator[Loaded]:
        """Have the model loaded and keep it so while the block runs. Raises NoRoom, MiyabiError, TimeoutError."""
        model.busy += 1
        try:
            await self.ensure(model, deadline_s=deadline_s)
            model.used, model.seen = time.monotonic(), datetime.now(UTC)
            assert model.at is not None
            yield model.at
        finally:
            model.busy -= 1
            model.used, model.seen = time.monotonic(), datetime.now(UTC)

    async def ensure(self, model: Model, *, deadline_s: float) -> Switched:
        """Have the model loaded; who asks meanwhile shares the one load, which goes on when all who asked are gone."""
        if model.state == "loaded":
            return Switched(model.order.alias, (), 0.0, model.memory)
        if model.coming is None:
            model.coming = asyncio.create_task(self._bring(model))
            model.coming.add_done_callback(lambda task: _arrived(model, task))
        return await asyncio.wait_for(asyncio.shield(model.coming), deadline_s)

    async def unload(self, model: Model, why: str) -> None:
        """Unload a model that nobody uses. Raises ServerFailed while somebody does."""
        async with self._lock:
            if model.busy:
                raise ServerFailed(f"{model.order.alias} is answering", hint="Wait for it, or stop the server.")
            if model.state == "loaded":
                await self._drop(model, why)

    async def tend(self) -> None:
        """Unload what is idle for longer than it may be, and notice what died; for as long as it is awaited."""
        for tick in itertools.count(1):
            await asyncio.sleep(TICK_S)
            for model in {id(m.host): m for m in self.models.values()}.values():
                await self.look(model)
            if tick % WEIGH == 0:
                await self.weigh()
            now = time.monotonic()
            for model in self.models.values():
                ttl = model.order.ttl
                idle = model.state == "loaded" and not model.busy and not model.order.pin
                if idle and ttl and now - model.used > ttl and not self._lock.locked():
                    try:
                        await self.unload(model, f"idle for {ttl:g} s")
                    except MiyabiError as e:
                        self._say(f"{model.order.alias}: {e.message}")

    async def close(self) -> None:
        """End all hosts."""
        for model in self.models.values():
            if model.coming is not None:
                model.coming.cancel()
        for host in {id(m.host): m.host for m in self.models.values()}.values():
            await host.close()

    async def look(self, model: Model) -> None:
        """Notice now, not at the next tick, that the model's server died."""
        for name, why in (await model.host.lost()).items():
            self._lost(self.models[name], why)

    def rows(self) -> list[ModelRow]:
        """How every model stands."""
        return [_row(m) for m in self.models.values()]

    async def weigh(self, *models: Model) -> None:
        """Take anew what loaded models have resident: these, or all. It corrects what they are counted with."""
        for model in models or self.models.values():
            if model.state == "loaded" and model.order.measured:
                now = await model.host.memory(model.order.alias)
                if now and model.state == "loaded":
                    model.learned = model.memory = now

    async def _bring(self, model: Model) -> Switched:
        name = model.order.alias
        async with self._lock:
            if model.state == "loaded":
                return Switched(name, (), 0.0, model.memory)
            evicted = await self._make_room(model)
            model.state, model.memory, model.error = "loading", model.estimate, None
            begin = time.monotonic()
            try:
                model.at = await model.host.load(name)
            except asyncio.CancelledError:
                model.state, model.memory = "unloaded", 0
                raise
            except MiyabiError as e:
                model.state, model.memory, model.error = "failed", 0, e.message
                self._say(f"{name} could not be loaded: {e.message}")
                raise
            took = time.monotonic() - begin
            model.state, model.used = "loaded", time.monotonic()
            self._say(f"loaded {name} in {took:.2f} s" + (f", {len(evicted)} unloaded for it" if evicted else ""))
            return Switched(name, evicted, round(took, 3), model.memory)

    async def _make_room(self, model: Model) -> tuple[str, ...]:
        holders = [
            Holder(m.order.alias, m.memory, m.used, m.order.pin, m.busy > 0)
            for m in self.models.values()
            if m.state in _HOLDS
        ]
        wanted = Wanted(model.order.alias, model.estimate)
        plan = plan_room(holders, wanted, self.budget, time.monotonic())
        if isinstance(plan, Refusal):
            raise NoRoom(plan)
        for name in plan:
            await self._drop(self.models[name], f"for {model.order.alias}")
        return plan

    async def _drop(self, model: Model, why: str) -> None:
        model.state = "unloading"  # at once: a request that comes now waits, and has it loaded again
        try:
            await model.host.unload(model.order.alias)
        except MiyabiError:
            model.state = "failed"
            raise
        freed, model.state, model.at, model.memory = model.memory, "unloaded", None, 0
        self._say(f"unloaded {model.order.alias} {why}, {freed >> 20} MiB free again")

    def _lost(self, model: Model, why: str) -> None:
        if model.state == "loaded":
            model.state, model.at, model.memory, model.error = "failed", None, 0, why
            self._say(f"{model.order.alias} died: {why}; the next request loads it again")


def _arrived(model: Model, task: asyncio.Task[Switched]) -> None:
    model.coming = None
    if not task.cancelled():
        task.exception()  # looked at, though everybody who waited may be gone


def _row(m: Model) -> ModelRow:
    return ModelRow(
        id=m.order.alias,
        ref=m.order.ref,
        backend=m.order.backend or "",
        state=m.state,
        memory=m.memory,
        estimate=m.order.memory,
        ctx=m.at.ctx if m.at is not None else m.order.ctx,
        pinned=m.order.pin,
        ttl=m.order.ttl,
        busy=m.busy,
        last_used=m.seen.isoformat(timespec="seconds") if m.seen else None,
        error=m.error,
    )
