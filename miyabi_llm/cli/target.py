"""Whom to ask: a server by address, one that runs already, or one started for this call."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.errors import BadUsage, MiyabiError, ModelMissing
from miyabi_llm.types import Artifact, Endpoint, Event, OnEvent, Secret

if TYPE_CHECKING:
    from miyabi_llm.client import Message
    from miyabi_llm.config import Settings
    from miyabi_llm.store import Store


@dataclass(frozen=True, slots=True)
class Wish:
    """What the person asked for: a model (None: the default), and how it should be reached.

    `messages` and `max_tokens` say how large a context the question needs.
    """

    ref: str | None
    messages: tuple[Message, ...] = ()
    max_tokens: int | None = None
    url: str | None = None
    key_env: str | None = None
    backend: str | None = None
    ctx: int | None = None
    pull: bool = False


@contextmanager
def events(*, as_json: bool) -> Iterator[OnEvent]:
    """An `OnEvent` that brings up the progress display with the first event: no event, no import."""
    with ExitStack() as stack:
        shown: list[OnEvent] = []

        def on_event(e: Event) -> None:
            if not shown:
                from miyabi_llm.cli import progress

                shown.append(stack.enter_context(progress.shown(as_json=as_json)))
            shown[0](e)

        yield on_event


@contextmanager
def endpoint(wish: Wish, settings: Settings, on_event: OnEvent) -> Iterator[Endpoint]:
    """The server to ask. One that is started here stops when the block ends."""
    if wish.url is not None:
        if wish.backend or wish.ctx or wish.pull:
            raise BadUsage("--backend, --ctx and --pull are for servers started here; --url starts none")
        yield _remote(wish, settings)
        return
    if wish.key_env:
        raise BadUsage("--key-env goes with --url", hint="Servers started here have keys of their own.")
    with _local(wish, settings, on_event) as found:
        yield found


def _remote(wish: Wish, settings: Settings) -> Endpoint:
    from miyabi_llm.client import Client, base_url

    address, key = base_url(wish.url or ""), None
    if wish.key_env:
        text = settings.env.get(wish.key_env, "").strip()
        if not text:
            raise BadUsage(f"--key-env: the variable {wish.key_env} is not set", hint="Give its name, not the key.")
        key = Secret(text)
    if wish.ref and wish.ref != "-":
        return Endpoint(address, wish.ref, key=key)
    with Client(Endpoint(address, "", key=key)) as client:
        names = client.models()
    if not names:
        raise ModelMissing(f"{address} offers no model", hint="Give the model's name before the prompt.")
    return Endpoint(address, names[0], key=key)


@contextmanager
def _local(wish: Wish, settings: Settings, on_event: OnEvent) -> Iterator[Endpoint]:
    from miyabi_llm import serve
    from miyabi_llm.cli import plans
    from miyabi_llm.store import Store

    store = Store(settings.store)
    artifact = _artifact(wish, store, settings, on_event)
    with store.lease(artifact):
        files = store.files(artifact)
        _warn_of_base_model(artifact, files, on_event)
        found = None if wish.backend else serve.find_running(artifact, settings)
        if found is not None and _roomy(found, wish.ctx):
            yield found
            return
        ctx = wish.ctx or _context(wish, files)
        plan = plans.make(artifact, store, settings, plans.Wanted(wish.backend, ctx=ctx, key=serve.new_key()))
        for text in plan.notes:
            on_event(Event("phase", "note", text))
        on_event(Event("phase", "starting", f"{plan.endpoint.model} with {plan.backend}"))
        with serve.running(plan, settings, on_event, artifact=artifact) as endpoint:
            yield endpoint


def _artifact(wish: Wish, store: Store, settings: Settings, on_event: OnEvent) -> Artifact:
    """The stored model; where it is missing, pulled on `--pull` or when the person at the terminal says so."""
    from miyabi_llm.cli import stored

    name = wish.ref if wish.ref and wish.ref != "-" else settings.default_model
    try:
        return stored.find(name, store, settings)
    except ModelMissing as e:
        if e.details.get("damaged") or e.details.get("unknown") or not (wish.pull or _agrees(e)):
            raise
    from miyabi_llm import pull

    return pull.pull(stored.parse(name, settings), store, settings, on_event)


def _agrees(missing: ModelMissing) -> bool:
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print(f"{missing.message}. Pull it now? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _warn_of_base_model(artifact: Artifact, files: Mapping[str, Path], on_event: OnEvent) -> None:
    from miyabi_llm import fit

    try:
        header = fit.read_header(files)
    except MiyabiError:
        return  # no GGUF, or one we cannot read: the backend says so if it cannot either
    if header.chat_template is None:
        text = "is a base model without a chat template: it continues text, it was not taught to answer"
        on_event(Event("warning", str(artifact.ref), text))


def _roomy(endpoint: Endpoint, ctx: int | None) -> bool:
    """Whether a running server has the context that was asked for."""
    if ctx is None:
        return True
    from miyabi_llm.client import Client

    with Client(endpoint) as client:
        return (client.context_size() or 0) >= ctx


def _context(wish: Wish, files: Mapping[str, Path]) -> int | None:
    """The context the question needs, never more than the model was trained for; None for the usual one."""
    from miyabi_llm import chat, fit

    try:
        most = fit.read_header(files).context_length
    except MiyabiError:
        most = None  # no GGUF: the backend decides, and the question is counted before it is sent
    return chat.context_for(wish.messages, wish.max_tokens, most)
