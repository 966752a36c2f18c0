"""What serving knows: how long things may take, and how a running server stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.serve.many.values import ModelRow
from miyabi_llm.types import Endpoint

State = Literal["loading", "ready", "restarting", "dead"]
Kind = Literal["temporary", "foreground", "detached"]


@dataclass(frozen=True, slots=True)
class Limits:
    """How long things may take, in seconds, and how often a server may die.

    `silent_s` is how long a loading server may neither write to its log nor use the processor; `load_s` bounds
    the load in any case. `stall_s` is how long a ready server may make no progress on a request before it is
    taken for wedged. After `crashes` deaths within `crash_window_s` it is given up; between restarts it waits
    `backoff_s`, doubled each time, `backoff_limit_s` at most. `grace_s` is its time to end after SIGTERM.
    """

    silent_s: float = 120.0
    load_s: float = 3600.0
    first_token_s: float = 120.0
    probe_every_s: float = 30.0
    stall_s: float = 120.0
    grace_s: float = 10.0
    crashes: int = 5
    crash_window_s: float = 600.0
    backoff_s: float = 1.0
    backoff_limit_s: float = 60.0
    log_bytes: int = 8 << 20


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server we started. `memory` is what its processes have resident, in bytes; `started` is UTC, ISO 8601.

    `pid` is the server's, `supervisor` the process that guards it. `restarts` counts its deaths since `started`.
    `models` are those of a front of many.
    `fit` is the estimate of its memory beside what was measured when it was ready, in bytes (None: not compared);
    `alarms` what was wrong then.
    """

    name: str
    ref: str
    backend: str
    state: State
    kind: Kind
    pid: int
    supervisor: int
    port: int
    endpoint: Endpoint
    started: str
    log: Path
    memory: int = 0
    ctx: int | None = None
    restarts: int = 0
    error: str | None = None
    fit: Mapping[str, Any] | None = None
    alarms: tuple[str, ...] = ()
    models: tuple[ModelRow, ...] = ()

    @property
    def detached(self) -> bool:
        """Whether it goes on after the command that started it has ended."""
        return self.kind == "detached"
