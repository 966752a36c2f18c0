"""`ollama_generate` and `model_switch` against the stand-in for Ollama: what it runs itself is asked, nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client

from miyabi_llm.backends.base import Unsupported
from miyabi_llm.backends.ollama_api import OllamaApi
from miyabi_llm.backends.ollama_values import Create
from miyabi_llm.errors import NetworkError, Unsafe
from miyabi_llm.mcp.local import refuse_remote, refuse_remote_model
from miyabi_llm.types import Endpoint, silent
from tests import ggufs
from tests.mcp.clients import call, refused, session
from tests.ollamad import Ollamad


@pytest.fixture
def ollama(tmp_path: Path) -> Iterator[Ollamad]:
    gguf = tmp_path / "tiny.gguf"
    gguf.write_bytes(ggufs.tiny())
    sha = hashlib.sha256(gguf.read_bytes()).hexdigest()
    with Ollamad(tmp_path / "models") as fake, OllamaApi(Endpoint(fake.url, "")) as api:
        api.upload(sha, gguf, silent)
        for name in ("qwen:tiny", "gemma:tiny"):
            api.create(Create(name, files={"tiny.gguf": sha}), silent)
        yield fake


def asked(fake: Ollamad) -> list[str]:
    """The models whose prompt it was given."""
    return [body["model"] for method, path, body in fake.heard if path == "/v1/chat/completions"]


def test_what_it_runs_itself_is_asked(ollama: Ollamad) -> None:
    ollama.stub("remote:latest", "https://ollama.com:443")
    ollama.stub("disguised:latest", "https://ollama.com:443")

    async def work(client: Client) -> None:
        said = await call(client, "ollama_generate", prompt="Hello", model="qwen:tiny")
        assert (said["text"], said["model"], said["backend"]) == ("a", "qwen:tiny", "ollama")
        assert (said["finish_reason"], said["output_tokens"], said["prompt_tokens"]) == ("stop", 1, None)
        assert (await call(client, "ollama_generate", prompt="Hello"))["model"] == "qwen:tiny"  # the one that is loaded
        for name in ("remote", "disguised", "kimi:cloud", "x:480b-cloud"):
            words = await refused(client, "ollama_generate", prompt="a secret", model=name)
            assert "does not run on this machine" in words, words
            words = await refused(client, "model_switch", model=name, backend="ollama")
            assert "does not run on this machine" in words
        words = await refused(client, "ollama_generate", prompt="Hello", model="nobody")
        assert "ollama pull nobody" in words
        assert "qwen:tiny" in words
        models = await call(client, "list_models")
        assert {m["name"]: m["state"] for m in models["models"]} == {"qwen:tiny": "loaded", "gemma:tiny": "unloaded"}
        assert sorted(models["left_out"]) == [
            "disguised:latest: runs at https://ollama.com:443",
            "remote:latest: runs at https://ollama.com:443",
        ]
        switched = await call(client, "model_switch", model="gemma:tiny", unload_others=True)
        assert (switched["backend"], switched["unloaded"], switched["was_ready"]) == ("ollama", ["qwen:tiny"], False)
        assert (await call(client, "ollama_generate", prompt="Hello"))["model"] == "gemma:tiny"

    session(work, {"OLLAMA_HOST": ollama.url, "PATH": "/usr/bin:/bin"})
    assert asked(ollama) == ["qwen:tiny", "qwen:tiny", "gemma:tiny"]


def test_an_ollama_elsewhere_is_not_asked(ollama: Ollamad) -> None:
    """A private address is near enough for `run`, but not for these tools."""

    async def work(client: Client) -> None:
        words = await refused(client, "ollama_generate", prompt="a secret", model="qwen:tiny")
        assert "is not this machine" in words or "no server answers" in words or "not in this house" in words

    for far in ("http://192.0.2.1:11434", "https://ollama.com", "10.255.255.1:11434"):
        session(work, {"OLLAMA_HOST": far, "PATH": "/usr/bin:/bin"})


def test_which_one_is_meant_has_to_be_said(ollama: Ollamad) -> None:
    async def work(client: Client) -> None:
        words = await refused(client, "ollama_generate", prompt="Hello")
        assert "Name one with `model`" in words
        assert "gemma:tiny" in words

    session(work, {"OLLAMA_HOST": ollama.url, "PATH": "/usr/bin:/bin"})
    assert asked(ollama) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "http://127.9.9.9:1"])
def test_this_machine(url: str) -> None:
    refuse_remote(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.1:1", "http://192.0.2.1", "http://0.0.0.0:1", "http://8.8.8.8", "http://[::ffff:8.8.8.8]:1"]
)
def test_not_this_machine(url: str) -> None:
    with pytest.raises(Unsafe, match="is not this machine"):
        refuse_remote(url)


def test_no_name() -> None:
    for url in ("http://", "http://nobody.invalid:1", "nonsense"):
        with pytest.raises((NetworkError, Unsafe)):
            refuse_remote(url)


def test_a_name_says_nothing_about_where_it_runs(ollama: Ollamad) -> None:
    ollama.stub("local-looking", "https://ollama.com:443")
    with pytest.raises(Unsupported, match="not run on this machine"):
        refuse_remote_model(Endpoint(ollama.url, "local-looking"))
