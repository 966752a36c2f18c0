"""The table of backends, and the choice among them."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.backends.base import Backend, Capabilities, Detected, Way
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage
from miyabi_llm.tools.program import Unusable
from miyabi_llm.types import Artifact, Endpoint

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


def _vllm() -> Backend:
    from miyabi_llm.backends.vllm import Vllm

    return Vllm()


def _ollama() -> Backend:
    from miyabi_llm.backends.ollama import Ollama

    return Ollama()


def _lm_studio() -> Backend:
    from miyabi_llm.backends.lm_studio import LmStudio

    return LmStudio()


def _localai() -> Backend:
    from miyabi_llm.backends.localai import LocalAI

    return LocalAI()


def _embedded() -> Backend:
    from miyabi_llm.backends.embedded import Embedded

    return Embedded()


# In the order of preference: llama-cpp, vllm, ollama, lm-studio, localai, embedded.
# The value makes the backend: `list` and `--help` must not import what they do not use.
_OWN: dict[str, Callable[[], Backend]] = {
    "llama-cpp": _llama_cpp,
    "vllm": _vllm,
    "ollama": _ollama,
    "lm-studio": _lm_studio,
    "localai": _localai,
    "embedded": _embedded,
}


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


def choose(artifact: Artifact, name: str | None, settings: Settings, *, nodes: int = 1) -> Choice:
    """The backend to serve `artifact` with, and why: the one named, else the best that is ready on this machine.

    `auto` (or None) looks at the format and at what is ready: llama.cpp for GGUF, vLLM for safetensors, of several the
    first of the table, the embedded one only when no other is there; with `nodes` > 1 those that span machines.
    Raises BadUsage when none accepts the format, BackendMissing when none can be used.
    """
    name = None if name == "auto" else name
    fitting = [b for b in ([get(name)] if name else table().values()) if artifact.format in b.accepts]
    if nodes > 1 and name is None:
        fitting = [b for b in fitting if b.capabilities.nodes]
    if not fitting:
        raise _nobody(artifact, name, nodes)
    missing: list[tuple[str, str]] = []
    for backend in fitting:
        detected = backend.detect(settings)
        if detected.ok and name is None and detected.running is None and not backend.capabilities.start:
            missing.append((backend.name, "is not running, and is woken only when it is named"))
        elif detected.ok:
            return Choice(backend, detected, _why(backend, detected, artifact, missing, asked=name is not None))
        else:
            missing.append((backend.name, detected.reason))
    told = "; ".join(f"{n}: {reason}" for n, reason in missing)
    raise BackendMissing(
        f"no backend for {artifact.format} models is ready: {told}",
        hint=f"Run `miyabi-llm backend install {fitting[0].name}`.",
    )


def _nobody(artifact: Artifact, name: str | None, nodes: int) -> BadUsage:
    hint = "See `miyabi-llm backend list`."
    if nodes > 1:
        return BadUsage(f"no backend serves a {artifact.format} model on {nodes} machines", hint=hint)
    if artifact.format == "gguf" and name == "vllm":
        hint = f"Make a copy it can read: `miyabi-llm convert {artifact.ref} --to safetensors`."
    takes = f"{name} serves {', '.join(sorted(get(name).accepts))}" if name else "no backend serves it"
    return BadUsage(f"{artifact.ref} is a {artifact.format} model; {takes}", hint=hint)


def _why(backend: Backend, found: Detected, artifact: Artifact, passed: list[tuple[str, str]], *, asked: bool) -> str:
    """The reason for a choice, in words."""
    if asked:
        return "you asked for it"
    there = "runs already" if found.running is not None else "is installed"
    why = f"it serves {artifact.format} and {there}"
    return why + (f"; not {', '.join(f'{n} ({reason})' for n, reason in passed)}" if passed else "")


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
    running: Endpoint | None
    capabilities: Capabilities
    ways: tuple[Way, ...]


def status(settings: Settings) -> list[Status]:
    """Every backend as it stands on this machine; they are looked for at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    known = list(table().values())
    with ThreadPoolExecutor(max_workers=len(known)) as pool:
        return list(pool.map(lambda backend: _status(backend, settings), known))


def _status(backend: Backend, settings: Settings) -> Status:
    found = backend.detect(settings)
    program = found.program
    return Status(
        name=backend.name,
        ok=found.ok,
        reason=found.reason,
        version=found.version or (program.version if program else ""),
        build=program.build if program else None,
        commit=program.commit if program else None,
        how=program.how if program else "",
        path=program.path if program else None,
        accepts=tuple(sorted(backend.accepts)),
        rejected=found.rejected,
        tools=found.tools,
        running=found.running,
        capabilities=backend.capabilities,
        ways=backend.ways(platform.system()),
    )
