"""What serving many models knows: the order that the front is given, and how each model stands."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.types import Endpoint, LaunchPlan

BACKEND = "many"  # what `ps` and a state file call the front
NAME = "many"  # of a server that was given none

State = Literal["unloaded", "loading", "loaded", "unloading", "sleeping", "failed"]


@dataclass(frozen=True, slots=True)
class ModelOrder:
    """One model of the list. `memory` is the estimate in bytes; `ttl` in seconds, None never; `ctx` in tokens.

    `process` asks for a server of its own where llama-server's router would do. `measured` False says that the
    resident memory of its process is not what it takes (weights on a GPU).
    """

    ref: str
    alias: str
    memory: int
    backend: str | None = None
    ctx: int | None = None
    kv: str | None = None
    threads: int | None = None
    extra: tuple[str, ...] = ()
    pin: bool = False
    ttl: float | None = None
    process: bool = False
    measured: bool = True


@dataclass(frozen=True, slots=True)
class Order:
    """What the front is to do. `budget` in bytes. `hosts` and `origins` are let in beside the usual ones."""

    models: tuple[ModelOrder, ...]
    budget: int
    host: str
    port: int
    work: Path
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The order as the front reads it."""
        return json.dumps(asdict(self) | {"work": str(self.work)}, ensure_ascii=False, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Order:
        """What `to_json` wrote."""
        body: dict[str, Any] = json.loads(text)
        models = tuple(ModelOrder(**(m | {"extra": tuple(m["extra"])})) for m in body.pop("models"))
        body |= {k: tuple(body[k]) for k in ("hosts", "origins")}
        return cls(**(body | {"models": models, "work": Path(body["work"])}))


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that answers: where, its context in tokens, and the plan it runs by."""

    endpoint: Endpoint
    ctx: int | None = None
    plan: LaunchPlan | None = None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """How one model stands. `memory` is what it takes in bytes, 0 when unloaded; `estimate` what it will take.

    `last_used` is UTC, ISO 8601, None when never; `busy` counts requests in progress.
    """

    id: str
    ref: str
    backend: str
    state: State
    memory: int
    estimate: int
    ctx: int | None
    pinned: bool
    ttl: float | None
    busy: int
    last_used: str | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Switched:
    """A model that was asked for and is loaded now: what had to go, the seconds it took, the bytes it takes."""

    model: str
    evicted: tuple[str, ...]
    seconds: float
    memory: int
    server: str = ""
