"""The servers behind the tools: one that runs is used, else one is started and kept until this process ends."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from miyabi_llm.errors import BackendMissing, MachineLimit, MiyabiError, ModelMissing
from miyabi_llm.mcp import choice, local
from miyabi_llm.types import Artifact, Endpoint, Event

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.serve import ServerInfo
    from miyabi_llm.store import Store

LIST = "`list_models` names them."
MOST = 2  # servers started here at the same time: each holds a model in memory


@dataclass(frozen=True, slots=True)
class Wish:
    """Which model, by which kind of server; empty and None leave it to what runs, then to the default.

    With a `prompt` and without a model, the gateway's policy is asked first, if there is one.
    """

    model: str = ""
    backend: str | None = None
    prompt: str = ""
    hints: tuple[str, ...] = ()


@dataclass(slots=True)
class Note:
    """What a start says while it runs, for whoever waits."""

    text: str = "looking for a server"

    def __call__(self, event: Event) -> None:
        """An `OnEvent`."""
        said = f"{event.name} {event.message}".strip() if event.kind in ("phase", "warning") else ""
        if event.kind == "progress" and event.total:
            said = f"{event.name} {100 * event.done / event.total:.0f}%"
        self.text = said or self.text


@dataclass(slots=True)
class Held:
    """A server started here. `users` counts the calls that read from it now, `used` is when the last began."""

    endpoint: Endpoint
    stack: ExitStack
    users: int = 0
    used: float = field(default_factory=time.monotonic)


class Servers:
    """Finds and starts. Every method may be called from any thread; starting blocks, so call it from one that may.

    A start goes on when its caller gives up: the next call for the same model finds it, or waits for it.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self._held: dict[tuple[str, str], Future[Held]] = {}
        self._closed = False

    def endpoint(self, wish: Wish, note: Note) -> Endpoint:
        """Whom to ask. Raises MiyabiError: ModelMissing, BackendMissing, MachineLimit, Unsafe, ServerFailed."""
        from miyabi_llm.store import Store

        store = Store(self.settings.store)
        if wish.backend == "ollama" and (there := self._ollama(wish)) is not None:
            return there
        running = self.running()
        if wish.prompt and not wish.model and (meant := choice.chosen(self.settings, wish.prompt, wish.hints, running)):
            return meant
        if wish.backend is not None and not any(wish.backend == s.backend for s in running):
            self._refuse_missing(wish.backend)
        name = wish.model or self._usual(wish.backend, store, running)
        found = self._many(name, running, wish.backend)
        if found is None:
            artifact = self._artifact(name, store)
            found = self._ours(artifact, wish.backend, running) or self._started(artifact, wish.backend, store, note)
        local.refuse_remote(found.base_url)
        return found

    def running(self) -> list[ServerInfo]:
        """The lasting servers that are ready, of whatever command."""
        from miyabi_llm import serve

        return [s for s in serve.ps(self.settings) if s.state == "ready" and s.kind != "temporary"]

    def use(self, endpoint: Endpoint, *, more: int) -> None:
        """Note that a call begins (1) or ends (-1) to read from `endpoint`."""
        with self._lock:
            for held in self._ready().values():
                if held.endpoint.base_url == endpoint.base_url:
                    held.users, held.used = held.users + more, time.monotonic()

    def started(self) -> list[Endpoint]:
        """The servers this process started."""
        with self._lock:
            return [held.endpoint for held in self._ready().values()]

    def end(self, *, but: Endpoint | None = None, backend: str | None = None) -> list[str]:
        """End the servers started here, of one kind, all but one; returns their models when they are gone."""
        with self._lock:
            going = {
                key: held
                for key, held in self._ready().items()
                if (backend is None or key[1] == backend)
                and (but is None or held.endpoint.base_url != but.base_url)
                and held.users == 0
            }
            for key in going:
                del self._held[key]
        for held in going.values():
            held.stack.close()
        return [held.endpoint.model for held in going.values()]

    def close(self) -> None:
        """End all that were started here. One that is still being started ends with the process."""
        with self._lock:
            self._closed = True
            going = list(self._ready().values())
            self._held.clear()
        for held in going:
            held.stack.close()

    def _refuse_missing(self, backend: str) -> None:
        """Raise BackendMissing when that kind of server neither runs nor can be started."""
        from miyabi_llm import backends

        found = backends.get(backend).detect(self.settings)
        if not found.ok:
            raise BackendMissing(
                f"{backend} {found.reason or 'cannot be used'}",
                hint=f"`miyabi-llm backend install {backend}` installs it; `health_check` says what else is ready.",
            )

    def _usual(self, backend: str | None, store: Store, running: list[ServerInfo]) -> str:
        """The model where none is named: of a server that runs, else the default, else what this backend can read."""
        for server in running:
            if backend in (None, server.backend) and not server.models:
                return server.ref
        if backend is None:
            return self.settings.default_model
        from miyabi_llm import backends

        formats = backends.get(backend).accepts
        fitting = [str(a.ref) for a in store.list() if a.format in formats]
        if not fitting and "gguf" not in formats:
            raise ModelMissing(
                f"the store has no {' or '.join(sorted(formats))} model for {backend}",
                hint="`miyabi-llm pull hf:ORG/NAME` brings one; `miyabi-llm convert MODEL --to safetensors` makes one.",
            )
        if self.settings.default_model in fitting or not fitting:
            return self.settings.default_model
        return fitting[0]

    def _artifact(self, name: str, store: Store) -> Artifact:
        from miyabi_llm.cli import stored

        try:
            return stored.find(name, store, self.settings)
        except ModelMissing as e:
            if stored.parse(name, self.settings).scheme == "file":
                raise ModelMissing(f"{name!r} is a path: these tools ask models of the store", hint=LIST) from e
            here = ", ".join(str(a.ref) for a in store.list()[:8]) or "nothing yet"
            hint = f"{e.hint or ''} The store has: {here}. `list_models` tells all that can be asked."
            raise ModelMissing(e.message, hint=hint.strip()) from e

    def _many(self, name: str, running: list[ServerInfo], backend: str | None) -> Endpoint | None:
        """The model behind a front of several models."""
        for server in running:
            for row in server.models:
                if name in (row.id, row.ref) and backend in (None, "llama-cpp"):
                    return replace(server.endpoint, model=row.id, backend="llama-cpp")
        return None

    def _ours(self, artifact: Artifact, backend: str | None, running: list[ServerInfo]) -> Endpoint | None:
        """A lasting server that serves these very bytes with that kind of server."""
        from miyabi_llm import serve

        if not any(backend in (None, s.backend) for s in running):
            return None
        found = serve.find_running(artifact, self.settings)
        kind = next((s.backend for s in running if found and s.endpoint.base_url == found.base_url), "")
        return replace(found, backend=kind) if found is not None and backend in (None, kind) else None

    def _ollama(self, wish: Wish) -> Endpoint | None:
        """A model Ollama has itself; None when it has not and the store may, or when no Ollama runs."""
        from miyabi_llm import backends
        from miyabi_llm.backends.ollama_api import OllamaApi
        from miyabi_llm.refs import ModelRef

        found = backends.get("ollama").detect(self.settings)
        if found.running is None:
            if found.ok:
                return None  # the program is here: one of our own is started with a model of the store
            raise BackendMissing(
                f"Ollama cannot be asked: {found.reason}",
                hint="Start it (`ollama serve`), or `miyabi-llm backend install ollama`; or use `llama_cpp_generate`.",
            )
        local.refuse_remote(found.running.base_url)
        with OllamaApi(found.running) as api:
            here = [row.name for row in api.tags() if not row.remote_host]
            loaded = [state.name for state in api.running() if state.name in here]
        if not wish.model:
            if not here:
                raise ModelMissing("Ollama has no model of this machine", hint="`ollama pull NAME` brings one.")
            if len(here) > 1 and len(loaded) != 1:
                raise ModelMissing(
                    "which of Ollama's models is meant?", hint=f"Name one with `model`: {', '.join(here[:12])}."
                )
        endpoint = replace(found.running, model=wish.model or (loaded or here)[0], backend="ollama")
        try:
            local.refuse_remote_model(endpoint)
        except ModelMissing as missing:
            from miyabi_llm.store import Store

            try:
                Store(self.settings.store).find(ModelRef.parse(wish.model))
            except MiyabiError:
                raise missing from None
            return None
        return endpoint

    def _started(self, artifact: Artifact, backend: str | None, store: Store, note: Note) -> Endpoint:
        """The server started here for that model; started now when there is none, or it died."""
        ref = str(artifact.ref)
        with self._lock:
            key = self._known(ref, backend)
            future = self._held.get(key)
        if future is not None and future.done() and (future.exception() or not _alive(future.result())):
            future = None
        if future is None:
            with self._lock:
                idle = self._room()
                future = self._held[key] = Future()
            job = Job(artifact, backend, store, note, future, idle)
            threading.Thread(target=self._start, args=(job,), name="start", daemon=True).start()
        while not future.done():
            time.sleep(0.05)
        try:
            return future.result().endpoint
        except MiyabiError:
            with self._lock:
                if self._held.get(key) is future:
                    del self._held[key]
            raise

    def _start(self, job: Job) -> None:
        """In a thread of its own: bring the server up, and hand over what ends it."""
        from miyabi_llm import serve
        from miyabi_llm.cli import plans

        stack = ExitStack()
        try:
            if job.idle is not None:
                job.note(Event("phase", "ending", job.idle.endpoint.model))
                job.idle.stack.close()
            stack.enter_context(job.store.lease(job.artifact))
            wanted = plans.Wanted(job.backend, port=_port(job.backend), key=serve.new_key())
            plan = plans.make(job.artifact, job.store, self.settings, wanted)
            local.refuse_remote(plan.endpoint.base_url)
            job.note(Event("phase", "starting", f"{plan.endpoint.model} with {plan.backend}"))
            endpoint = stack.enter_context(serve.running(plan, self.settings, job.note, artifact=job.artifact))
            held = Held(replace(endpoint, backend=plan.backend), stack)
        except BaseException as e:  # whatever it is, the one who waits has to hear it
            stack.close()
            job.future.set_exception(e)
            return
        with self._lock:
            late = self._closed
            job.future.set_result(held)
        if late:
            stack.close()

    def _known(self, ref: str, backend: str | None) -> tuple[str, str]:
        """The key under which such a server is held, or would be. Called with the lock held."""
        for key, held in self._ready().items():
            if key[0] == ref and backend in (None, held.endpoint.backend):
                return key
        return next((key for key in self._held if key[0] == ref and backend is None), (ref, backend or ""))

    def _room(self) -> Held | None:
        """The one that has to go for another: the longest without use. Called with the lock held."""
        ready = self._ready()
        if len(self._held) < MOST:
            return None
        idle = sorted((held.used, key) for key, held in ready.items() if held.users == 0)
        if not idle:
            models = ", ".join(held.endpoint.model for held in ready.values()) or "one that is starting"
            raise MachineLimit(
                f"{MOST} models are in memory and busy: {models}",
                hint="Ask one of them, or wait for their answers and try again.",
            )
        del self._held[idle[0][1]]
        return ready[idle[0][1]]

    def _ready(self) -> dict[tuple[str, str], Held]:
        done = {key: future for key, future in self._held.items() if future.done() and not future.exception()}
        return {key: future.result() for key, future in done.items()}


@dataclass(frozen=True, slots=True)
class Job:
    """A start: what, with what, whom to tell, where the result goes, and who has to go first."""

    artifact: Artifact
    backend: str | None
    store: Store
    note: Note
    future: Future[Held]
    idle: Held | None


def _port(backend: str | None) -> int | None:
    """Any free port, for a kind of server that is always our own: nobody types it, and the usual ones stay free.

    None leaves it to the plan: an Ollama that runs is attached to.
    """
    if backend not in ("llama-cpp", "vllm"):
        return None
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _alive(held: Held) -> bool:
    """Whether a server started here still answers: one that was given up is started anew."""
    from miyabi_llm.backends import near

    key = held.endpoint.key.reveal() if held.endpoint.key else None
    path = "/" if held.endpoint.backend == "ollama" else "/health"
    status, _ = near.answers(held.endpoint.base_url, path, token=key)
    return status != 0
