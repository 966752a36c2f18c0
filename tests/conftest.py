"""What all tests share: a home of their own, and the real programs and models."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's store or configuration, or leaves loopback by accident."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MIYABI_HOME", str(home / "data"))
    monkeypatch.setenv("MIYABI_CONFIG", str(home / "config"))
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HF_ENDPOINT", "OLLAMA_MODELS", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)
    return


@pytest.fixture(scope="session")
def test_cache() -> Path:
    """Where the tests' real models lie between runs, beside the product's own builds."""
    from miyabi_llm import config

    path = config.load(os.environ).cache / "tests"
    path.mkdir(parents=True, exist_ok=True)
    return path
