"""The real vLLM on this machine's CPU: with a random little model, and with the real 1.5B one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from miyabi_llm import serve
from miyabi_llm.backends.base import Unsupported
from miyabi_llm.backends.vllm import Vllm
from miyabi_llm.config import Settings
from miyabi_llm.errors import Missing, ModelMissing, NetworkError
from miyabi_llm.refs import ModelRef
from miyabi_llm.serve.probe import Probe
from miyabi_llm.store import Store
from miyabi_llm.tools import vllm
from miyabi_llm.types import Adapter, Artifact, Endpoint, LaunchPlan, Secret, ServeSpec, StoredFile
from tests import tinyqwen
from tests.conftest import CI, USER
from tests.serve.conftest import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
KEY = Secret("sk-real-0123456789abcdef")


@pytest.fixture(scope="module")
def program() -> Any:
    """The real one, installed by the product; CI has no excuse not to have it."""
    try:
        vllm.install(USER)
    except (Missing, NetworkError) as e:
        if CI:
            raise
        pytest.skip(f"vLLM cannot be installed: {e.message}")
    return Vllm().detect(USER)


def publish(store: Store, folder: Path, name: str) -> Artifact:
    files = []
    for path in sorted(folder.iterdir()):
        sha256, size, _ = store.adopt(path)
        files.append(StoredFile(path.name, sha256, size))
    artifact = Artifact(ModelRef.parse(name), "safetensors", tuple(files), "local", "test", "2026-01-01")
    store.publish(artifact)
    return artifact


@dataclass(frozen=True)
class Tiny:
    """A running server of the random model with one adapter, and another adapter on disk."""

    plan: LaunchPlan
    settings: Settings
    other: Path

    @property
    def endpoint(self) -> Endpoint:
        return self.plan.endpoint

    def ask(self, path: str, body: dict[str, Any] | None = None, key: str | None = KEY.reveal()) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        url = f"{self.endpoint.base_url}{path}"
        if body is None:
            return httpx.get(url, headers=headers, timeout=60, trust_env=False)
        return httpx.post(url, headers=headers, json=body, timeout=120, trust_env=False)

    def words(self, model: str) -> str:
        body = {"model": model, "prompt": "abc", "max_tokens": 12, "temperature": 0}
        return str(self.ask("/v1/completions", body).json()["choices"][0]["text"])


@pytest.fixture(scope="module")
def tiny(program: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    root = tmp_path_factory.mktemp("vllm")
    store = Store(root / "store")
    artifact = publish(store, tinyqwen.model(root / "m"), "tiny:1")
    spec = ServeSpec(
        artifact, store.files(artifact), "tiny:1", port=free_port(), ctx=512, threads=1, parallel=2, key=KEY,
        adapters=(Adapter("one", tinyqwen.adapter(root / "one")),),
    )  # fmt: skip
    plan = Vllm().plan(spec, program)
    home = Settings(root / "data", USER.cache, root / "config", root, env=dict(os.environ))
    with serve.running(plan, home):
        yield Tiny(plan, home, tinyqwen.adapter(root / "two", seed=3))


def test_it_answers_and_asks_for_the_key_everywhere(tiny: Tiny) -> None:
    assert tiny.ask("/v1/models", key=None).status_code == 401
    prompt = {"model": "tiny:1", "prompt": "abc", "max_tokens": 2}
    for path in ("/v1/completions", "/invocations", "/tokenize"):
        assert tiny.ask(path, prompt, key=None).status_code == 401
        assert tiny.ask(path, prompt, key="wrong").status_code == 401
        assert tiny.ask(path, prompt).status_code == 200
    assert tiny.ask("/metrics", key=None).status_code == 401
    assert tiny.ask("/health", key=None).status_code == 200
    header = {"x-api-key": KEY.reveal()}
    body = {"model": "tiny:1", "max_tokens": 4, "messages": [{"role": "user", "content": "a"}]}
    url = f"{tiny.endpoint.base_url}/v1/messages"
    assert httpx.post(url, headers=header, json=body, timeout=60, trust_env=False).json()["type"] == "message"


def test_no_key_is_in_a_command_line(tiny: Tiny) -> None:
    import psutil

    for process in psutil.Process().children(recursive=True):
        assert KEY.reveal() not in " ".join(process.cmdline())


def test_it_streams(tiny: Tiny) -> None:
    body = {"model": "tiny:1", "max_tokens": 8, "stream": True, "ignore_eos": True,
            "messages": [{"role": "user", "content": "a"}]}  # fmt: skip
    lines = [line for line in tiny.ask("/v1/chat/completions", body).text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 4


def test_adapters_change_its_words_and_come_and_go(tiny: Tiny) -> None:
    plain, one = tiny.words("tiny:1"), tiny.words("one")
    assert plain != one
    files = {p.name: p for p in tiny.other.iterdir()}
    artifact = Artifact(ModelRef.parse("two:1"), "adapter", (), "local", "test", "2026-01-01")
    with Vllm().control(tiny.endpoint) as control:
        assert control.version() == "0.32.0"
        assert [m.name for m in control.models()] == ["tiny:1", "one"]
        assert control.models()[0].ctx == 512
        assert control.add(ServeSpec(artifact, files, "two"), lambda event: None) == "two"
        assert tiny.words("two") not in (plain, one)
        control.unload("two")
        assert [m.name for m in control.models()] == ["tiny:1", "one"]
        with pytest.raises(ModelMissing):
            control.unload("two")
        assert tiny.words("tiny:1") == plain


def test_it_cannot_sleep_on_a_cpu(tiny: Tiny) -> None:
    with Vllm().control(tiny.endpoint) as control, pytest.raises(Unsupported, match="without sleep"):
        control.unload("tiny:1")


def test_the_watchdog_sees_a_request(tiny: Tiny) -> None:
    seen: list[tuple[str, bytes]] = []
    answers: list[httpx.Response] = []
    body = {"model": "tiny:1", "prompt": "abc", "max_tokens": 500, "ignore_eos": True}

    def ask() -> None:
        answers.extend(tiny.ask("/v1/completions", body) for _ in range(6))

    with Probe(tiny.plan) as probe:
        assert probe.slots(5.0)[0] == "idle"
        asked = threading.Thread(target=ask)
        asked.start()
        while asked.is_alive():
            seen.append(probe.slots(5.0))
        asked.join()
        assert [a.json()["usage"]["completion_tokens"] for a in answers] == [500] * 6
        assert len({shown for kind, shown in seen if kind == "busy"}) > 1, seen
        assert probe.slots(5.0)[0] == "idle"


def cli(home: Path, *words: str) -> tuple[list[str], dict[str, str]]:
    env = os.environ | {"MIYABI_HOME": str(home), "MIYABI_CACHE": str(USER.cache), "HOME": str(home)}
    return [sys.executable, "-m", "miyabi_llm", *words], env


def test_kill_9_of_the_supervisor_leaves_nobody(program: Any, tmp_path: Path) -> None:
    """vLLM has grandchildren with names of their own, which outlive it when it is killed alone."""
    import psutil

    publish(Store(tmp_path / "home" / "store"), tinyqwen.model(tmp_path / "m"), "tiny:1")
    argv, env = cli(tmp_path / "home", "serve", "tiny:1", "--port", str(free_port()), "--ctx", "256", "--threads", "1")
    server = subprocess.Popen([*argv, "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert server.stdout is not None
        assert server.stdout.read(1), "it is ready when it says its endpoint"
        tree = psutil.Process(server.pid).children(recursive=True)
        assert sum(p.memory_info().rss > 100 << 20 for p in tree) >= 3  # the server, its engine, its worker
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait()
        server.stdout.close()
    _gone, alive = psutil.wait_procs(tree, timeout=5)
    left = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, left


def test_the_real_model_by_the_product_alone(program: Any, real_store: Store) -> None:
    """pull, convert, serve, chat; the copy is made once and kept."""
    from miyabi_llm.convert import convert
    from miyabi_llm.pull import pull

    try:
        source = pull(ModelRef.parse("qwen2.5-coder:1.5b"), real_store, USER)
    except NetworkError as e:
        if CI:
            raise
        pytest.skip(f"the real model cannot be pulled: {e.message}")
    made = convert(source, real_store, USER)
    assert made.card["checked"]["greedy"]["The capital of Japan is"].startswith(" Tokyo")
    home = real_store.root.parent / "vllm-home"
    env = dict(os.environ)
    settings = replace(USER, home=home, env=env)
    spec = ServeSpec(made, real_store.files(made), "coder", port=free_port(), ctx=1024, threads=2, parallel=1, key=KEY)
    plan = Vllm().plan(spec, program)
    header = {"authorization": f"Bearer {KEY.reveal()}"}
    question = [{"role": "user", "content": "What is the capital of Japan? Answer with one word."}]
    body: dict[str, Any] = {"model": "coder", "max_tokens": 16, "temperature": 0, "messages": question}
    with serve.running(plan, settings):
        url = f"{plan.endpoint.base_url}/v1/chat/completions"
        answer = httpx.post(url, headers=header, json=body, timeout=120, trust_env=False).json()["choices"][0]
        assert "Tokyo" in answer["message"]["content"]
        assert answer["finish_reason"] == "stop", "the end of an answer was carried over"
        streamed = httpx.post(url, headers=header, json=body | {"stream": True}, timeout=120, trust_env=False).text
        parts = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
        assert "Tokyo" in "".join(p["choices"][0]["delta"].get("content") or "" for p in parts if p["choices"])
        tokens = httpx.post(
            f"{plan.endpoint.base_url}/tokenize", headers=header, timeout=30, trust_env=False,
            json={"model": "coder", "prompt": "<tool_call>", "add_special_tokens": False},
        ).json()["tokens"]  # fmt: skip
        assert tokens == [151657], "added tokens were carried over"
