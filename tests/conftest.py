"""What all tests share: a home of their own, and the real programs and models."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from miyabi_llm import config
from miyabi_llm.errors import BackendMissing, NetworkError
from miyabi_llm.refs import ModelRef

if TYPE_CHECKING:
    from miyabi_llm.store import Store
    from miyabi_llm.types import Artifact

USER = config.load()  # the environment as the user has it, before any fixture changes it
# A shell that starts the tests in its background makes them ignore Ctrl-C, and all their children with them.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
