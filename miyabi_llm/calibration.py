"""What servers of this machine were measured to take beside their buffers, kept to correct the next estimate.

One small file, `fit.json` in the cache folder: per processor and backend the last few figures. Removing it returns to
the built-in figure.
"""

from __future__ import annotations

import json
import os
import secrets
import statistics
from contextlib import suppress
from pathlib import Path
from typing import Final

from miyabi_llm import hardware
from miyabi_llm.config import Settings
from miyabi_llm.memory import MIB, RUNTIME
from miyabi_llm.tools import installed

KEPT: Final = 5  # figures per machine and backend: their median is believed
LEAST: Final = 16 * MIB  # below this, and above MOST, something else was measured
MOST: Final = 512 * MIB
_LIMIT: Final = 1 << 16  # bytes of the file
_SCHEMA: Final = 1


def path(settings: Settings) -> Path:
    """Where the figures lie."""
    return settings.cache / "fit.json"


def runtime(settings: Settings, backend: str) -> int:
    """Bytes the program of `backend` takes beside its buffers: the median of what was measured, or the built-in."""
    found = _read(settings).get(_key(backend), [])
    return int(statistics.median(found)) if found else RUNTIME


def remember(settings: Settings, backend: str, measured: int) -> bool:
    """Keep one figure, in bytes; False when it is out of bounds or cannot be written."""
    if not LEAST <= measured <= MOST:
        return False
    figures = _read(settings)
    figures[_key(backend)] = [*figures.get(_key(backend), []), measured][-KEPT:]
    place = path(settings)
    draft = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps({"schema": _SCHEMA, "runtime": figures}, indent=1), encoding="utf-8")
        os.replace(draft, place)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        return False
    return True


def cpu_flags(machine: hardware.Hardware, *, amx: bool) -> frozenset[str]:
    """The processor's abilities that llama-server uses: those for AMX only if it was built with them. Pure."""
    return machine.cpu_flags if amx else frozenset(f for f in machine.cpu_flags if not f.startswith("amx"))


def server_uses_amx(settings: Settings, program: Path | None = None) -> bool:
    """False when the llama.cpp we built leaves AMX out (compilers that get it wrong on this processor).

    `program` is the llama-server that is meant, None for the newest one we installed.
    """
    if program is not None:
        found = next((kept for f in program.parents if (kept := installed.read(f)) is not None), None)
    else:
        found = next(iter(installed.all_of(settings)), None)
    flags = found.source.get("flags", ()) if found is not None else ()
    return not any("-mno-amx" in str(flag) for flag in flags)


def _key(backend: str) -> str:
    return f"{hardware.machine_key()} {backend}"


def _read(settings: Settings) -> dict[str, list[int]]:
    """The figures; empty when there are none, or the file is not one of ours."""
    try:
        with path(settings).open("rb") as file:
            body = json.loads(file.read(_LIMIT))
    except (OSError, ValueError, RecursionError):
        return {}
    rows = body.get("runtime") if isinstance(body, dict) and body.get("schema") == _SCHEMA else None
    if not isinstance(rows, dict):
        return {}
    return {
        key: [n for n in values if type(n) is int and LEAST <= n <= MOST][-KEPT:]
        for key, values in rows.items()
        if isinstance(key, str) and isinstance(values, list)
    }
