"""`vllm_generate` against the real vLLM on this machine's CPU, with a random little model of the real architecture."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from mcp import Client

from miyabi_llm.errors import Missing, NetworkError
from miyabi_llm.store import Store
from miyabi_llm.tools import vllm
from tests import tinyqwen
from tests.backends.test_vllm_real import publish
from tests.conftest import CI, USER
from tests.mcp.clients import Progress, call, session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose store has a model that vLLM can read."""
    try:
        vllm.install(USER)
    except (Missing, NetworkError) as e:
        if CI:
            raise
        pytest.skip(f"vLLM cannot be installed: {e.message}")
    root = tmp_path_factory.mktemp("vllm")
    publish(Store(root / "home" / "store"), tinyqwen.model(root / "m"), "tiny:1")
    return root / "home"


def test_it_is_started_used_and_ended(home: Path) -> None:
    """One start for all: an answer, one cut by time, health, and a switch that finds it ready."""
    urls: list[str] = []

    async def work(client: Client) -> None:
        seen: Progress = []
        ask = {"prompt": "abc", "max_tokens": 8, "temperature": 0, "raw": True, "max_seconds": 900}
        said = await call(client, "vllm_generate", seen, **ask)
        assert (said["model"], said["backend"]) == ("tiny:1", "vllm")
        assert 0 < said["output_tokens"] <= 8
        assert said["prompt_tokens"] > 0
        assert any("starting" in text or "load" in text for _, text in seen)
        again = await call(client, "vllm_generate", **ask)
        assert again["text"] == said["text"]
        assert again["seconds"] < said["seconds"]
        health = await call(client, "health_check")
        (server,) = health["servers"]
        assert (server["backend"], server["answers"], server["ours"]) == ("vllm", True, True)
        switched = await call(client, "model_switch", model="tiny:1", backend="vllm", max_seconds=60)
        assert (switched["was_ready"], switched["url"]) == (True, server["url"])
        urls.append(server["url"])

    session(work, {"MIYABI_HOME": str(home)})
    with pytest.raises(httpx.ConnectError):
        httpx.get(urls[0], timeout=5, trust_env=False)
