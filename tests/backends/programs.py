"""Programs of other makers for the tests of their backends: the stand-in, or the real one when it is on PATH."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from hypothesis import strategies as st

from miyabi_llm import config
from miyabi_llm.config import Settings
from miyabi_llm.refs import ModelRef
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.types import Artifact, ServeSpec, StoredFile
from tests.ggufs import tiny
from tests.tools.stubs import script

TESTS = Path(__file__).parent.parent
SYSTEM = "/usr/bin:/bin"
# Whatever a server may say.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@dataclass(frozen=True)
class Room:
    """A home with one program on PATH, and a model; `real` says which kind of program it is."""

    home: Path
    settings: Settings
    model: Path
    real: bool

    def spec(self, port: int, alias: str = "tiny:1", **fields: object) -> ServeSpec:
        file = StoredFile(self.model.name, hash_file(self.model), self.model.stat().st_size)
        artifact = Artifact(ModelRef.parse(f"file:{self.model}"), "gguf", (file,), "local", "test", "2026-01-01")
        made = ServeSpec(artifact, {file.name: self.model}, alias, "127.0.0.1", port, ctx=512, work=self.home / "work")
        return replace(made, **fields)  # type: ignore[arg-type]


def stand_in(home: Path, name: str, file: str, env: Mapping[str, str] | None = None) -> Room:
    """A room where `name` is the stand-in `file` of the tests."""
    script(home / "bin" / name, f'exec "{sys.executable}" -I -S "{TESTS / file}" "$@"')
    model = home / "models" / "tiny.gguf"
    model.parent.mkdir(parents=True, exist_ok=True)
    model.write_bytes(tiny())
    return Room(home, _settings(home, f"{home / 'bin'}:{SYSTEM}", env), model, real=False)


def real(home: Path, name: str, model: Path, env: Mapping[str, str] | None = None) -> Room:
    """A room with the real program; skips where there is none."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not on PATH: only its stand-in was run")
    return Room(home, _settings(home, os.environ["PATH"], env), model, real=True)


def _settings(home: Path, path: str, env: Mapping[str, str] | None) -> Settings:
    words = {"HOME": str(home), "PATH": path, "MIYABI_HOME": str(home / "data"), "MIYABI_CACHE": str(home / "cache")}
    return config.load(words | {"MIYABI_CONFIG": str(home / "config")} | dict(env or {}))
