"""What all tests share: a home of their own, and the real programs and models."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from miyabi_llm import config
from miyabi_llm.errors import BackendMissing, Missing, NetworkError
from miyabi_llm.refs import ModelRef

if TYPE_CHECKING:
    from miyabi_llm.config import Settings
    from miyabi_llm.engines.base import Engine
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact

pytest_plugins = ["tests.alone"]
USER = config.load()  # the environment as the user has it, before any fixture changes it
# A shell that starts the tests in its background makes them ignore Ctrl-C, and all their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No example fails for its time: the machine may have other work.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

CI = bool(os.environ.get("CI"))


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's store or configuration, or leaves loopback by accident."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MIYABI_HOME", str(home / "data"))
    monkeypatch.setenv("MIYABI_CONFIG", str(home / "config"))
    monkeypatch.setenv("MIYABI_CACHE", str(USER.cache))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "OLLAMA_MODELS", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def test_cache() -> Path:
    """Where the tests' real models lie between runs, beside the product's own builds."""
    path = USER.cache / "tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.fixture(scope="session")
def real_server() -> Path:
    """llama-server, as the product finds it on this machine; CI has no excuse not to have it."""
    from miyabi_llm.tools import llama_cpp

    try:
        return llama_cpp.find("llama-server", USER).path
    except BackendMissing as e:
        if CI:
            raise
        pytest.skip(f"no llama-server: {e.message}. `miyabi-llm backend install llama-cpp` brings it")


@pytest.fixture(scope="session")
def real_store(test_cache: Path) -> Store:
    """A store that outlives the tests, so that real models are pulled once."""
    from miyabi_llm.store import Store

    return Store(test_cache / "store")


@pytest.fixture(scope="session")
def real_artifact(real_store: Store) -> Artifact:
    """A small real model, Gemma 3 270M, brought by the product's own pull."""
    from miyabi_llm.pull import pull

    try:
        return pull(ModelRef.parse("gemma3:270m"), real_store, USER)
    except NetworkError as e:
        if CI:
            raise
        pytest.skip(f"the small real model cannot be pulled: {e.message}")


@pytest.fixture(scope="session")
def real_model(real_store: Store, real_artifact: Artifact) -> Path:
    """The small real model's GGUF file."""
    return next(iter(real_store.files(real_artifact).values()))


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine `trl` with its environment, made by the product's own installer; it stays in the user's cache."""
    from miyabi_llm.engines.trl import Trl

    made = Trl()
    try:
        made.install(USER)
    except (Missing, NetworkError) as e:
        if CI:
            raise
        pytest.skip(f"no environment to train in: {e.message}. `miyabi-llm finetune install` makes it")
    return made


@pytest.fixture(scope="session")
def small_threads() -> Settings:
    """Settings under which a child computes with one thread: for a tiny model several only wait for each other."""
    return dataclasses.replace(USER, env={**USER.env, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="session")
def qwen(real_store: Store) -> Artifact:
    """Qwen2.5-Coder 1.5B, 1.1 GB: the user's own copy where there is one, else pulled once for the tests."""
    from miyabi_llm.errors import ModelMissing
    from miyabi_llm.pull import pull
    from miyabi_llm.store import Store

    ref = ModelRef.parse("qwen2.5-coder:1.5b")
    try:
        return Store(USER.store).find(ref)
    except ModelMissing:
        pass
    try:
        return pull(ref, real_store, USER)
    except NetworkError as e:
        if CI:
            raise
        pytest.skip(f"the real model cannot be pulled: {e.message}")


@pytest.fixture(scope="session")
def qwen_gguf(qwen: Artifact, real_store: Store) -> Path:
    """Its GGUF file."""
    from miyabi_llm.errors import ModelMissing
    from miyabi_llm.store import Store

    try:
        store = Store(USER.store)
        store.find(qwen.ref)
    except ModelMissing:
        store = real_store
    return next(iter(store.files(qwen).values()))


@pytest.fixture(scope="session")
def tiny_base(engine: Engine, small_threads: Settings, qwen: Artifact, qwen_gguf: Path) -> Path:
    """The HF folder of a tiny Qwen2: random weights from a seed, the real tokenizer; read it, never write to it."""
    from miyabi_llm.engines.tiny import Tiny, make

    return make(qwen_gguf, qwen.files[0].sha256, Tiny(), engine, small_threads)
