"""The values that flow through the house: frozen, pure, standard library only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.refs import Digest, ModelRef

Format = Literal["gguf", "safetensors", "adapter", "ollama"]
Trust = Literal["verified", "first-use", "local"]
Dialect = Literal["openai", "anthropic", "ollama"]
Level = Literal["ok", "warn", "fail", "unknown"]


class Secret:
    """A key whose text appears in no repr, log or JSON; `reveal()` is the only way out."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The key itself, for a header, a key file or a child's environment; never for argv or a log."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self._text)


@dataclass(frozen=True, slots=True)
class Event:
    """What long work says while it runs. `kind` is one of phase, progress, log, warning, done.

    A progress event carries `done` and `total` in `unit` (bytes, steps, tokens); `name` says of what.
    """

    kind: Literal["phase", "progress", "log", "warning", "done"]
    name: str
    message: str = ""
    done: float = 0
    total: float | None = None
    unit: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


OnEvent = Callable[[Event], None]


def silent(event: Event) -> None:
    """An `OnEvent` that says nothing."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file as its source lists it, before a byte of it is here.

    `sha256` is None where the source publishes none (trust on first use). `urls` are tried in order;
    `members` is set instead by sources that assemble a file from pieces (packages).
    """

    name: str
    size: int | None
    sha256: Digest | None
    urls: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a name means at one source: `ref` as asked, `resolved` at a fixed revision, and its files."""

    ref: ModelRef
    resolved: ModelRef
    format: Format
    files: tuple[RemoteFile, ...]
    license: str | None = None
    notes: tuple[str, ...] = ()
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int | None:
        """Bytes in all, or None when the source does not say."""
        sizes = [f.size for f in self.files]
        return None if any(s is None for s in sizes) else sum(s for s in sizes if s is not None)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an artifact: its name for the reader, its bytes by hash. `size` in bytes."""

    name: str
    sha256: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model that is here, whole: every file is a verified blob of the store.

    `trust` is `verified` (hash known beforehand from a source or pin), `first-use` (hash taken from the
    first download) or `local` (made or adopted here). `card` is how it was made and measured.
    """

    ref: ModelRef
    format: Format
    files: tuple[StoredFile, ...]
    trust: Trust
    source: str
    pulled_at: str
    license: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(f.size for f in self.files)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A running server: where every backend ends and every consumer starts.

    `base_url` has no trailing slash and no `/v1`. `key` is never printed; `key_file` is where it lies.
    `backend` is which kind of server answers there, empty when it is not known.
    """

    base_url: str
    model: str
    dialects: tuple[Dialect, ...] = ("openai",)
    key: Secret | None = None
    key_file: Path | None = None
    backend: str = ""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes a server will need, by part (QUANTIZE-style formula): weights, repack, kv, compute, runtime."""

    weights: int
    repack: int
    kv: int
    compute: int
    runtime: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.repack + self.kv + self.compute + self.runtime


@dataclass(frozen=True, slots=True)
class Adapter:
    """A LoRA adapter on disk: a GGUF file for llama.cpp, a folder in peft's layout for vLLM."""

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class ServeSpec:
    """What to serve and how: everything a backend's pure `plan` may look at.

    `files` maps the artifact's file names to paths on disk. `ctx` in tokens, None for the backend's choice.
    `cache_ram` is what the server may keep of earlier prompts, in MiB, None for the backend's choice; `kv_type` the
    type of the KV cache. `gpus` is how many this machine has; `nodes` how many machines share the model.
    `keep_s`: unload it after so many idle seconds, 0 never, None for the backend's choice. `attach` False: start a
    server of our own beside one that runs. `work` is a private folder of ours for what the backend has to be told in
    files.
    """

    artifact: Artifact
    files: Mapping[str, Path]
    alias: str
    host: str = "127.0.0.1"
    port: int = 8080
    ctx: int | None = None
    threads: int | None = None
    parallel: int | None = None
    key: Secret | None = None
    extra: tuple[str, ...] = ()
    cache_ram: int | None = None
    kv_type: str | None = None
    adapters: tuple[Adapter, ...] = ()
    gpus: int = 0
    tensor_parallel: int | None = None
    pipeline_parallel: int | None = None
    nodes: int = 1
    keep_s: float | None = None
    attach: bool = True
    work: Path | None = None


@dataclass(frozen=True, slots=True)
class Expect:
    """What a person may count on once the server runs; what it falls short of is an alarm.

    `gpus` of this machine, `cores` this process may use, and whether the model has a chat template (None: unknown).
    """

    gpus: int = 0
    cores: int | None = None
    chat_template: bool | None = None


@dataclass(frozen=True, slots=True)
class LaunchPlan:
    """What a backend would run, and how to tell that it is up. `argv` None means: attach to a running server.

    `env` is added to an allow-listed environment; its secret values are `Secret`s. `files` are written, 0600, right
    before the start; `links` are second names (new -> there) made then, so that no byte is copied. `wake` are commands
    run to their end when nobody answers: they bring up a server that is a daemon of its own and goes on after us.
    `handover` is a model the server is given once it answers on its health path: for servers that are not started with
    one. `smaller` is what to try, once, when the memory runs out: nobody asked for this context.
    """

    backend: str
    argv: tuple[str, ...] | None
    env: Mapping[str, str | Secret]
    endpoint: Endpoint
    health_path: str = "/health"
    ctx: int | None = None
    memory: MemoryEstimate | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[Path, str] = field(default_factory=dict)
    links: Mapping[Path, Path] = field(default_factory=dict)
    wake: tuple[tuple[str, ...], ...] = ()
    handover: ServeSpec | None = None
    smaller: LaunchPlan | None = None
    expect: Expect = field(default_factory=Expect)


@dataclass(frozen=True, slots=True)
class Finding:
    """One judgement of the doctor: what was looked at, how it stands, and the command that mends it."""

    name: str
    level: Level
    message: str
    fix: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


def counted(number: int, noun: str) -> str:
    """`1 model`, `2 models`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def plain(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses to objects, refs and paths to strings, secrets masked."""
    if isinstance(value, ModelRef | Path | Secret):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return body | ({"size": value.size} if isinstance(value, Artifact | Listing) else {})
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(v) for v in value]
    return value
