"""Where things lie and what the user set: loaded once by a face, passed down as a value."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from miyabi_llm.errors import BadUsage

DEFAULT_MODEL = "qwen2.5-coder:1.5b"


@dataclass(frozen=True, slots=True)
class Settings:
    """Directories and switches.

    `home` holds the store and the state of running servers, `cache` what can be built or fetched again,
    `config` the user's own files (config.toml, catalog.toml). `env` is the environment as it was found.
    `offline_hint` says how to undo what made us offline, as a sentence for a person.
    """

    home: Path
    cache: Path
    config: Path
    user_home: Path
    default_model: str = DEFAULT_MODEL
    offline: bool = False
    offline_hint: str = "Unset MIYABI_OFFLINE and HF_HUB_OFFLINE."
    hf_endpoint: str = "https://huggingface.co"
    ollama_registry: str = "https://registry.ollama.ai"
    connections: int = 8
    env: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def store(self) -> Path:
        """The content-addressed store."""
        return self.home / "store"

    @property
    def run(self) -> Path:
        """State, logs and key files of running servers."""
        return self.home / "run"


_FILE_KEYS = {"default_model": str, "offline": bool, "hf_endpoint": str, "ollama_registry": str, "connections": int}


def load(env: Mapping[str, str] | None = None, *, file: bool = True) -> Settings:
    """Settings from built-ins < config.toml (unless `file` is False) < environment. Raises BadUsage on an unknown key.

    MIYABI_HOME, MIYABI_CACHE and MIYABI_CONFIG move the three directories; HF_ENDPOINT, HF_HUB_OFFLINE and
    MIYABI_OFFLINE are honoured.
    """
    env = dict(os.environ if env is None else env)
    user_home = Path(env.get("HOME") or env.get("USERPROFILE") or os.path.expanduser("~"))
    config = Path(env["MIYABI_CONFIG"]) if env.get("MIYABI_CONFIG") else _base(env, user_home, "CONFIG", ".config")
    values: dict[str, Any] = _read_file(config / "config.toml") if file else {}
    if env.get("HF_ENDPOINT"):
        values["hf_endpoint"] = env["HF_ENDPOINT"].rstrip("/")
    variables = [name for name in ("MIYABI_OFFLINE", "HF_HUB_OFFLINE") if _true(env.get(name))]
    undo = [f"Unset {' and '.join(variables)}."] if variables else []
    if values.get("offline"):
        undo.append(f"Take `offline = true` out of {config / 'config.toml'}.")
    if undo:
        values |= {"offline": True, "offline_hint": " ".join(undo)}
    home = Path(env["MIYABI_HOME"]) if env.get("MIYABI_HOME") else _base(env, user_home, "DATA", ".local/share")
    cache = Path(env["MIYABI_CACHE"]) if env.get("MIYABI_CACHE") else _base(env, user_home, "CACHE", ".cache")
    return Settings(
        home=home.absolute(), cache=cache.absolute(), config=config.absolute(), user_home=user_home, env=env, **values
    )


def _base(env: Mapping[str, str], user_home: Path, kind: str, usual: str) -> Path:
    if env.get(f"XDG_{kind}_HOME"):
        return Path(env[f"XDG_{kind}_HOME"]) / "miyabi-llm"
    if os.name == "posix" and os.uname().sysname != "Darwin":
        return user_home / usual / "miyabi-llm"
    import platformdirs

    names = {"DATA": platformdirs.user_data_path, "CACHE": platformdirs.user_cache_path}
    return names.get(kind, platformdirs.user_config_path)("miyabi-llm", appauthor=False)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise BadUsage(f"{path}: {e}", hint=f"Mend or remove {path}.") from e
    for key, value in values.items():
        want = _FILE_KEYS.get(key)
        if want is None:
            raise BadUsage(f"{path}: {key}: unknown key", hint=f"Known keys: {', '.join(sorted(_FILE_KEYS))}.")
        if type(value) is not want:
            raise BadUsage(f"{path}: {key}: {value!r} is not a {want.__name__}")
    assert set(_FILE_KEYS) <= {f.name for f in fields(Settings)}
    return values


def _true(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "on")
