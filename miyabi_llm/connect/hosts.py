"""MCP hosts: where each of them keeps its servers, and how it wants ours written there. Pure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from miyabi_llm.config import Settings
from miyabi_llm.connect.values import FileSettings, Form
from miyabi_llm.errors import BadUsage

NAME = "miyabi-local-llm"  # what the server is called in the hosts' files
PASSED = ("MIYABI_HOME", "MIYABI_CACHE", "MIYABI_CONFIG")  # hosts start servers with an environment of their own


@dataclass(frozen=True, slots=True)
class Started:
    """The server a host starts by itself: its command, and the variables it needs beside the host's own."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Host:
    """One kind of host. `keys` is where its servers stand in the file; `typed` whether an entry says its transport."""

    user: Callable[[Settings], Path]
    project: str | None
    keys: tuple[str, ...] = ("mcpServers",)
    form: Form = "json"
    typed: bool = False
    after: str = "Restart it."


def host_settings(name: str, server: Started, settings: Settings, project: Path | None = None) -> FileSettings:
    """What belongs into the host's file, of the user or of one project. Raises BadUsage."""
    known = HOSTS.get(name)
    if known is None:
        raise BadUsage(f"{name!r} is no MCP host we know", hint=f"Hosts: {', '.join(HOSTS)}.")
    if project is not None and known.project is None:
        raise BadUsage(f"{name} has no servers of a project", hint="Leave out --project.")
    path = known.user(settings) if project is None else project / str(known.project)
    entry: dict[str, Any] = {"type": "stdio"} if known.typed else {}
    entry |= {"command": server.argv[0], "args": list(server.argv[1:])}
    if server.env:
        entry["env"] = dict(server.env)
    values: Mapping[str, Any] = {NAME: entry}
    for key in reversed(known.keys):
        values = {key: values}
    return FileSettings(path, known.form, values, owned=((*known.keys, NAME),))


def passed(settings: Settings, argv: Sequence[str]) -> Started:
    """The server with those of our own variables that are set now."""
    return Started(tuple(argv), {name: settings.env[name] for name in PASSED if settings.env.get(name)})


def _claude_code(settings: Settings) -> Path:
    folder = settings.env.get("CLAUDE_CONFIG_DIR")
    return (Path(folder) if folder else settings.user_home) / ".claude.json"


def _application(settings: Settings) -> Path:
    """Where applications keep their settings on this system."""
    if sys.platform == "darwin":
        return settings.user_home / "Library" / "Application Support"
    if sys.platform == "win32":
        return Path(settings.env.get("APPDATA") or settings.user_home / "AppData" / "Roaming")
    return Path(settings.env.get("XDG_CONFIG_HOME") or settings.user_home / ".config")


def _codex(settings: Settings) -> Path:
    return Path(settings.env.get("CODEX_HOME") or settings.user_home / ".codex") / "config.toml"


HOSTS: dict[str, Host] = {
    "claude-code": Host(_claude_code, ".mcp.json", typed=True, after="`claude mcp list` shows it."),
    "claude-desktop": Host(
        lambda s: _application(s) / "Claude" / "claude_desktop_config.json", None, after="Restart Claude Desktop."
    ),
    "cursor": Host(lambda s: s.user_home / ".cursor" / "mcp.json", ".cursor/mcp.json"),
    "vscode": Host(
        lambda s: _application(s) / "Code" / "User" / "mcp.json", ".vscode/mcp.json", keys=("servers",), typed=True
    ),
    "windsurf": Host(lambda s: s.user_home / ".codeium" / "windsurf" / "mcp_config.json", None),
    "gemini-cli": Host(lambda s: s.user_home / ".gemini" / "settings.json", ".gemini/settings.json"),
    "codex": Host(_codex, ".codex/config.toml", keys=("mcp_servers",), form="toml"),
}
