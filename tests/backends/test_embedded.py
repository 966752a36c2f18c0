"""The embedded backend, for real: llama-cpp-python in a child, with the small real model."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from miyabi_llm import serve
from miyabi_llm.backends.base import Detected, Unsupported
from miyabi_llm.backends.embedded import Embedded
from miyabi_llm.client import Client, Message
from miyabi_llm.config import Settings
from miyabi_llm.errors import BackendMissing, BadUsage, PromptTooLong, ServerFailed
from miyabi_llm.refs import ModelRef
from miyabi_llm.serve.probe import Probe
from miyabi_llm.store import Store
from miyabi_llm.tools.program import Program
from miyabi_llm.types import Adapter, Artifact, Endpoint, LaunchPlan, Secret, ServeSpec, StoredFile, plain
from tests.conftest import CI, USER
from tests.serve.conftest import all_gone, free_port, processes

CTX = 512
TOKYO = {"prompt": "The capital of Japan is", "temperature": 0, "max_tokens": 8}
ENDLESS = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 400}
FOUND = Detected("embedded", True, program=Program("embedded", Path("/p"), ("/p", "-I", "/c.py"), "0.3.36", "build"))


def spec(model: Path, alias: str = "m", **more: Any) -> ServeSpec:
    file = StoredFile(model.name, "0" * 64, 1)  # type: ignore[arg-type]
    artifact = Artifact(ModelRef.parse("hf:a/b/m.gguf"), "gguf", (file,), "verified", "test", "2026-01-01")
    return ServeSpec(artifact, {model.name: model}, alias, **more)


@pytest.fixture(scope="module")
def found() -> Detected:
    """The backend as it is on this machine; CI has no excuse not to have it."""
    detected = Embedded().detect(USER)
    if not detected.ok:
        message = f"no embedded backend: {detected.reason}. `miyabi-llm backend install embedded` brings it"
        if CI:
            pytest.fail(message)
        pytest.skip(message)
    return detected


@dataclass(frozen=True, slots=True)
class Server:
    """A running one, and a client that knows its key."""

    plan: LaunchPlan
    endpoint: Endpoint
    http: httpx.Client

    def ask(self, body: dict[str, Any], path: str = "/v1/completions") -> httpx.Response:
        return self.http.post(path, json=body)


def settings(home: Path) -> Settings:
    return Settings(home / "data", home / "cache", home / "config", home, env=dict(os.environ))


@contextmanager
def serving(found: Detected, model: Path, home: Path, **more: Any) -> Iterator[Server]:
    alias = f"emb-{secrets.token_hex(4)}"
    told = spec(model, alias, port=free_port(), key=Secret(secrets.token_urlsafe(16)), threads=1, **more)
    plan = Embedded().plan(told, found)
    assert told.key is not None
    with serve.running(plan, settings(home)) as endpoint:
        headers = {"authorization": f"Bearer {told.key.reveal()}"}
        with httpx.Client(base_url=endpoint.base_url, headers=headers, timeout=60, trust_env=False) as http:
            yield Server(plan, endpoint, http)
    assert not processes(alias)


@pytest.fixture(scope="module")
def server(found: Detected, real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(found, real_model, tmp_path_factory.mktemp("embedded"), ctx=CTX, extra=("--queue", "1")) as s:
        yield s


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def idle(server: Server, within: float) -> bool:
    deadline = time.monotonic() + within
    while server.http.get("/slots").json()[0]["is_processing"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def busy(server: Server) -> None:
    deadline = time.monotonic() + 10
    while not server.http.get("/slots").json()[0]["is_processing"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_whole_plan() -> None:
    plan = Embedded().plan(spec(Path("/m/m.gguf"), threads=3, ctx=4096, kv_type="q8_0", key=Secret("k"), gpus=1), FOUND)
    assert plan.argv == (
        *("/p", "-I", "/c.py", "--model", "/m/m.gguf", "--alias", "m", "--host", "127.0.0.1", "--port", "8080"),
        *("--ctx-size", "4096", "--threads", "3", "--cache-type", "q8_0", "--gpu-layers", "-1"),
    )
    assert plain(plan)["env"] == {"MIYABI_EMBEDDED_KEY": "***"}
    assert (plan.ctx, plan.endpoint.backend, plan.endpoint.dialects) == (4096, "embedded", ("openai",))


@pytest.mark.parametrize(
    "more", [{"adapters": (Adapter("a", Path("/a")),)}, {"parallel": 2}, {"nodes": 2}, {"keep_s": 60.0}]
)
def test_what_it_cannot_do_is_refused(more: dict[str, Any]) -> None:
    with pytest.raises(Unsupported) as e:
        Embedded().plan(spec(Path("/m/m.gguf"), **more), FOUND)
    assert "llama-cpp" in (e.value.hint or "")


def test_what_is_served_where_is_not_the_extra_words_to_say() -> None:
    for word in ("--port", "--host=0.0.0.0"):
        with pytest.raises(BadUsage, match="after --"):
            Embedded().plan(spec(Path("/m/m.gguf"), extra=(word, "1")), FOUND)
    with pytest.raises(BackendMissing, match="not installed"):
        Embedded().plan(spec(Path("/m/m.gguf")), Detected("embedded", False))


# The server: real.


def test_it_is_proven_ours_and_knows_its_key(server: Server) -> None:
    with Probe(server.plan) as probe:
        assert probe.identity() == ("ours", "")
        assert probe.token(10) == ("ok", "")
        assert probe.slots(5)[0] == "idle"
    assert httpx.get(f"{server.endpoint.base_url}/health").json() == {"status": "ok"}
    for path in ("/v1/models", "/props", "/slots", "/nowhere"):
        assert httpx.get(f"{server.endpoint.base_url}{path}").status_code == 401
    wrong = httpx.post(f"{server.endpoint.base_url}/v1/completions", json=TOKYO, headers={"authorization": "Bearer x"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")


def test_a_completion_counts_and_times(server: Server) -> None:
    body = server.ask(TOKYO).json()
    assert body["choices"][0]["text"].startswith(" Tokyo")
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["model"] == server.endpoint.model
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (6, 8)
    timings = body["timings"]
    assert timings["cache_n"] + timings["prompt_n"] == 6
    assert timings["predicted_n"] == 8
    assert timings["predicted_ms"] > 0


def test_a_stream_says_the_same(server: Server) -> None:
    whole = server.ask(TOKYO).json()["choices"][0]["text"]
    told = events(server.ask(TOKYO | {"stream": True, "stream_options": {"include_usage": True}}).text)
    assert told[-1] == "[DONE]"
    assert "".join(c["choices"][0]["text"] for c in told[:-2]) == whole
    assert told[-3]["choices"][0]["finish_reason"] == "length"
    assert told[-2]["choices"] == []
    assert told[-2]["usage"]["completion_tokens"] == 8
    assert told[-2]["usage"]["prompt_tokens_details"]["cached_tokens"] > 0, "the prompt was still there"
    plainly = events(server.ask(TOKYO | {"stream": True}).text)
    assert "usage" not in plainly[-2]
    assert plainly[-2]["timings"]["predicted_n"] == 8


def test_stop_seed_and_temperature(server: Server) -> None:
    stopped = server.ask(ENDLESS | {"max_tokens": 40, "stop": [" a", "zzz"]}).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert " a" not in stopped["text"]
    hot = ENDLESS | {"max_tokens": 12, "temperature": 1.5}
    first, again, other = (server.ask(hot | {"seed": s}).json()["choices"][0]["text"] for s in (1, 1, 2))
    assert first == again != other


def test_an_answer_follows_a_schema(server: Server) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    shape = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = server.ask(TOKYO | {"response_format": shape, "max_tokens": 40, "seed": 1}).json()
    assert isinstance(json.loads(body["choices"][0]["text"])["n"], int)
    dead_end = {"type": "json_object", "schema": {"type": "string", "pattern": "^[z-a]+$"}}
    told = events(server.ask(TOKYO | {"response_format": dead_end, "stream": True}).text)
    assert "error" in told[-1], "a failure in the middle is an event, and no [DONE] follows"


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(server: Server) -> None:
    answer = server.ask(TOKYO | {"prompt": "word " * 600})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["n_ctx"]) == ("exceed_context_size_error", CTX)
    assert error["n_prompt_tokens"] > CTX


@pytest.mark.parametrize(
    ("change", "status", "word"),
    [
        ({"max_tokens": "many"}, 400, "max_tokens"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"stop": 5}, 400, "stop"),
        ({"prompt": []}, 400, "prompt"),
        ({"prompt": [999999999]}, 400, "no token"),
        ({"stream": "yes"}, 400, "stream"),
        ({"n": 2}, 400, "n is not done"),
        ({"logprobs": 3}, 400, "logprobs"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "xml"}}, 400, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "x"}}}}, 400, "schema"),
        (
            {"response_format": {"type": "json_object", "schema": {"type": "string", "pattern": "^[z-a]+$"}}},
            400,
            "schema",
        ),
        ({"model": "another"}, 404, "model"),
    ],
)
def test_what_makes_no_sense_or_is_not_done_is_said(
    server: Server, change: dict[str, Any], status: int, word: str
) -> None:
    answer = server.ask(TOKYO | change)
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]["message"]


def test_odd_requests(server: Server) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000):
        assert server.http.post("/v1/completions", content=body).status_code == 400
    assert server.http.get("/v1/completions").status_code == 405
    assert server.http.get("/nowhere").status_code == 404
    assert server.http.post("/v1/completions", content=b" " * (17 << 20)).status_code == 413
    chat = server.ask({"messages": [{"role": "user", "content": "hi"}]}, "/v1/chat/completions")
    assert chat.status_code == 400
    assert "no chat template" in chat.json()["error"]["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_stops_the_generation(server: Server, stream: bool) -> None:
    def go() -> None:
        url, headers = f"{server.endpoint.base_url}/v1/completions", dict(server.http.headers)
        asked = httpx.stream("POST", url, json=ENDLESS | {"stream": stream}, headers=headers, timeout=0.5)
        with suppress(httpx.ReadTimeout), asked as answer:
            next(answer.iter_raw())
            time.sleep(0.3)  # a few more tokens, then the connection is closed

    client = threading.Thread(target=go)
    client.start()
    busy(server)
    client.join()
    before = server.http.get("/slots").json()[0]["n_decoded"]
    assert idle(server, 1.0)
    assert before < 390, "it had ended by itself"
    assert server.ask(TOKYO).json()["choices"][0]["text"].startswith(" Tokyo"), "the next answer is whole"


def test_a_client_that_goes_stops_a_long_prompt(server: Server) -> None:
    """In the middle of the computation, not after it."""
    words = {"prompt": " ".join(str(n) for n in range(140)), "max_tokens": 1, "temperature": 0}
    answer = server.ask(words).json()
    assert answer["timings"]["prompt_n"] > 300
    full = answer["timings"]["prompt_ms"]
    begin = time.monotonic()
    with pytest.raises(httpx.ReadTimeout):
        server.http.post("/v1/completions", json=words | {"prompt": "x " + words["prompt"]}, timeout=full / 4000)
    assert idle(server, 1.0)
    assert time.monotonic() - begin < 1.0 + full / 1000
    again = server.ask(words).json()
    assert again["choices"][0]["text"] == answer["choices"][0]["text"], "nothing half computed was built on"


def test_one_at_a_time_one_waits_the_next_is_turned_away(server: Server) -> None:
    answers: list[int] = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.ask(ENDLESS | {"max_tokens": 25}).status_code))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while server.http.get("/slots").json()[0]["waiting"] < 1:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    turned = server.ask(TOKYO)
    assert turned.status_code == 503
    assert int(turned.headers["retry-after"]) > 0
    assert server.http.get("/health").status_code == 200
    for thread in threads:
        thread.join()
    assert answers == [200, 200]


def test_our_own_client_understands_it(server: Server) -> None:
    with Client(server.endpoint) as client:
        assert client.models() == (server.endpoint.model,)
        assert client.context_size() == CTX
    tokens = server.ask({"content": "Hello", "add_special": True}, "/tokenize").json()["tokens"]
    assert tokens[0] == 2, "Gemma's first token"
    assert server.ask(TOKYO | {"prompt": tokens}).status_code == 200


def test_its_control(server: Server) -> None:
    with Embedded().control(server.endpoint) as control:
        assert control.version() == "llama-cpp-python 0.3.36"
        (state,) = control.models()
        assert (state.name, state.state, state.ctx) == (server.endpoint.model, "loaded", CTX)
        for call in (lambda: control.load("m"), lambda: control.unload("m")):
            with pytest.raises(Unsupported, match="while it runs"):
                call()


def test_a_quantized_cache_and_sigterm_in_the_middle(found: Detected, real_model: Path, tmp_path: Path) -> None:
    """A request in progress is finished before the server goes."""
    got: list[httpx.Response] = []
    with serving(found, real_model, tmp_path, ctx=256, kv_type="q8_0") as s:
        asking = threading.Thread(target=lambda: got.append(s.ask(ENDLESS | {"max_tokens": 30})))
        asking.start()
        busy(s)
        (info,) = serve.ps(settings(tmp_path))
        os.kill(info.pid, signal.SIGTERM)
        asking.join()
    assert got[0].status_code == 200
    assert got[0].json()["usage"]["completion_tokens"] == 30


def test_a_damaged_model_is_explained(found: Detected, tmp_path: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64)
    plan = Embedded().plan(spec(bad, f"emb-{secrets.token_hex(4)}", port=free_port(), threads=1), found)
    with pytest.raises(ServerFailed) as e, serve.running(plan, settings(tmp_path)):
        pass
    assert "bad.gguf: cannot be loaded" in e.value.message


SUPERVISOR = """
import os, sys, json
from pathlib import Path
from miyabi_llm import serve
from miyabi_llm.config import Settings
from miyabi_llm.types import Endpoint, LaunchPlan, Secret
home, order = Path(sys.argv[1]), json.loads(sys.argv[2])
key = Secret(order["key"])
plan = LaunchPlan("embedded", tuple(order["argv"]), {"MIYABI_EMBEDDED_KEY": key},
                  Endpoint(order["url"], order["alias"], key=key))
settings = Settings(home / "data", home / "cache", home / "config", home, env=dict(os.environ))
serve.forever(plan, settings, lambda e: print("ready", flush=True) if e.kind == "done" else None)
"""


def test_kill_9_of_the_supervisor_leaves_nobody(found: Detected, real_model: Path, tmp_path: Path) -> None:
    alias = f"emb-{secrets.token_hex(6)}"
    plan = Embedded().plan(spec(real_model, alias, port=free_port(), threads=1, ctx=256, key=Secret("k")), found)
    order = {"argv": plan.argv, "key": "k", "url": plan.endpoint.base_url, "alias": alias}
    argv = [sys.executable, "-c", SUPERVISOR, str(tmp_path), json.dumps(order)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert processes(alias)
        process.kill()
    assert all_gone(alias, 2.0)


@pytest.mark.slow
def test_a_real_chat(found: Detected, real_store: Store, tmp_path: Path) -> None:
    from miyabi_llm.pull import pull

    artifact = pull(ModelRef.parse("qwen2.5-coder:1.5b"), real_store, USER)
    model = next(iter(real_store.files(artifact).values()))
    question = {"messages": [{"role": "user", "content": "The capital of Japan? One word."}], "temperature": 0}
    with serving(found, model, tmp_path, ctx=1024) as s:
        told = s.ask(question | {"max_tokens": 8}, "/v1/chat/completions").json()
        assert "Tokyo" in told["choices"][0]["message"]["content"]
        assert told["choices"][0]["finish_reason"] == "stop"
        streamed = events(s.ask(question | {"stream": True}, "/v1/chat/completions").text)
        assert streamed[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert streamed[-1] == "[DONE]"
        with Client(s.endpoint) as client:
            ask = [Message("user", "The capital of Japan? One word.")]
            assert client.count_prompt(ask) == told["usage"]["prompt_tokens"]
            assert "Tokyo" in "".join(d.text for d in client.chat(ask, {"temperature": 0, "max_tokens": 8}))
            with pytest.raises(PromptTooLong):
                list(client.chat([Message("user", "word " * 1200)]))
