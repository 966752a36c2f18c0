"""What a backend is: a frozen value that says what it would run, and a control of one that runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, runtime_checkable

from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage
from miyabi_llm.tools.program import Program, Unusable
from miyabi_llm.types import Dialect, Endpoint, Format, LaunchPlan, OnEvent, ServeSpec

Source = Literal["auto", "release", "build"]


class Unsupported(BadUsage):
    """An ability this backend does not have; the hint names what does."""

    code = "unsupported"


@dataclass(frozen=True, slots=True)
class Detected:
    """How a backend stands on this machine. `ok` is False with a `reason` when it cannot be used.

    `program` is the one that would be run; `rejected` are unusable ones found before it; `tools` are its other
    programs that are here (quantize, bench and so on). `running` is a server of this kind that answers now and may be
    attached to. `version` is the running server's, or the program's.
    """

    backend: str
    ok: bool
    reason: str = ""
    program: Program | None = None
    rejected: tuple[Unusable, ...] = ()
    tools: Mapping[str, Path] = field(default_factory=dict)
    running: Endpoint | None = None
    version: str = ""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a backend can do; `limits` says in sentences what it cannot.

    `start` a server of ours, `attach` to one that runs, demand our `key`, hold `several` models behind one address,
    `load`, `unload` or put to `sleep` a model while it runs, serve LoRA `adapters`, set the `context` length and the
    KV cache's type (`kv_type`), tell `metrics`, spread a model over several machines (`nodes`). `verified` says
    whether our tests ran it against the real program or against a stand-in written from its sources.
    """

    dialects: tuple[Dialect, ...] = ("openai",)
    start: bool = False
    attach: bool = False
    key: bool = False
    several: bool = False
    load: bool = False
    unload: bool = False
    sleep: bool = False
    adapters: bool = False
    context: bool = False
    kv_type: bool = False
    metrics: bool = False
    nodes: bool = False
    verified: Literal["real", "stand-in"] = "stand-in"
    limits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Way:
    """One way in which users of a system install a program; `command` is empty when there is none to type."""

    kind: Literal["release", "build", "environment", "package manager", "container", "by hand"]
    command: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """How a backend is to be installed; `tools` asks for its other programs too."""

    source: Source = "auto"
    tools: bool = False


@dataclass(frozen=True, slots=True)
class ModelState:
    """How one model stands in a running server. Memory in bytes, `ctx` in tokens; None where the server is silent."""

    name: str
    state: Literal["unloaded", "loading", "loaded", "sleeping", "failed"]
    memory: int | None = None
    gpu_memory: int | None = None
    ctx: int | None = None
    expires: str | None = None


class Control(Protocol):
    """Commands to one running server. Close it, or use it as a context manager.

    Every method the server has no way for raises Unsupported; one that says no, ServerFailed with its words; one that
    does not answer, NetworkError.
    """

    def __enter__(self) -> Control:
        """Itself."""

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        """Close it."""

    def close(self) -> None:
        """Close the connections."""

    def version(self) -> str:
        """What the server says it is."""

    def models(self) -> tuple[ModelState, ...]:
        """Every model it knows."""

    def load(self, name: str, *, ctx: int | None = None, keep_s: float | None = None) -> ModelState:
        """Have a model it knows ready; returns when it is."""

    def unload(self, name: str) -> None:
        """Free the memory of a model."""

    def add(self, spec: ServeSpec, on_event: OnEvent) -> str:
        """Make a model of our store known to it; returns the name it has there."""


@runtime_checkable
class Backend(Protocol):
    """A kind of server. Third parties add theirs in the entry-point group `miyabi_llm.backends.v1`."""

    @property
    def name(self) -> str:
        """What the user types after --backend."""

    @property
    def accepts(self) -> frozenset[Format]:
        """The formats it can serve."""

    @property
    def capabilities(self) -> Capabilities:
        """What it can do."""

    def detect(self, settings: Settings) -> Detected:
        """Look for its program and for a running server. Never raises, never takes longer than a few seconds."""

    def plan(self, spec: ServeSpec, found: Detected) -> LaunchPlan:
        """What would be run for `spec`. Pure: the same arguments give the same plan; no argv means: attach.

        Raises BackendMissing when a program is needed that was not found or cannot do what `spec` asks, Unsupported.
        """

    def ways(self, system: str) -> tuple[Way, ...]:
        """How its users install it on `system` (Linux, Darwin, Windows), the best first. Pure."""

    def install(self, settings: Settings, on_event: OnEvent, options: InstallOptions) -> Program:
        """Install it; idempotent. Raises BackendMissing with what to type where we cannot do it."""

    def control(self, endpoint: Endpoint) -> Control:
        """Commands to the server behind `endpoint`."""


def client_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server bound to `host`: the wildcards become loopback. Pure."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
