"""The table of backends, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.backends.base import Backend, Detected
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.tools.program import Unusable
from miyabi_llm.types import Artifact

ENTRY_POINTS = "miyabi_llm.backends.v1"


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend that will serve, how it was found, and why this one."""

    backend: Backend
    detected: Detected
    reason: str


def _llama_cpp() -> Backend:
    from miyabi_llm.backends.llama_cpp import LlamaCpp

    return LlamaCpp()


# In the order of preference. The value makes the backend: `list` and `--help` must not import what they do not use.
_OWN: dict[str, Callable[[], Backend]] = {"llama-cpp": _llama_cpp}


def table() -> dict[str, Backend]:
    """Every backend by name: our own in the order of preference, then those of other packages.

    A package that cannot be loaded is an error that names it: a backend that is silently gone is worse.
    """
    from importlib.metadata import entry_points

    backends = {name: make() for name, make in _OWN.items()}
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            made = entry.load()()
        except Exception as e:  # another package's code: anything may come out of it
            raise BackendMissing(
                f"the backend {entry.name!r} of {entry.value} cannot be loaded: {type(e).__name__}: {e}",
                hint=f"Mend or uninstall the package that provides {entry.value}.",
            ) from e
        if not isinstance(made, Backend) or made.name in backends:
            raise BackendMissing(f"{entry.value} is no backend of its own name", hint=f"Entry points {ENTRY_POINTS}.")
        backends[made.name] = made
    return backends


def get(name: str) -> Backend:
    """The backend of that name. Raises BadUsage."""
    known = table()
    if name not in known:
        raise BadUsage(f"{name!r} is no backend", hint=f"Backends: {', '.join(known)}.")
    return known[name]


def choose(artifact: Artifact, name: str | None, settings: Settings) -> Choice:
    """The backend to serve `artifact` with: the one named, else the first that accepts its format and is installed.

    Raises BadUsage when the named one does not accept the format, BackendMissing when none can be used.
    """
    fitting = [b for b in ([get(name)] if name else table().values()) if artifact.format in b.accepts]
    if not fitting:
        takes = f"{name} serves {', '.join(sorted(get(name).accepts))}" if name else "no backend serves it"
        raise BadUsage(f"{artifact.ref} is a {artifact.format} model; {takes}", hint="See `miyabi-llm backend list`.")
    missing = []
    for backend in fitting:
        detected = backend.detect(settings)
        if detected.ok:
            why = "you asked for it" if name else f"the first installed backend that serves {artifact.format}"
            return Choice(backend, detected, why)
        missing.append(f"{backend.name}: {detected.reason}")
    raise BackendMissing(
        f"no backend for {artifact.format} models is ready: {'; '.join(missing)}",
        hint=f"Run `miyabi-llm backend install {fitting[0].name}`.",
    )


@dataclass(frozen=True, slots=True)
class Status:
    """One backend as `backend list` tells it. `tools` maps its other programs to their paths."""

    name: str
    ok: bool
    reason: str
    version: str
    build: int | None
    commit: str | None
    how: str
    path: Path | None
    accepts: tuple[str, ...]
    rejected: tuple[Unusable, ...]
    tools: Mapping[str, Path]


def status(settings: Settings) -> list[Status]:
    """Every backend as it stands on this machine."""
    return [_status(backend, settings) for backend in table().values()]


def _status(backend: Backend, settings: Settings) -> Status:
    found = backend.detect(settings)
    program = found.program
    return Status(
        name=backend.name,
        ok=found.ok,
        reason=found.reason,
        version=program.version if program else "",
        build=program.build if program else None,
        commit=program.commit if program else None,
        how=program.how if program else "",
        path=program.path if program else None,
        accepts=tuple(sorted(backend.accepts)),
        rejected=found.rejected,
        tools=found.tools,
    )
