"""What connecting knows: which server, where its key lies, what a client wants to be told, and what was written."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from miyabi_llm.types import Endpoint

Form = Literal["json", "toml", "yaml", "env"]
GATEWAY = "gateway"  # the backend of an endpoint that passes the client's own model names on
Keys = tuple[str, ...]  # where a setting stands: the keys from the top of the file down to it


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a client finds the server's key: in a file or in a variable; nowhere when the server has none."""

    file: Path | None = None
    variable: str | None = None

    def __bool__(self) -> bool:
        return self.file is not None or self.variable is not None

    @property
    def argv(self) -> tuple[str, ...]:
        """A command that prints the key; empty when there is none."""
        if self.file is not None:
            return ("cat", str(self.file))
        return ("printenv", self.variable) if self.variable is not None else ()

    @property
    def shell(self) -> str:
        """The key as a word of a shell command, read when the command runs."""
        return f'"$({shlex.join(self.argv)})"' if self else "none"


@dataclass(frozen=True, slots=True)
class Target:
    """The server a client is pointed at. `ctx` is its context in tokens, where known."""

    endpoint: Endpoint
    ctx: int | None = None
    key: KeySource = field(default_factory=KeySource)

    @property
    def openai(self) -> str:
        """The address as clients of the OpenAI dialect want it, ending in /v1."""
        return f"{self.endpoint.base_url}/v1"


@dataclass(frozen=True, slots=True)
class FileSettings:
    """What belongs into one file of a client.

    `values` are nested by key. They are merged leaf by leaf, except below `owned`, which are replaced whole because
    nothing else writes there; a list of objects is merged by their `name`. `unset` are settings that would defeat
    ours and are taken out. `private` files hold a key, and are made readable by their owner only.
    """

    path: Path
    form: Form
    values: Mapping[str, Any]
    owned: tuple[Keys, ...] = ()
    unset: tuple[Keys, ...] = ()
    private: bool = False


@dataclass(frozen=True, slots=True)
class Connection:
    """How one client is pointed at one server: files to merge into, or variables to export (shell words)."""

    client: str
    endpoint: Endpoint
    files: tuple[FileSettings, ...] = ()
    exports: Mapping[str, str] = field(default_factory=dict)
    start: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Written:
    """What became of one file: `backup` is what it was before, `removed` the settings that were taken out."""

    path: Path
    changed: bool
    backup: Path | None = None
    removed: tuple[str, ...] = ()
