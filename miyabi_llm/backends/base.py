"""What a backend is: a frozen value that says what it would run, and never runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

from miyabi_llm.config import Settings
from miyabi_llm.tools.program import Program, Unusable
from miyabi_llm.types import Format, LaunchPlan, ServeSpec


@dataclass(frozen=True, slots=True)
class Detected:
    """How a backend stands on this machine. `ok` is False with a `reason` when it cannot be used.

    `program` is the one that would be run; `rejected` are unusable ones found before it; `tools` are its other
    programs that are here (quantize, bench and so on).
    """

    backend: str
    ok: bool
    reason: str = ""
    program: Program | None = None
    rejected: tuple[Unusable, ...] = ()
    tools: Mapping[str, Path] = field(default_factory=dict)


@runtime_checkable
class Backend(Protocol):
    """A kind of server. Third parties add theirs in the entry-point group `miyabi_llm.backends.v1`."""

    @property
    def name(self) -> str:
        """What the user types after --backend."""

    @property
    def accepts(self) -> frozenset[Format]:
        """The formats it can serve."""

    def detect(self, settings: Settings) -> Detected:
        """Look for its program. Never raises, never takes longer than a few seconds."""

    def plan(self, spec: ServeSpec, program: Program | None) -> LaunchPlan:
        """What would be run for `spec`. Pure: the same arguments give the same plan.

        Raises BackendMissing when `program` is None and one is needed, or cannot do what `spec` asks.
        """


def client_url(host: str, port: int) -> str:
    """Where a client on this machine reaches a server bound to `host`: the wildcards become loopback. Pure."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
