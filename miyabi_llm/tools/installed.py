"""What we installed ourselves: one folder per version, whose metadata file, written last, says it is whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.config import Settings
from miyabi_llm.tools.program import How, Program

MARKER = "installed.json"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Kept:
    """One program of an installation: its file inside the folder, and that file as it was when it was inspected."""

    file: str
    size: int
    mtime_ns: int
    flags: tuple[str, ...]
    environment: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Installation:
    """A finished installation. `machine` is what it fits: the abilities of a processor, or a platform."""

    folder: Path
    how: How
    version: str
    build: int | None
    commit: str | None
    made_at: str
    machine: str
    programs: Mapping[str, Kept]
    source: Mapping[str, Any] = field(default_factory=dict)

    def program(self, name: str) -> Program | None:
        """The program `name` if it is in this installation, and its file is still the one that was inspected."""
        kept = self.programs.get(name)
        if kept is None:
            return None
        path = self.folder / kept.file
        try:
            now = path.stat()
        except OSError:
            return None
        if (now.st_size, now.st_mtime_ns) != (kept.size, kept.mtime_ns):
            return None
        flags, names = frozenset(kept.flags), frozenset(kept.environment)
        return Program(name, path, (str(path),), self.version, self.how, self.build, self.commit, flags, names)

    def write(self) -> None:
        """Publish: the metadata appears whole, last, by rename."""
        body = asdict(self) | {"schema": SCHEMA}
        del body["folder"]
        part = self.folder / f".{MARKER}.part"
        part.write_text(json.dumps(body, indent=1), encoding="utf-8")
        part.replace(self.folder / MARKER)


def root(settings: Settings) -> Path:
    """Where installations of llama.cpp lie."""
    return settings.cache / "llama-cpp"


def read(folder: Path) -> Installation | None:
    """The installation in `folder`, or None where there is no whole one."""
    try:
        body = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        if body.pop("schema") != SCHEMA:
            return None
        programs = {name: Kept(**_tuples(kept)) for name, kept in body.pop("programs").items()}
        return Installation(folder=folder, programs=programs, **body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # unreadable or half-made: as good as not there, and made again by the next install


def all_of(settings: Settings) -> list[Installation]:
    """Every whole installation that fits this machine, newest first."""
    from miyabi_llm import hardware

    try:
        folders = list(root(settings).iterdir())
    except OSError:
        return []
    found = [kept for f in folders if (f / MARKER).is_file() and (kept := read(f)) is not None]
    here = (hardware.machine_key(), hardware.platform_key()) if found else ()
    return sorted((k for k in found if k.machine in here), key=lambda k: k.made_at, reverse=True)


def programs(name: str, settings: Settings) -> Iterator[Program]:
    """The program `name` of each installation that has it, newest installation first."""
    for kept in all_of(settings):
        if (program := kept.program(name)) is not None:
            yield program


def _tuples(kept: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}
