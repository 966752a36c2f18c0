"""Whom to ask: a server by address, one that runs already, or one started for this call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from miyabi_llm.errors import BadUsage, ModelMissing
from miyabi_llm.types import Endpoint, Event, OnEvent, Secret

if TYPE_CHECKING:
    from miyabi_llm.client import Message
    from miyabi_llm.config import Settings


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
    raise BadUsage("not yet", hint="Use --url.")
    yield
