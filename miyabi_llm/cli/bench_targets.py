"""Whom `bench` measures: models it starts itself, servers by address, servers that run here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from miyabi_llm.errors import BadUsage, Missing, MiyabiError

if TYPE_CHECKING:
    from miyabi_llm.bench.values import Speech, Target
    from miyabi_llm.config import Settings
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact, Endpoint, OnEvent

SPEECHES = ("openai-chat", "openai-completions", "ollama", "anthropic")
_NAMED = re.compile(r"(\w[\w.+-]*)=(.+)", re.DOTALL)
MODEL_FILES = (".gguf", ".safetensors")


@dataclass(frozen=True, slots=True)
class Wish:
    """One target as the person named it: exactly one of `ref`, `url` and `endpoint` is set."""

    name: str = ""
    ref: str | None = None
    url: str | None = None
    endpoint: str | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class How:
    """What holds for all targets."""

    speech: str | None = None
    model: str | None = None
    key_env: str | None = None
    ctx: int | None = None
    threads: int | None = None
    pull: bool = False
    extra: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Aim:
    """All targets, and what holds for them."""

    wanted: tuple[Wish, ...]
    how: How


@dataclass(frozen=True, slots=True)
class Opened:
    """Targets that answer, and the seconds from start to ready of those that were started here."""

    targets: tuple[Target, ...]
    loads_s: dict[str, float] = field(default_factory=dict)


def wishes(
    words: Sequence[str], urls: Sequence[str], endpoints: Sequence[str], backends: Sequence[str]
) -> tuple[Wish, ...]:
    """The targets of a command line, in its order, each under a name of its own. Raises BadUsage. Pure."""
    found = [_wish(word) for word in words]
    found += [replace(_split(u), ref=None, url=_split(u).ref) for u in urls]
    found += [replace(_split(e), ref=None, endpoint=_split(e).ref) for e in endpoints]
    if not found:
        found = [Wish(ref="")]
    started = [i for i, w in enumerate(found) if w.ref is not None]
    if backends and len(backends) not in (1, len(started)):
        raise BadUsage(
            f"{len(backends)} backends for {len(started)} models", hint="Give --backend once, or once for each model."
        )
    for place, i in enumerate(started):
        if backends:
            found[i] = replace(found[i], backend=backends[place if len(backends) > 1 else 0])
    return _named(found)


def _split(text: str) -> Wish:
    match = _NAMED.fullmatch(text)
    return Wish(match[1], match[2]) if match else Wish(ref=text)


def _wish(word: str) -> Wish:
    wish = _split(word)
    place = wish.ref or ""
    if place.startswith(("http://", "https://")) and not urlsplit(place).path.endswith(MODEL_FILES):
        return replace(wish, ref=None, url=place)
    return wish


def _named(found: Sequence[Wish]) -> tuple[Wish, ...]:
    names: list[str] = []
    for w in found:
        place = urlsplit(w.url).netloc.rpartition("@")[2] if w.url else w.ref or w.endpoint or "model"
        name = w.name or place
        if w.name and w.name in names:
            raise BadUsage(f"two targets are called {w.name}")
        if not w.name and [x.ref or x.url or x.endpoint for x in found].count(w.ref or w.url or w.endpoint) > 1:
            name = f"{place} ({w.backend})" if w.backend else place
        while name in names:
            name += "'"
        names.append(name)
    return tuple(replace(w, name=name) for w, name in zip(found, names, strict=True))


@contextmanager
def opened(aim: Aim, settings: Settings, on_event: OnEvent) -> Iterator[Opened]:
    """Every target, up; those that were started here stop when the block ends."""
    targets: list[Target] = []
    loads_s: dict[str, float] = {}
    with ExitStack() as stack:
        for wish in aim.wanted:
            begin = time.perf_counter()
            target = stack.enter_context(opened_one(wish, aim.how, settings, on_event))
            targets.append(target)
            if wish.ref is not None:
                loads_s[wish.name] = time.perf_counter() - begin
        yield Opened(tuple(targets), loads_s)


@contextmanager
def opened_one(wish: Wish, how: How, settings: Settings, on_event: OnEvent) -> Iterator[Target]:
    """One target, up."""
    from miyabi_llm.bench.values import Target

    if how.speech is not None and how.speech not in SPEECHES:
        raise BadUsage(f"--speech {how.speech}: no such dialect", hint=f"One of {', '.join(SPEECHES)}.")
    if wish.url is not None:
        endpoint = _remote(wish.url, how, settings)
        yield Target(wish.name, endpoint, _speech(endpoint, how, template=None))
    elif wish.endpoint is not None:
        endpoint, template = _running(wish.endpoint, settings)
        yield Target(wish.name, endpoint, _speech(endpoint, how, template=template))
    else:
        with _started(wish, how, settings, on_event) as (endpoint, template):
            yield Target(wish.name, endpoint, _speech(endpoint, how, template=template))


def _speech(endpoint: Endpoint, how: How, *, template: bool | None) -> Speech:
    if how.speech is not None:
        return cast("Speech", how.speech)
    if endpoint.backend == "ollama":
        return "ollama"  # its own dialect tells its own timings
    return "openai-completions" if template is False else "openai-chat"


def _remote(url: str, how: How, settings: Settings) -> Endpoint:
    from miyabi_llm.cli import target

    address, _, model = url.partition("#")
    wish = target.Wish(model or how.model, url=address, key_env=how.key_env)
    with target.endpoint(wish, settings, lambda event: None) as endpoint:
        return endpoint


def _running(name: str, settings: Settings) -> tuple[Endpoint, bool | None]:
    from miyabi_llm import serve
    from miyabi_llm.cli import stored
    from miyabi_llm.store import Store

    found = next((s for s in serve.ps(settings) if s.name == name), None)
    if found is None or found.state == "dead":
        raise Missing(f"no server {name!r} runs", hint="`miyabi-llm ps` lists those that do.")
    try:
        store = Store(settings.store)
        return found.endpoint, has_template(stored.find(found.ref, store, settings), store)
    except MiyabiError:
        return found.endpoint, None  # its model is not in the store any more, or it serves several


def has_template(artifact: Artifact, store: Store) -> bool | None:
    """Whether a stored model has a chat template; None where that cannot be told."""
    from miyabi_llm import fit

    try:
        return fit.read_header(store.files(artifact)).chat_template is not None
    except MiyabiError:
        return None  # no GGUF, or one we cannot read


@contextmanager
def _started(wish: Wish, how: How, settings: Settings, on_event: OnEvent) -> Iterator[tuple[Endpoint, bool | None]]:
    from miyabi_llm import pull, serve
    from miyabi_llm.cli import plans, stored
    from miyabi_llm.errors import ModelMissing
    from miyabi_llm.store import Store
    from miyabi_llm.types import Event

    store = Store(settings.store)
    try:
        artifact = stored.find(wish.ref or settings.default_model, store, settings)
    except ModelMissing as e:
        if not how.pull or e.details.get("damaged") or e.details.get("unknown"):
            raise
        artifact = pull.pull(stored.parse(wish.ref or settings.default_model, settings), store, settings, on_event)
    with store.lease(artifact):
        wanted = plans.Wanted(wish.backend, ctx=how.ctx, threads=how.threads, key=serve.new_key(), extra=how.extra)
        plan = plans.make(artifact, store, settings, wanted)
        for text in plan.notes:
            on_event(Event("phase", "note", text))
        on_event(Event("phase", "starting", f"{plan.endpoint.model} with {plan.backend}"))
        with serve.running(plan, settings, on_event, artifact=artifact) as endpoint:
            yield replace(endpoint, backend=endpoint.backend or plan.backend), has_template(artifact, store)
