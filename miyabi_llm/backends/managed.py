"""Programs we do not install ourselves: by the machine's package manager, else the user's own hands."""

from __future__ import annotations

import platform
import shutil

from miyabi_llm.backends.base import Backend, Way
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing
from miyabi_llm.tools.program import Program
from miyabi_llm.tools.running import Shell
from miyabi_llm.types import Event, OnEvent


def install(backend: Backend, settings: Settings, on_event: OnEvent) -> Program:
    """The program if it is here, else by the first package manager on PATH that has it.

    Raises BackendMissing with every step to take by hand where there is none: an installer script from the network is
    never run for the user.
    """
    if (here := backend.detect(settings).program) is not None:
        return here
    ways = backend.ways(platform.system())
    way = next((w for w in ways if w.kind == "package manager" and _here(w, settings)), None)
    if way is None:
        raise BackendMissing(f"{backend.name} cannot be installed for you here", hint=steps(ways))
    on_event(Event("phase", "install", " ".join(way.command)))
    shell = Shell(settings.cache / "logs" / f"install-{backend.name}.log", settings.env, on_event)
    try:
        code, tail = shell.run(way.command, backend.name)
    except OSError as e:
        code, tail = 1, [str(e)]
    if code != 0:
        raise BackendMissing(f"`{' '.join(way.command)}` ended with {code}: {' '.join(tail[-3:])}", hint=steps(ways))
    if (here := backend.detect(settings).program) is None:
        raise BackendMissing(f"`{' '.join(way.command)}` brought no program we find", hint=way.note or steps(ways))
    return here


def steps(ways: tuple[Way, ...]) -> str:
    """The ways as a person reads them, one a line. Pure."""
    return "\n".join(": ".join(part for part in (" ".join(w.command), w.note) if part) for w in ways)


def _here(way: Way, settings: Settings) -> bool:
    return bool(way.command) and shutil.which(way.command[0], path=settings.env.get("PATH", "")) is not None
