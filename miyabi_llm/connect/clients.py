"""The clients: what each of them wants to be told, and which dialect it speaks."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from miyabi_llm.config import Settings
from miyabi_llm.connect.values import GATEWAY, Connection, FileSettings, Target
from miyabi_llm.errors import BadUsage
from miyabi_llm.types import Dialect

NAME = "miyabi-llm"  # what we call ourselves in other programs' files
NO_KEY = "none"  # clients want a key even where the server does not
ANY_MODEL = ("claude-code", "openai", "anthropic")  # clients whose own model names a gateway passes on
AGENT_CTX = 32768  # tokens: below this a coding agent's own instructions leave little room


@dataclass(frozen=True, slots=True)
class Client:
    """A kind of client: the dialect it speaks, how it is told, and `lacking` backends that miss a part it needs."""

    dialect: Dialect
    tell: Callable[[Target, Settings], Connection]
    lacking: Mapping[str, str]


def connection(client: str, target: Target, settings: Settings) -> Connection:
    """How `client` is pointed at `target`. Raises BadUsage for an unknown client, or one the server cannot serve."""
    known = CLIENTS.get(client)
    if known is None:
        raise BadUsage(f"{client!r} is no client we know", hint=f"Clients: {', '.join(CLIENTS)}.")
    endpoint = target.endpoint
    if known.dialect not in endpoint.dialects:
        where = f"{endpoint.model} at {endpoint.base_url}"
        spoken = ", ".join(endpoint.dialects) or "none of our dialects"
        raise BadUsage(
            f"{client} speaks the {known.dialect} dialect; {where} speaks {spoken}",
            hint="`miyabi-llm backend list` shows which backends speak it.",
        )
    if reason := known.lacking.get(endpoint.backend):
        raise BadUsage(f"{client} cannot use {endpoint.backend}: {reason}", hint="Serve with --backend llama-cpp.")
    if not endpoint.model and client not in ANY_MODEL:
        raise BadUsage(
            f"{client} has to be told which model to ask the gateway for",
            hint=f"Name one with --model. It offers: curl {endpoint.base_url}/v1/models",
        )
    return known.tell(target, settings)


def _claude_code(target: Target, settings: Settings) -> Connection:
    model = target.endpoint.model
    names = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))
    env = {"ANTHROPIC_BASE_URL": target.endpoint.base_url, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    # another service's key must not be sent to our server
    unset: list[tuple[str, ...]] = [("env", "ANTHROPIC_API_KEY")]
    if model:
        env |= dict.fromkeys(names, model)  # every size of model it may ask for is the one that is served
    else:
        unset += [("env", name) for name in names]  # it goes on asking for Claude by its own names
    if target.endpoint.backend != GATEWAY:
        # else a value that changes with each request stands at the head of the prompt, and no prompt is ever cached;
        # a gateway pins it for local targets, and leaves it to Claude
        env["CLAUDE_CODE_ATTRIBUTION_HEADER"] = "0"
    values: dict[str, Any] = {"env": env}
    if target.key:
        values["apiKeyHelper"] = shlex.join(target.key.argv)
        unset.append(("env", "ANTHROPIC_AUTH_TOKEN"))  # it would win over the helper
    else:
        env["ANTHROPIC_AUTH_TOKEN"] = NO_KEY
        unset.append(("apiKeyHelper",))
    folder = settings.env.get("CLAUDE_CONFIG_DIR") or settings.user_home / ".claude"
    file = FileSettings(Path(folder) / "settings.json", "json", values, unset=tuple(unset))
    return Connection("claude-code", target.endpoint, (file,), start="claude", notes=_room(target))


def _codex(target: Target, settings: Settings) -> Connection:
    provider: dict[str, Any] = {"name": NAME, "base_url": target.openai, "wire_api": "responses"}
    if target.key.file is not None:
        command, *arguments = target.key.argv
        provider["auth"] = {"command": command, "args": arguments}
    elif target.key.variable is not None:
        provider["env_key"] = target.key.variable
    values: dict[str, Any] = {"model": target.endpoint.model, "model_provider": NAME}
    if target.ctx:
        values["model_context_window"] = target.ctx
    values["model_providers"] = {NAME: provider}
    folder = settings.env.get("CODEX_HOME") or settings.user_home / ".codex"
    file = FileSettings(Path(folder) / "config.toml", "toml", values, owned=(("model_providers", NAME),))
    notes = ("codex asks /v1/responses and nothing else; servers without it answer 404", *_room(target))
    return Connection("codex", target.endpoint, (file,), start="codex", notes=notes)


def _opencode(target: Target, settings: Settings) -> Connection:
    model: dict[str, Any] = {"name": target.endpoint.model}
    if target.ctx:
        model["limit"] = {"context": target.ctx, "output": max(1, target.ctx // 4)}
    options = {"baseURL": target.openai, "apiKey": NO_KEY}
    if target.key.file is not None:
        options["apiKey"] = f"{{file:{target.key.file}}}"
    elif target.key.variable is not None:
        options["apiKey"] = f"{{env:{target.key.variable}}}"
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": NAME,
        "options": options,
        "models": {target.endpoint.model: model},
    }
    values = {"model": f"{NAME}/{target.endpoint.model}", "provider": {NAME: provider}}
    folder = Path(settings.env.get("XDG_CONFIG_HOME") or settings.user_home / ".config") / "opencode"
    path = folder / "opencode.json"
    if not path.exists() and (folder / "opencode.jsonc").exists():
        path = folder / "opencode.jsonc"
    file = FileSettings(path, "json", values, owned=(("provider", NAME),))
    return Connection("opencode", target.endpoint, (file,), start="opencode", notes=_room(target))


def _continue(target: Target, settings: Settings) -> Connection:
    folder = Path(settings.env.get("CONTINUE_GLOBAL_DIR") or settings.user_home / ".continue")
    model: dict[str, Any] = {
        "name": NAME,
        "provider": "openai",
        "model": target.endpoint.model,
        "apiBase": target.openai,
        "apiKey": NO_KEY,
        "roles": ["chat", "edit", "apply"],
    }
    if target.ctx:
        model["defaultCompletionOptions"] = {"contextLength": target.ctx}
    files, notes = [], list(_room(target))
    if target.endpoint.key:
        model["apiKey"] = "${{ secrets.MIYABI_LLM_API_KEY }}"
        key = {"MIYABI_LLM_API_KEY": target.endpoint.key}
        files.append(FileSettings(folder / ".env", "env", key, private=True))
        notes.append("Continue cannot read a key from a file of ours: a copy of it goes into its .env (mode 0600)")
        notes.append("run this again when the server has a new key")
    head = {"name": "Local", "version": "1.0.0", "schema": "v1"}
    values = {**head, "models": [model]}
    files.insert(0, FileSettings(folder / "config.yaml", "yaml", values))
    return Connection("continue", target.endpoint, tuple(files), notes=tuple(notes))


def _openai(target: Target, settings: Settings) -> Connection:
    exports = {"OPENAI_BASE_URL": shlex.quote(target.openai), "OPENAI_API_KEY": target.key.shell}
    notes = _named(target)
    return Connection("openai", target.endpoint, exports=exports, notes=notes)


def _anthropic(target: Target, settings: Settings) -> Connection:
    address = shlex.quote(target.endpoint.base_url)
    exports = {"ANTHROPIC_BASE_URL": address, "ANTHROPIC_API_KEY": target.key.shell}
    notes = _named(target)
    return Connection("anthropic", target.endpoint, exports=exports, notes=notes)


def _ollama(target: Target, settings: Settings) -> Connection:
    exports = {"OLLAMA_HOST": shlex.quote(target.endpoint.base_url)}
    start = f"ollama run {shlex.quote(target.endpoint.model)}"
    return Connection("ollama", target.endpoint, exports=exports, start=start)


def _aider(target: Target, settings: Settings) -> Connection:
    exports = {
        "OPENAI_API_BASE": shlex.quote(target.openai),
        "OPENAI_API_KEY": target.key.shell,
        "AIDER_MODEL": shlex.quote(f"openai/{target.endpoint.model}"),
    }
    return Connection("aider", target.endpoint, exports=exports, start="aider", notes=_room(target))


def _named(target: Target) -> tuple[str, ...]:
    if target.endpoint.model:
        return (f"the model's name is {target.endpoint.model}",)
    return ("ask for models by the names you are used to: the gateway's policy says who answers",)


def _room(target: Target) -> tuple[str, ...]:
    if target.ctx is None or target.ctx >= AGENT_CTX:
        return ()
    return (f"the server's context is {target.ctx} tokens; agents want {AGENT_CTX} and more: serve with --ctx",)


_NO_MESSAGES = {"embedded": "its server has no /v1/messages"}
_NO_RESPONSES = {"embedded": "its server has no /v1/responses"}

CLIENTS: dict[str, Client] = {
    "claude-code": Client("anthropic", _claude_code, _NO_MESSAGES),
    "codex": Client("openai", _codex, _NO_RESPONSES),
    "opencode": Client("openai", _opencode, {}),
    "continue": Client("openai", _continue, {}),
    "aider": Client("openai", _aider, {}),
    "openai": Client("openai", _openai, {}),
    "anthropic": Client("anthropic", _anthropic, _NO_MESSAGES),
    "ollama": Client("ollama", _ollama, {}),
}
