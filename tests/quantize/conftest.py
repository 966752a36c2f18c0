"""The real programs and little real models."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from miyabi_llm import config
from miyabi_llm.errors import BackendMissing
from miyabi_llm.quantize import Source, open_source
from miyabi_llm.quantize.run import Shop
from miyabi_llm.refs import ModelRef
from miyabi_llm.store import Store
from miyabi_llm.tools import llama_cpp, quantizing
from miyabi_llm.tools.program import Program

from ..conftest import CI, USER
from .tinylm import write


@pytest.fixture(scope="session")
def programs() -> dict[str, Program]:
    """llama-quantize, llama-perplexity and llama-bench, as the product finds them."""
    try:
        return {name: llama_cpp.find(name, USER) for name in quantizing.PROGRAMS}
    except BackendMissing as e:
        if CI:
            raise
        pytest.skip(f"{e.message}. `miyabi-llm backend install llama-cpp --tools` brings it")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model at full precision: its divergences are real, its words are not."""
    return write(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def shop(programs: dict[str, Program], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    """A store and a cache of our own; one thread, so that the same work gives the same digits."""
    monkeypatch.setenv("MIYABI_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MIYABI_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "llama-cpp").symlink_to(USER.cache / "llama-cpp")  # what is built is not built again
    settings = config.load()
    shop = Shop(Store(settings.store), settings, programs, threads=1)
    yield shop
    left = [p for folder in (shop.store.layout.parts, settings.cache / "quantize" / "work") if folder.is_dir()
            for p in folder.iterdir() if p.name != ".lock"]  # fmt: skip
    assert not left, left


@pytest.fixture
def source(tiny: Path, shop: Shop) -> Source:
    return open_source(ModelRef.parse(str(tiny)), shop.store, shop.settings.user_home)
