"""Isolated Python environments for tools, made by the user's own package index."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from miyabi_llm.errors import Missing
from miyabi_llm.tools.running import Shell

MARKER = "complete"


@dataclass(frozen=True, slots=True)
class Env:
    """An environment that is there: its folder."""

    folder: Path

    @property
    def bin(self) -> Path:
        """Where its programs lie."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.bin / ("python.exe" if os.name == "nt" else "python")

    def program(self, name: str) -> Path | None:
        """A program of it, if it has one of that name."""
        found = shutil.which(name, path=str(self.bin))
        return Path(found) if found else None


def make(root: Path, name: str, packages: Sequence[str], shell: Shell) -> Env:
    """The environment `name` with `packages`, made once under `root`; the caller holds the lock.

    Raises Missing when Python cannot make environments here or the index does not give the packages.
    """
    base: str = getattr(sys, "_base_executable", None) or sys.executable
    key = hashlib.sha256("\n".join((sys.version, base, *packages)).encode()).hexdigest()[:10]
    made = Env(root / f"{name}-{key}")
    if (made.folder / MARKER).is_file() and made.python.exists():
        return made
    shutil.rmtree(made.folder, ignore_errors=True)
    made.folder.parent.mkdir(parents=True, exist_ok=True)
    commands: list[tuple[str, ...]] = [(base, "-m", "venv", str(made.folder))]
    if packages:
        commands.append((str(made.python), *PIP, "install", *RETRIES, "--only-binary", ":all:", *packages))
    for command in commands:
        code, tail = shell.run(command, f"environment {name}")
        if code != 0:
            shutil.rmtree(made.folder, ignore_errors=True)
            raise Missing(
                f"no environment for {name}: {tail[-1] if tail else f'exit code {code}'}",
                hint=f"See {shell.log}. On Debian and Ubuntu: `sudo apt-get install python3-venv`.",
            )
    (made.folder / MARKER).touch()
    return made


PIP = ("-m", "pip", "--disable-pip-version-check", "--no-input")
RETRIES = ("--retries", "1", "--timeout", "20")  # no network must be known in seconds, not minutes
