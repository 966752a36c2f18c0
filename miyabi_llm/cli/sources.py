"""What a command that quantizes may be given: a GGUF, or safetensors, which are converted and proved first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from miyabi_llm.errors import ModelMissing

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.quantize import Source
    from miyabi_llm.quantize.convert import Kit
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.store import Store
    from miyabi_llm.tools.program import Program
    from miyabi_llm.types import Adapter, Endpoint, OnEvent

CTX = 2048  # tokens: what the gates ask is short


def open_source(
    text: str, store: Store, settings: Settings, on_event: OnEvent, lora: Path | None = None, *, pull: bool = False
) -> Source:
    """The model that `text` means, as GGUF: safetensors are converted, `lora` is merged. Raises MiyabiError.

    With `pull` a model that is not here is brought first.
    """
    from miyabi_llm.cli import stored
    from miyabi_llm.quantize import adapters

    ref = stored.parse(text, settings)
    if lora is not None:
        adapters.check(lora)
    try:
        return _open(ref, store, settings, on_event, lora)
    except ModelMissing as e:
        if e.details.get("damaged") or ref.scheme == "file":
            raise
        missing = stored.missing(ref, store, settings)
        if not pull or missing.details.get("unknown"):
            raise missing from e
    from miyabi_llm import pull as pulling

    pulling.pull(ref, store, settings, on_event)
    return _open(ref, store, settings, on_event, lora)


def _open(ref: ModelRef, store: Store, settings: Settings, on_event: OnEvent, lora: Path | None) -> Source:
    from miyabi_llm import quantize as verb
    from miyabi_llm.quantize import convert, merging, original

    home = settings.user_home
    if not original.is_folder(ref, store, home):
        source = verb.open_source(ref, store, home)
        return merging.merged(source, None, lora, kit(store, settings, on_event)) if lora else source
    folder, tools = original.open_folder(ref, store, home), kit(store, settings, on_event)
    made = convert.to_gguf(folder, tools)
    source = verb.open_source(made.ref, store, home)
    return merging.merged(source, folder, lora, tools) if lora else source


@contextmanager
def to_plan(
    text: str, store: Store, settings: Settings, on_event: OnEvent, lora: Path | None = None, *, pull: bool = False
) -> Iterator[Source]:
    """As `open_source`; of a model that is at a source and not here only the header is fetched, unless `pull`."""
    from miyabi_llm.cli import stored
    from miyabi_llm.quantize import remote
    from miyabi_llm.types import Event

    ref = stored.parse(text, settings)
    if pull or lora is not None or ref.scheme not in remote.REMOTE or _is_here(ref, store):
        yield open_source(text, store, settings, on_event, lora, pull=pull)
        return
    on_event(Event("phase", "header", f"fetching it from {ref}"))
    with remote.peeked(ref, settings) as source:
        yield source


def _is_here(ref: ModelRef, store: Store) -> bool:
    try:
        store.manifest(ref)
    except ModelMissing:
        return False
    return True


def kit(store: Store, settings: Settings, on_event: OnEvent) -> Kit:
    """The real converter and the real server, each brought when it is first needed."""
    from miyabi_llm.quantize.convert import Kit
    from miyabi_llm.tools import converting, install

    @contextmanager
    def start(model: Path, lora: tuple[Adapter, ...]) -> Iterator[Endpoint]:
        with serving(model, lora, settings, on_event) as endpoint:
            yield endpoint

    def programs(names: tuple[str, ...]) -> Mapping[str, Program]:
        return install.install_programs(names, settings, on_event)

    return Kit(store, settings, lambda hear: converting.get(settings, hear), start, programs, on_event)


@contextmanager
def serving(
    model: Path, lora: tuple[Adapter, ...], settings: Settings, on_event: OnEvent, *, threads: int | None = None
) -> Iterator[Endpoint]:
    """A llama-server of our own with the file, every tensor of it checked while it loads."""
    from miyabi_llm import backends, serve
    from miyabi_llm.backends.base import InstallOptions
    from miyabi_llm.proc import ports
    from miyabi_llm.refs import ModelRef
    from miyabi_llm.types import Artifact, ServeSpec

    backend = backends.get("llama-cpp")
    backend.install(settings, on_event, InstallOptions())
    unnamed = Artifact(ModelRef.parse("candidate"), "gguf", (), "local", "", "")
    spec = ServeSpec(
        unnamed, {"model.gguf": model}, "candidate", port=ports.free("127.0.0.1"), ctx=CTX, threads=threads,
        key=serve.new_key(), adapters=lora, parallel=1, extra=("--check-tensors",), attach=False,
    )  # fmt: skip
    with serve.running(backend.plan(spec, backend.detect(settings)), settings, on_event) as endpoint:
        yield endpoint
