"""Questions and commands to a running front, from another process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from miyabi_llm.backends.wire import LOAD_S, Wire
from miyabi_llm.config import Settings
from miyabi_llm.errors import BadUsage, Missing, MiyabiError
from miyabi_llm.serve.many.values import BACKEND, ModelRow, Switched
from miyabi_llm.serve.state import Record, RunDir
from miyabi_llm.types import Endpoint

LOOK_S = 2.0


def rows(endpoint: Endpoint) -> tuple[ModelRow, ...]:
    """How every model of the front stands; empty when it does not answer soon."""
    try:
        with Wire(BACKEND, endpoint) as wire:
            said = wire.get("/models", timeout=LOOK_S)
    except MiyabiError:
        return ()
    found = said.get("data") if isinstance(said, dict) else None
    return tuple(row for r in found or () if (row := _row(r)) is not None)


def switch(settings: Settings, wanted: Sequence[str], server: str | None = None) -> Switched:
    """Have a model of a running front loaded; returns what had to go, the seconds and the bytes.

    `wanted` are the names it may have there. Raises Missing when no such server or model is there, BadUsage when
    several servers could be meant, ServerFailed with the server's words.
    """
    folder = RunDir(settings.run)
    records = [r for r in folder.all() if r.backend == BACKEND and r.alive and r.state == "ready"]
    if server is not None:
        records = [r for r in records if r.name == server]
    if not records:
        what = f"{server!r} is no running server of many models" if server else "no server of many models runs"
        raise Missing(what, hint="`miyabi-llm serve REF REF --detach` starts one.")
    found = [(r, name) for r in records if (name := _named(folder, r, wanted))]
    if not found:
        known = sorted({row.id for r in records for row in rows(folder.endpoint(r))})
        raise Missing(f"no running server has {wanted[0]}", hint=f"There are {', '.join(known)}.")
    if len(found) > 1:
        raise BadUsage(
            f"several servers have {wanted[0]}", hint=f"Name one with --name: {', '.join(r.name for r, _ in found)}."
        )
    record, name = found[0]
    with Wire(BACKEND, folder.endpoint(record)) as wire:
        said = wire.post("/models/load", {"model": name}, timeout=LOAD_S)
    known_fields = {f.name for f in fields(Switched)}
    body = {k: v for k, v in said.items() if k in known_fields}
    body["evicted"] = tuple(body.get("evicted", ()))
    return replace(Switched(**body), server=record.name)


def _named(folder: RunDir, record: Record, wanted: Sequence[str]) -> str | None:
    for row in rows(folder.endpoint(record)):
        if row.id in wanted or row.ref in wanted:
            return row.id
    return None


def _row(body: Any) -> ModelRow | None:
    names = {f.name for f in fields(ModelRow)}
    try:
        return ModelRow(**{k: v for k, v in body.items() if k in names})
    except (TypeError, AttributeError):
        return None
