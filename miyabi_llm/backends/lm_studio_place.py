"""Where LM Studio is: its command `lms`, and the server of its daemon."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from miyabi_llm.backends.near import answers, on_path
from miyabi_llm.config import Settings
from miyabi_llm.tools.program import Program, Unusable, run_briefly
from miyabi_llm.types import Endpoint, Secret

PROGRAM = "lms"
PORT = 1234  # its own default
GREETING = "/lmstudio-greeting"
TOKEN = "LM_API_TOKEN"  # the variable its documentation uses for a token made in its settings
VERSION_S = 2.0  # seconds `lms` may take to say its version
INSTALL_HINT = "Run `miyabi-llm backend install lm-studio`: it installs it, or says how."


def find_lms(path: str | None, home: Path) -> Path | None:
    """`lms` in the folders of `path` (None: this process's PATH), else where LM Studio puts it."""
    return on_path(PROGRAM, path, home / ".lmstudio/bin/lms", home / ".cache/lm-studio/bin/lms")


def inspect(path: Path, settings: Settings) -> Program | Unusable:
    """Whether `path` is LM Studio's `lms`: others have that name too. Asking does not wake the daemon."""
    said = run_briefly((str(path), "version", "--json"), timeout=VERSION_S, env=settings.env)
    if said.trouble:
        return Unusable(PROGRAM, path, said.trouble)
    version = read_version(said.text)
    if said.code != 0 or version is None:
        return Unusable(PROGRAM, path, "is not LM Studio's: `lms version --json` says no version")
    return Program(PROGRAM, path, (str(path),), version, "path")


def read_version(text: str) -> str | None:
    """The version in `{"version": "…"}`, its last line; None when it is none. Pure."""
    try:
        said = json.loads((text.strip().splitlines() or [""])[-1])
    except (ValueError, RecursionError):
        return None
    version = said.get("version") if isinstance(said, dict) else None
    return version if isinstance(version, str) else None


def read_port(text: str) -> int:
    """The port its server last had, from `http-server-config.json`; its default when that says none. Pure."""
    try:
        said = json.loads(text)
    except (ValueError, RecursionError):
        return PORT
    port = said.get("port") if isinstance(said, dict) else None
    return port if isinstance(port, int) and not isinstance(port, bool) and 0 < port < 65536 else PORT


def find_running(settings: Settings) -> tuple[Endpoint | None, str]:
    """The server where it last ran, and why it cannot be used. Never raises."""
    url = f"http://127.0.0.1:{_last_port(settings.user_home)}"
    status, said = answers(url, GREETING)
    if status != 200 or not isinstance(said, dict) or said.get("lmstudio") is not True:
        return None, ""
    endpoint = Endpoint(url, "", ("openai", "anthropic"), backend="lm-studio")
    if answers(url, "/v1/models")[0] not in (401, 403):
        return endpoint, ""
    token = settings.env.get(TOKEN)
    if not token:
        return endpoint, f"asks for a token: make one in its server settings and put it into {TOKEN}"
    refused = answers(url, "/v1/models", token=token)[0] in (401, 403)
    return replace(endpoint, key=Secret(token)), f"refuses the token in {TOKEN}" if refused else ""


def _last_port(home: Path) -> int:
    for folder in (".lmstudio", ".cache/lm-studio"):
        try:
            with (home / folder / ".internal/http-server-config.json").open(encoding="utf-8") as file:
                return read_port(file.read(1 << 16))
        except (OSError, UnicodeDecodeError):
            continue
    return PORT
