"""Several real models behind one address, with llama-server's own router and a process of its own beside it."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from miyabi_llm.store import Store

from ..conftest import USER
from .conftest import all_gone, free_port, processes

REF = "gemma3:270m"
MIB = 1 << 20


@dataclass
class Server:
    """A detached server of many models, and the commands a person has for it. `token` is in the name of every model."""

    home: Path
    env: dict[str, str]
    token: str
    port: int
    http: httpx.Client = field(init=False)

    def run(self, *argv: str, code: int = 0) -> Any:
        """A command's JSON."""
        command = [sys.executable, "-m", "miyabi_llm", *argv, "--json"]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=100)
        assert done.returncode == code, done.stderr
        return json.loads(done.stdout)

    def connect(self) -> None:
        key = (self.home / "run" / f"{self.token}.key").read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", headers=headers, trust_env=False, timeout=60)

    def name(self, short: str) -> str:
        return f"{short}-{self.token}"

    def ask(self, short: str, **more: Any) -> httpx.Response:
        body = {"model": self.name(short), "prompt": "1 2 3", "max_tokens": 1, "temperature": 0}
        return self.http.post("/v1/completions", json=body | more)

    def states(self) -> dict[str, str]:
        """short name -> state, as `ps` tells it."""
        (server,) = [s for s in self.run("ps") if s["name"] == self.token]
        return {r["id"].removesuffix(f"-{self.token}"): r["state"] for r in server["models"]}

    def loaded(self) -> set[str]:
        rows = self.http.get("/models").json()["data"]
        return {r["id"].removesuffix(f"-{self.token}") for r in rows if r["state"] == "loaded"}

    @contextmanager
    def streaming(self, short: str) -> Iterator[Iterator[str]]:
        """A long answer on its way; leaving the block closes the connection."""
        body = {"model": self.name(short), "prompt": "1 2 3", "max_tokens": 2000, "stream": True, "ignore_eos": True}
        with self.http.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            lines = response.iter_lines()
            next(lines)
            yield lines

    def busy(self, short: str) -> bool:
        """What the model's own server says of its slots."""
        slots = self.http.get("/slots", params={"model": self.name(short)}).json()
        return any(s["is_processing"] for s in slots)

    def pid(self, word: str) -> int:
        """The one process whose command line has this word and is ours."""
        words = {p: psutil.Process(p).cmdline() for p in processes(self.token)}
        (found,) = [p for p, w in words.items() if word in w and "-S" not in w]  # not its guard
        return found


def config(server: Server, memory: str = "800MiB") -> Path:
    """a is pinned, b and c share the rest, d has a process of its own and goes when idle."""
    few = "ctx: 512, extra: [-np, '1', -t, '1', --cache-ram, '0']"
    rows = [
        f"  - {{ref: '{REF}', alias: {server.name('a')}, pin: true, {few}}}",
        f"  - {{ref: '{REF}', alias: {server.name('b')}, {few}}}",
        f"  - {{ref: '{REF}', alias: {server.name('c')}, {few}}}",
        f"  - {{ref: '{REF}', alias: {server.name('d')}, process: true, ttl: 1, {few}}}",
    ]
    file = server.home.parent / "models.yaml"
    file.write_text(f"memory: {memory}\nport: {server.port}\nmodels:\n" + "\n".join(rows) + "\n")
    return file


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, real_server: Path, real_artifact: object, real_store: Store
) -> Iterator[Server]:
    token = f"many{secrets.token_hex(4)}"
    home = tmp_path_factory.mktemp(token) / token
    home.mkdir()
    (home / "store").symlink_to(real_store.root)
    env = dict(os.environ) | {"MIYABI_HOME": str(home), "MIYABI_CONFIG": str(home), "MIYABI_CACHE": str(USER.cache)}
    env["PATH"] = os.pathsep.join([str(real_server.parent), env["PATH"]])
    made = Server(home, env, token, free_port())
    made.run("serve", "--config", str(config(made)), "--name", token, "--detach")
    made.connect()
    yield made
    made.http.close()
    subprocess.run([sys.executable, "-m", "miyabi_llm", "stop", token], env=env, timeout=60, capture_output=True)
    left = processes(token)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def eventually(true: Callable[[], bool], within: float = 10.0) -> bool:
    deadline = time.monotonic() + within
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_the_pinned_model_is_there_when_it_is_ready(server: Server) -> None:
    assert server.states() == {"a": "loaded", "b": "unloaded", "c": "unloaded", "d": "unloaded"}


def test_a_request_loads_its_model_and_the_one_used_longest_ago_goes(server: Server) -> None:
    for short in "ab":
        answer = server.ask(short).json()
        assert answer["choices"]
        assert answer["model"] == server.name(short)
    assert server.loaded() == {"a", "b"}
    assert server.ask("c").status_code == 200
    states = server.states()
    assert (states["a"], states["b"], states["c"]) == ("loaded", "unloaded", "loaded")
    (told,) = [s for s in server.run("ps") if s["name"] == server.token]
    a, b = told["models"][0], told["models"][1]
    assert a["pinned"]
    assert a["ctx"] == 512
    assert 200 * MIB < a["memory"] < 450 * MIB
    assert (b["memory"], bool(b["last_used"])) == (0, True)


def test_requests_to_two_models_run_at_the_same_time(server: Server) -> None:
    answers: list[int] = []
    server.ask("c")

    def ask(short: str) -> None:
        answers.append(server.ask(short, max_tokens=8).status_code)

    threads = [threading.Thread(target=ask, args=(s,)) for s in "acacac"]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert answers == [200] * 6


def test_many_that_ask_for_one_model_share_one_load(server: Server) -> None:
    before = server.run("switch", server.name("c"))
    assert before["model"] == server.name("c")
    log = server.home / "run" / f"{server.token}.log"
    count = log.read_text().count(f"loaded {server.name('b')} in")
    answers: list[int] = []
    threads = [threading.Thread(target=lambda: answers.append(server.ask("b").status_code)) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert answers == [200] * 6
    assert log.read_text().count(f"loaded {server.name('b')} in") == count + 1


def test_a_model_that_answers_is_not_unloaded_and_a_client_that_leaves_ends_its_answer(server: Server) -> None:
    server.ask("b")
    with server.streaming("b") as lines:
        refused = server.ask("c")
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        message = refused.json()["error"]["message"]
        assert f"{server.name('b')}" in message
        assert "answering" in message
        assert "pinned" in message
        assert next(line for line in lines if line).startswith("data: ")
        assert server.busy("b")
    assert eventually(lambda: not server.busy("b")), "the server still works for a client that has left"
    assert eventually(lambda: server.ask("c").status_code == 200)


def test_a_stream_is_not_held_back(server: Server) -> None:
    with server.streaming("a") as lines:
        begin = time.monotonic()
        pieces = [line for line, _ in zip((line for line in lines if line), range(5), strict=False)]
        assert len(pieces) == 5
        assert server.busy("a"), f"all of it came at once, after {time.monotonic() - begin:.1f} s"


def test_switch_says_what_went_and_what_it_took(server: Server) -> None:
    server.ask("c")
    done = server.run("switch", server.name("b"), "--name", server.token)
    assert done["evicted"] == [server.name("c")]
    assert done["seconds"] > 0
    assert done["memory"] > 200 * MIB
    again = server.run("switch", server.name("b"))
    assert (again["evicted"], again["seconds"]) == ([], 0)
    missing = server.run("switch", "nobody", code=3)
    assert server.name("a") in missing["error"]["hint"]


def test_a_model_in_a_process_of_its_own_goes_when_it_is_idle(server: Server) -> None:
    answer = server.ask("d").json()
    assert answer["model"] == server.name("d")
    assert "d" in server.loaded()
    assert eventually(lambda: server.states()["d"] == "unloaded")
    assert "a" in server.loaded()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"authorization": ""}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"content-type": "text/plain"}, 415),
    ],
)
def test_who_may_not_ask_is_turned_away(server: Server, change: dict[str, str], status: int) -> None:
    body = json.dumps({"model": server.name("a"), "prompt": "1", "max_tokens": 1})
    headers = {"content-type": "application/json"} | change
    answer = server.http.post("/v1/completions", content=body, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_every_route_but_the_health_check_asks_for_the_key(server: Server) -> None:
    from miyabi_llm.serve.many.front import GETS, POSTS

    with httpx.Client(base_url=server.http.base_url, trust_env=False) as bare:
        assert bare.get("/health").status_code == 200
        for path in (*GETS, "/models", "/v1/models", "/slots", "/", "/nothing"):
            assert bare.get(path).status_code == 401, path
        for path in (*POSTS, "/models/load", "/models/unload"):
            assert bare.post(path, json={"model": server.name("a")}).status_code == 401, path


def test_an_unknown_model_is_told_what_there_is(server: Server) -> None:
    for path in ("/v1/chat/completions", "/v1/messages"):
        answer = server.http.post(path, json={"model": "gpt-9", "messages": []})
        assert answer.status_code == 404
        assert server.name("b") in answer.json()["error"]["message"]
    assert (
        server.http.post("/v1/completions", content=b"[1", headers={"content-type": "application/json"}).status_code
        == 400
    )
    assert server.http.post("/v1/completions", json={"prompt": "1"}).status_code == 400


def test_a_probe_loads_nothing(server: Server) -> None:
    server.ask("b")
    body = {"model": server.name("c"), "prompt": "1", "max_tokens": 1}
    assert server.http.post("/v1/completions", json=body, headers={"x-miyabi-probe": "1"}).status_code == 200
    assert "c" not in server.loaded()


def test_a_model_whose_server_was_killed_is_loaded_again(server: Server) -> None:
    server.ask("b")
    os.kill(server.pid(server.name("b")), signal.SIGKILL)
    assert eventually(lambda: server.ask("b").status_code == 200)


@pytest.mark.parametrize("short", ["b", "d"])
def test_an_answer_whose_server_dies_does_not_end_as_if_it_were_whole(server: Server, short: str) -> None:
    server.ask(short)
    seen: list[str] = []

    def listen() -> None:
        with server.streaming(short) as lines:
            os.kill(server.pid(server.name(short)), signal.SIGKILL)
            for line in lines:
                seen.append(line)

    with pytest.raises(httpx.RemoteProtocolError):
        listen()
    assert "data: [DONE]" not in seen
    assert '"error"' in [line for line in seen if line][-1]
    assert eventually(lambda: server.ask("a").status_code == 200)


def test_models_whose_router_was_killed_are_loaded_again(server: Server) -> None:
    os.kill(server.pid("--models-preset"), signal.SIGKILL)
    assert eventually(lambda: server.ask("a").status_code == 200)
    assert (
        len([p for p in processes(server.token) if "--models-preset" in psutil.Process(p).cmdline()]) == 2
    )  # its shim


def test_a_front_that_was_killed_is_started_again(server: Server) -> None:
    front = server.pid("miyabi_llm.cli.many")
    os.kill(front, signal.SIGKILL)

    def back() -> bool:
        try:
            return server.http.get("/health").status_code == 200 and server.ask("a").status_code == 200
        except httpx.HTTPError:
            return False

    assert eventually(back, 20)
    assert server.pid("miyabi_llm.cli.many") != front


def test_a_killed_supervisor_leaves_nobody(server: Server) -> None:
    server.ask("b")
    (told,) = [s for s in server.run("ps") if s["name"] == server.token]
    os.kill(told["supervisor"], signal.SIGKILL)
    assert all_gone(server.token, 2.0), [psutil.Process(p).cmdline() for p in processes(server.token)]
